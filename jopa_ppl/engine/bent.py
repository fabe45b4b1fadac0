"""Factors that are not conjugate in some latents: expectations, and what messages are made of.

Three kinds, any of which a factor may be: a density that is scored as its program scores it
(`Factor.scored`); a Gaussian's precision that is made of Gaussian latents in any way (`spread`); a
Gaussian's mean that is not affine (`curved`), which is linearised at the present means, or averaged
over points of the latents in question, all others exact at each:

    E_q[r r'] = sum_k w_k E[r r' | h_k],     h_k the points of q(h)  (`linalg.nonconjugate`)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jopa_ppl.beliefs import Belief
from jopa_ppl.engine.evidence import FactorArrays, Slot
from jopa_ppl.engine.expectations import Expectations, Message, Stats
from jopa_ppl.engine.likelihoods import Placement
from jopa_ppl.graph.factor import Factor, Graph
from jopa_ppl.linalg.coefficients import Tensor
from jopa_ppl.linalg.factors import Moments, side_by_side
from jopa_ppl.linalg.nonconjugate import Score, expected_exp, over_points
from jopa_ppl.linalg.slopes import expand_at
from jopa_ppl.program.refs import Ref


class Joined(NamedTuple):
    """Some latents of a factor side by side, [(block, refs), ..], as `part` of it sees them."""

    graph: Graph
    factor: Factor
    part: Factor
    slots: list[tuple[Belief, list[Ref]]]

    @staticmethod
    def of(graph: Graph, factor: Factor, part: Factor, sites: set[str] | None = None) -> Joined:
        """All that a part of a factor touches; with `sites`, in the blocks of these alone."""
        found = [(b, refs) for b in graph.blocks if (refs := part.instances_of(b))
                 and (sites is None or sites & {*b.members})]
        return Joined(graph, factor, part, found)

    def view(self, arrays: FactorArrays, stats: Stats) -> Moments:
        """Their moments, independent between blocks."""
        views = [b.view(stats[b.name], self.part) for b, _ in self.slots]
        if not views:
            batch = (1,) * (arrays.offset.ndim - 1)
            return Moments(jnp.zeros((*batch, 0)), jnp.zeros((*batch, 0, 0)))
        return side_by_side(views)

    def place(self, arrays: FactorArrays) -> Placement:
        """Where they lie."""
        return Placement(self.graph, self.factor, [r for _, refs in self.slots for r in refs],
                         arrays)


class Bent:
    """The parts of a factor that it is not conjugate in; `slots` of `Energy`."""

    def __init__(self, graph: Graph, factor: Factor, slots: list[Slot]) -> None:
        self.factor, self.slots = factor, [s for s in slots if s[0] is not None]
        self.main = slots[-1][0] is not None
        self.spread = Joined.of(graph, factor, factor.noise_part)
        self.curved = Joined.of(graph, factor, factor, {r.site for r in factor.curved})
        mine = {b.name for b, _ in self.curved.slots}
        # Of their blocks, those that it is not affine in, which points go over, and the others.
        inside, at = [r for _, refs in self.curved.slots for r in refs], 0
        self.over: list[int] = []
        self.rest: list[int] = []
        for r in inside:
            size = graph.variables[r.site].dims
            (self.over if r in factor.curved else self.rest).extend(range(at, at + size))
            at += size
        self.order = [r for r in inside if r not in factor.curved], [
            r for r in inside if r in factor.curved]
        self.affine = [s for s in self.slots if s[0].name not in mine]
        self.noise_in_time = factor.in_time and (
            factor.noise_varying or any(r.back is not None for r in factor.spread))
        self.one = sum(graph.variables[r.site].dims for r in factor.spread) == 1

    def rules(self, rule: str) -> list[str]:
        """By message, the rule by which its expectations are taken; `rule` is the factor's."""
        if self.factor.scored:
            return [rule]
        return ["quadrature"] * self.one + [rule] * self._averaged(rule)

    def _averaged(self, rule: str) -> bool:
        """Whether points go over what its mean is not affine in."""
        return bool(self.factor.curved) and rule != "linearise"

    def messages(self, energy: Expectations, arrays: FactorArrays, stats: Stats, rule: str
                 ) -> list[Message]:
        """What its messages are made of, but for that of a mean linearised at the present means."""
        # Networks learn nothing from messages; the shares of discrete latents are in the weights.
        fixed = jax.lax.stop_gradient(arrays)._replace(weight=arrays.weight)
        if self.factor.scored:
            return [Message(*energy.scored(self.factor, fixed, stats), rule)]
        scores = [self._score_of_spread] * self.one + [
            self._score_of_curved] * self._averaged(rule)
        return [Message(score(energy, fixed, stats), at, own) for score, at, own in zip(
            scores, self.views(arrays, stats, rule), self.rules(rule))]

    def views(self, arrays: FactorArrays, stats: Stats, rule: str) -> list[Moments]:
        """By message of one that is not scored, the moments of its latents."""
        found = [self._spread_view] * self.one + [self._over_view] * self._averaged(rule)
        return [view(arrays, stats) for view in found]

    # -- the mean --------------------------------------------------------------------------------

    def linearised(self, arrays: FactorArrays, stats: Stats, everywhere: bool) -> FactorArrays:
        """The numbers with coefficients at the present means; `everywhere`: also where the factor
        weighs nothing."""
        own = next((b for b, _ in self.slots if b.checked), None)
        others, points = [(b, refs) for b, refs in self.slots if b is not own], []
        for block, _ in others:
            mean = jax.lax.stop_gradient(block.view(stats[block.name], self.factor).mean)
            bent = any(b is block for b, _ in self.curved.slots)
            points.append(mean if bent else jnp.zeros_like(mean))
        place = self.curved.place(arrays)._replace(refs=[r for _, refs in others for r in refs])
        if own is None:
            K = self._expanded(place, points)
            K = Tensor(K if self.main else K[..., None])
        else:
            points = [place.in_time(p) for p in points]
            K = own.own_slopes(self.factor, lambda values, *v: place.residual(_beside(*v), values),
                               points, place.copied_of(points))
        return arrays._replace(K=K if everywhere else K.on_h(partial(_seen, arrays)))

    def square(self, arrays: FactorArrays, stats: Stats, rule: str, keep: list[bool],
               diagonal: bool) -> Array:
        """Weighted E[r r'] (or its diagonal) over the points of a rule, as `Energy.square`."""
        return over_points(self._square_at(arrays, stats, keep, diagonal),
                           self._over_view(arrays, stats), rule, arrays.offset.size)

    def _over_view(self, arrays: FactorArrays, stats: Stats) -> Moments:
        """The moments of the latents that points go over."""
        at, over = self.curved.view(arrays, stats), np.array(self.over, int)
        return Moments(at.mean[..., over], at.cov[..., over[:, None], over])

    def _given(self, arrays: FactorArrays, stats: Stats) -> Callable[[Array], Moments]:
        """The moments of the others of their blocks, these at h: they are affine in h."""
        at, over = self.curved.view(arrays, stats), np.array(self.over, int)
        rest, own = np.array(self.rest, int), self._over_view(arrays, stats)
        spread = jnp.diagonal(own.cov, axis1=-2, axis2=-1)
        unit = jnp.where(spread > 0, 1e-14 * spread, 1.0)             # of what is data
        inner = own.cov + unit[..., None] * jnp.eye(len(over), dtype=own.cov.dtype)
        across = at.cov[..., rest[:, None], over]
        gain = jnp.swapaxes(jnp.linalg.solve(inner, jnp.swapaxes(across, -1, -2)), -1, -2)
        cov = at.cov[..., rest[:, None], rest] - gain @ jnp.swapaxes(across, -1, -2)
        return lambda h: Moments(at.mean[..., rest] + jnp.einsum(
            "...rc,...c->...r", gain, h - own.mean), cov)

    def _square_at(self, arrays: FactorArrays, stats: Stats, keep: list[bool], diagonal: bool
                   ) -> Callable[[Array], Array]:
        """`square` with the latents that it is not affine in at h (*batch, n), a function of h."""
        views = [b.view(stats[b.name], self.factor) for b, _ in self.affine]
        given, (rest, over) = self._given(arrays, stats), self.order
        refs = [*(r for _, refs in self.affine for r in refs), *rest, *over]
        place = self.curved.place(arrays)._replace(refs=refs)
        none = jnp.zeros((*(1,) * (arrays.offset.ndim - 1), 0))

        def square(h: Array) -> Array:
            main = given(h)
            K = self._expanded(place, [jnp.zeros_like(v.mean) for v in (*views, main)], h)
            return Tensor(_seen(arrays, K)).square(arrays.offset, arrays.weight, views, main, none,
                                                   keep, diagonal)

        return square

    @staticmethod
    def _expanded(place: Placement, points: list[Array], *last: Array) -> Array:
        """Coefficients of the residual, linearised at the points of the slots, `last` fixed, as one
        array."""
        points = [place.in_time(p) for p in points]
        return expand_at(lambda *vectors: place.residual(_beside(*vectors, *last)), points,
                         place.copied_of(points))

    def _score_of_curved(self, energy: Expectations, arrays: FactorArrays, stats: Stats) -> Score:
        precision, _ = energy.noise(self.factor, arrays, stats)
        batch = arrays.offset.ndim - 1
        square = self._square_at(arrays, stats, [True] * batch, precision.ndim == batch + 1)
        place = self.curved.place(arrays)

        def score(h: Array) -> Array:
            found = precision * square(h)
            return -0.5 * jnp.sum(found, tuple(range(batch, found.ndim)))

        return Score(score, copied=lambda h: place.copied(h, self.order[1]),
                     elements=arrays.offset.size)

    # -- the precision ---------------------------------------------------------------------------

    def _spread_view(self, arrays: FactorArrays, stats: Stats) -> Moments:
        """The moments of the precision's latents; of one step, where all are alike."""
        view, alike = self.spread.view(arrays, stats), not self.noise_in_time
        return Moments(*(a[:1] for a in view)) if self.factor.in_time and alike else view

    def noise(self, energy: Expectations, arrays: FactorArrays, stats: Stats, power: int
              ) -> tuple[Array, Array]:
        """E[P^power] and E[log P] of a precision that is made of Gaussian latents in any way."""
        log = self._log_precision(energy, arrays, stats)

        def both(x: Array) -> tuple[Array, Array]:
            at_means, expected = log(x)
            return power * at_means, expected

        return expected_exp(both, self._spread_view(arrays, stats))

    def _score_of_spread(self, energy: Expectations, arrays: FactorArrays, stats: Stats) -> Score:
        square, count, _, _ = energy.parts(self.factor, arrays, stats)
        log = self._log_precision(energy, arrays, stats)

        def score(x: Array) -> Array:
            at_means, expected = log(x)
            return 0.5 * jnp.sum(count * expected - square * jnp.exp(at_means), -1)

        return Score(score, elements=arrays.offset.size)

    def _log_precision(self, energy: Expectations, arrays: FactorArrays, stats: Stats
                       ) -> Callable[[Array], tuple[Array, Array]]:
        """log P as a function of the spread latents: at the means of those that it is conjugate
        in, and in expectation over them."""
        f, graph = self.factor, energy.graph
        place, output = self.spread.place(arrays), [f.site.outputs[f.noise_key]]
        scale = lambda found, _: energy.log_scale(f, found[0])

        def at(x: Array, values: Mapping[str, Array]) -> Array:
            shared = {Ref(n): v for n, v in values.items()}
            if f.in_time and not self.noise_in_time:
                return place.at(0, output, x[0], scale, shared)[None]
            return place.each(output, x, scale, shared)

        blocks = {n: graph.block_of(n) for n in f.noise}
        means = {n: stats[b.name][0] for n, b in blocks.items()}
        logs = {n: stats[b.name][1] for n, b in blocks.items()}
        zero = {n: jnp.zeros_like(v) for n, v in logs.items()}

        def both(x: Array) -> tuple[Array, Array]:
            if not f.noise:
                return (at(x, {}),) * 2
            base, slope = jax.jvp(lambda shifts: at(
                x, {n: blocks[n].at_log(s) for n, s in shifts.items()}), (zero,), (logs,))
            return at(x, means), base + slope

        return both


def _beside(*vectors: Array) -> Array:
    """Vectors (*batch|1, p_i) side by side, on the batch that they have together."""
    batch = jnp.broadcast_shapes(*(v.shape[:-1] for v in vectors))
    return jnp.concatenate([jnp.broadcast_to(v, (*batch, v.shape[-1])) for v in vectors], -1)


def _seen(arrays: FactorArrays, K: Array) -> Array:
    """Coefficients without those of what weighs nothing, which may not be finite."""
    seen = (arrays.weight > 0).any(-1)
    return jnp.where(seen.reshape((*seen.shape, *(1,) * (K.ndim - seen.ndim))), K, 0.0)
