"""The energy U = E_q[log p]: an expected log-density a factor, a function of moments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jopa_ppl.beliefs import Belief
from jopa_ppl.engine.coefficients import expand_at
from jopa_ppl.engine.densities import density_of
from jopa_ppl.engine.evidence import (
    FactorArrays,
    Slot,
    evaluate_in,
)
from jopa_ppl.engine.likelihoods import Placement, score_of
from jopa_ppl.graph.factor import Factor, Graph
from jopa_ppl.linalg.factors import (
    Moments,
    batch_einsum,
    expected_square,
    side_by_side,
)
from jopa_ppl.linalg.nonconjugate import Score, expected_exp, remainder
from jopa_ppl.program.refs import Ref


def slots_of(factor: Factor, blocks: tuple[Belief, ...]) -> list[Slot]:
    """The factor's latents by block; the one with the most batch axes last, as the main slot."""
    found = [(b, refs) for b in blocks if (refs := factor.instances_of(b))]
    own = lambda b: factor.site.name in b.members       # the chain that a site follows from
    found.sort(key=lambda s: (s[0].scan is not None, s[0].scan is not None and own(s[0]),
                              s[0].structured, len(s[0].plates)))
    if not found:
        return [(None, [])]
    last = found[-1][0]
    if last.scan is None and not factor.scored and (
            factor.knowns or factor.in_bulk or (factor.plates and not last.plates)):
        # Only data differ along the batch: let them be the main slot, so that their second moments
        # are summed once and the latents see no batch axis.
        return [*found, (None, [])]
    return found


def is_noise_prior(factor: Factor) -> bool:
    """Whether it is the prior of a precision."""
    return density_of(factor).of_precision and not factor.site.observed


class Energy:
    """U of a graph and its factors' parts, for given arrays."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.slots = {f.name: slots_of(f, graph.blocks) for f in graph.factors}
        parts = {f.name: f if f.scored else f.noise_part for f in graph.factors}
        self.bent = {name: [(b, refs) for b in graph.blocks if (refs := p.instances_of(b))]
                     for name, p in parts.items()}

    def touching(self, block: Belief) -> list[Factor]:
        """The factors whose energy depends on a block."""
        return [f for f in self.graph.factors if block in self.blocks_of(f)]

    def blocks_of(self, factor: Factor) -> list[Belief]:
        """Beliefs a factor depends on, precisions included."""
        blocks = [b for b, _ in self.slots[factor.name] if b is not None]
        names = [*factor.noise, *([factor.site.name] if is_noise_prior(factor) else []),
                 *(r.site for r in factor.spread)]
        return [*dict.fromkeys([*blocks, *(self.graph.block_of(n) for n in names)])]

    def __call__(self, factors: list[Factor], arrays: dict[str, FactorArrays],
                 stats: dict[str, Any], remainders: dict[str, Array] | None = None) -> Array:
        """sum of E_q[log factor] over the given factors; with the `remainders` of the messages that
        approximate, the function whose gradient they are."""
        held = remainders or {}
        return sum((self.factor(f, arrays[f.name], stats, held.get(f.name)) for f in factors),
                   jnp.zeros(()))

    def linearised(self, factors: Sequence[Factor], arrays: dict[str, FactorArrays],
                   stats: dict[str, Any], everywhere: bool = False) -> dict[str, FactorArrays]:
        """The numbers of factors, with the coefficients of a mean that is not affine at the present
        means; a constant, as far as messages go. `everywhere`: also where a factor weighs nothing,
        for what is predicted."""
        return {**arrays, **{f.name: self._linearised(f, arrays[f.name], stats, everywhere)
                             for f in factors if f.curved}}

    def _linearised(self, factor: Factor, arrays: FactorArrays, stats: dict[str, Any],
                    everywhere: bool) -> FactorArrays:
        slots = [(b, refs) for b, refs in self.slots[factor.name] if b is not None]
        curved = {r.site for r in factor.curved}
        points = []
        for block, _ in slots:
            mean = jax.lax.stop_gradient(block.view(stats[block.name], factor).mean)
            points.append(mean if curved & {*block.members} else jnp.zeros_like(mean))
        place = Placement(self.graph, factor, [r for _, refs in slots for r in refs], arrays)
        batch = jnp.broadcast_shapes(*(p.shape[:-1] for p in points))

        def residual(*vectors: Array) -> Array:
            wide = [jnp.broadcast_to(v, (*batch, v.shape[-1])) for v in vectors[:len(points)]]
            return place.residual(jnp.concatenate(wide, -1))

        if self.slots[factor.name][-1][0] is None:
            points.append(jnp.zeros((*(1,) * len(batch), 0)))
        K = expand_at(residual, points)
        if everywhere:
            return arrays._replace(K=K)
        seen = (arrays.weight > 0).any(-1)
        seen = seen.reshape((*seen.shape, *(1,) * (K.ndim - seen.ndim)))
        return arrays._replace(K=jnp.where(seen, K, 0.0))

    def remainders(self, factors: list[Factor], arrays: dict[str, FactorArrays],
                   stats: dict[str, Any]) -> dict[str, Array]:
        """By factor that is not conjugate, `remainder` at the present beliefs."""
        return {f.name: remainder(*self.message(f, arrays[f.name], stats), f.message)
                for f in factors if f.scored or self.spread_by_points(f)}

    def spread_by_points(self, factor: Factor) -> bool:
        """Whether a precision made of Gaussian latents is averaged over points: that of one."""
        return sum(self.graph.variables[r.site].dims for r in factor.spread) == 1

    def factor(self, factor: Factor, arrays: FactorArrays, stats: dict[str, Any],
               held: Array | None = None) -> Array:
        """E_q[log f] of one factor, all normalisers included (and less <`held`, S> / 2)."""
        return density_of(factor).expected(self, factor, arrays, stats, held)

    def message(self, factor: Factor, arrays: FactorArrays, stats: dict[str, Any]
                ) -> tuple[Score, Moments]:
        """What a message that approximates is made of; networks learn nothing from it."""
        arrays, view = jax.lax.stop_gradient(arrays), self.view(factor, arrays, stats)
        if factor.scored:
            return self.score(factor, arrays), view
        square, count, _, _ = self.parts(factor, arrays, stats)
        log = self.log_precision(factor, arrays, stats)

        def score(x: Array) -> Array:
            at_means, expected = log(x)
            return 0.5 * jnp.sum(count * expected - square * jnp.exp(at_means), -1)

        return Score(score), self.steps_of(factor, view)

    def view(self, factor: Factor, arrays: FactorArrays, stats: dict[str, Any]) -> Moments:
        """The moments of the latents that it is not conjugate in, those of its blocks side by
        side."""
        part = factor if factor.scored else factor.noise_part
        views = [b.view(stats[b.name], part) for b, _ in self.bent[factor.name]]
        if not views:
            batch = (1,) * (arrays.offset.ndim - 1)
            return Moments(jnp.zeros((*batch, 0)), jnp.zeros((*batch, 0, 0)))
        return side_by_side(views)

    def placement(self, factor: Factor, arrays: FactorArrays) -> Placement:
        """Where the latents that it is not conjugate in lie in `view`."""
        refs = [r for _, refs in self.bent[factor.name] for r in refs]
        return Placement(self.graph, factor, refs, arrays)

    def score(self, factor: Factor, arrays: FactorArrays) -> Score:
        """The density of a site, as its program scores it."""
        return score_of(self.placement(factor, arrays))

    def parts(self, factor: Factor, arrays: FactorArrays, stats: dict[str, Any]
              ) -> tuple[Array, Array, Array, Array]:
        """Summed E[r r'], summed weights, E[P] and E[log P] of a Gaussian factor."""
        precision, logdet = self.noise(factor, arrays, stats)
        diagonal = precision.ndim == arrays.offset.ndim
        tails = 1 if diagonal else 2
        keep = [n > 1 for n in precision.shape[:precision.ndim - tails]]
        square = self.square(factor, arrays, stats, keep, diagonal)
        count = batch_einsum([(arrays.weight, "n")], "n", keep)
        return square, count, precision, logdet

    def square(self, factor: Factor, arrays: FactorArrays, stats: dict[str, Any],
               keep: list[bool], diagonal: bool) -> Array:
        """Weighted E[r r'] (or its diagonal), summed over the batch axes that are not kept."""
        views = [b.view(stats[b.name], factor)
                 for b, _ in self.slots[factor.name] if b is not None]
        batch = arrays.offset.shape[:-1]
        one = (1,) * len(batch)
        if self.slots[factor.name][-1][0] is None:
            *slots, main = *views, Moments(jnp.zeros((*one, 0)), jnp.zeros((*one, 0, 0)))
        else:
            *slots, main = views
        return expected_square(arrays.K, arrays.offset, arrays.weight, slots, main,
                               arrays.known, keep, diagonal)

    def noise(self, factor: Factor, arrays: FactorArrays, stats: dict[str, Any]
              ) -> tuple[Array, Array]:
        """E[P] and E[log P] (or E[log|P|]), batch axes in front (size 1 for time)."""
        if factor.spread:
            return self.spread_noise(factor, arrays, stats)
        if not factor.noise:
            return arrays.precision, arrays.logdet
        return self.monomial(factor, arrays, stats, factor.noise_key)

    def spread_noise(self, factor: Factor, arrays: FactorArrays, stats: dict[str, Any],
                     power: int = 1) -> tuple[Array, Array]:
        """E[P^power] and E[log P] of a precision that is made of Gaussian latents in any way."""
        log = self.log_precision(factor, arrays, stats)
        at = self.steps_of(factor, self.view(factor, arrays, stats))
        mean, _ = expected_exp(lambda x: power * log(x)[0], at)
        return mean, expected_exp(lambda x: log(x)[1], at)[1]

    def log_precision(self, factor: Factor, arrays: FactorArrays, stats: dict[str, Any]
                      ) -> Callable[[Array], tuple[Array, Array]]:
        """log P as a function of the latents of `view`: at the means of those that it is
        conjugate in, and in expectation over them."""
        place, output = self.placement(factor, arrays), [factor.site.outputs[factor.noise_key]]
        scale = lambda found, _: density_of(factor).scale(factor, found[0])[1]
        once = factor.in_bulk and not self.spreads_in_time(factor)

        def at(x: Array, values: dict[str, Array]) -> Array:
            shared = {Ref(n): v for n, v in values.items()}
            if once:
                return place.at_first(output, x, scale, shared)[None]
            return place.each(output, x, scale, shared)

        blocks = {n: self.graph.block_of(n) for n in factor.noise}
        means = {n: stats[b.name][0] for n, b in blocks.items()}
        logs = {n: stats[b.name][1] for n, b in blocks.items()}

        def log_at(x: Array, shifts: dict[str, Array]) -> Array:
            return at(x, {n: blocks[n].at_log(shift) for n, shift in shifts.items()})

        def both(x: Array) -> tuple[Array, Array]:
            if not factor.noise:
                return (at(x, {}),) * 2
            zero = {n: jnp.zeros_like(v) for n, v in logs.items()}
            base, slope = jax.jvp(lambda shifts: log_at(x, shifts), (zero,), (logs,))
            return at(x, means), base + slope

        return both

    @staticmethod
    def spreads_in_time(factor: Factor) -> bool:
        """Whether a precision made of Gaussian latents differs from step to step."""
        return factor.in_bulk and (factor.noise_varying
                                   or any(r.back is not None for r in factor.spread))

    def steps_of(self, factor: Factor, view: Moments) -> Moments:
        """A view of one step where all are alike."""
        if not factor.in_bulk or self.spreads_in_time(factor):
            return view
        return Moments(*(a[:1] for a in view))

    def monomial(self, factor: Factor, arrays: FactorArrays, stats: dict[str, Any], key: str
                 ) -> tuple[Array, Array]:
        """E and E[log] of a precision (or rate) that is a product of data and precisions.

        It is linear in each latent and its log is affine in their logs, so both expectations are
        exact: at the means, and by the tangent of the log at 1 (which cannot under- or overflow).
        """
        output = [factor.site.outputs[key]]
        means = {n: stats[self.graph.block_of(n).name][0] for n in factor.noise}
        logs = {n: stats[self.graph.block_of(n).name][1] for n in factor.noise}

        def at(values: dict[str, Array]) -> tuple[Array, Array]:
            given = {Ref(n): v for n, v in values.items()}

            def one(step: Array | int) -> tuple[Array, Array]:
                (found,) = evaluate_in(self.graph.reader, factor, arrays.env, output, given, step)
                return density_of(factor).scale(factor, found)

            if not factor.in_bulk:
                return one(0)
            if not factor.noise_varying:
                first, second = one(0)
                return first[None], second[None]
            return jax.vmap(one)(jnp.arange(arrays.offset.shape[0]))

        def log_at(shifts: dict[str, Array]) -> Array:
            values = {n: self.graph.block_of(n).at_log(shift) for n, shift in shifts.items()}
            return at(values)[1]

        zero = {n: jnp.zeros_like(v) for n, v in logs.items()}
        base, slope = jax.jvp(log_at, (zero,), (logs,))
        return at(means)[0], base + slope
