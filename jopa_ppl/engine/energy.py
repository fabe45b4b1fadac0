"""The energy U = E_q[log p]: an expected log-density a factor, a function of moments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jopa_ppl.beliefs import Belief
from jopa_ppl.engine.bent import Bent, Joined
from jopa_ppl.engine.densities import density_of
from jopa_ppl.engine.evidence import BY_COPY, FactorArrays, Slot, without_gaps
from jopa_ppl.engine.expectations import Message
from jopa_ppl.engine.likelihoods import score_of
from jopa_ppl.engine.reading import by_step, evaluate_in
from jopa_ppl.graph.factor import Factor, Graph
from jopa_ppl.linalg.factors import (
    Moments,
    batch_einsum,
)
from jopa_ppl.linalg.nonconjugate import Score, remainder, tells_all
from jopa_ppl.program.refs import Ref

LEAST = 1e-300      # the weight of a value without probability


def slots_of(factor: Factor, blocks: tuple[Belief, ...]) -> list[Slot]:
    """The factor's latents by block; the one with the most batch axes last, as the main slot."""
    found = [(b, refs) for b in blocks if (refs := factor.instances_of(b))]
    own = lambda b: factor.site.name in b.members       # the chain that a site follows from
    found.sort(key=lambda s: (s[0].scan is not None, s[0].scan is not None and own(s[0]),
                              s[0].structured, len(s[0].plates)))
    if not found:
        return [(None, [])]
    last = found[-1][0]
    # Outside of its scan a chain's first states may be multiplied by data as any latents are.
    told = factor.knowns and (last.scan is None or factor.segment.scan is None)
    wide = last.scan is None and (factor.in_time or (factor.plates and not last.plates))
    if not factor.scored and (told or wide):
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
        self.bent = {f.name: Bent(graph, f, self.slots[f.name]) for f in graph.factors
                     if f.bent or f.scored}
        self.joined = {f.name: Joined.of(graph, f, f) for f in graph.factors
                       if f.site.likelihood is not None}

    def touching(self, block: Belief) -> list[Factor]:
        """The factors whose energy depends on a block."""
        return [f for f in self.graph.factors if block in self.blocks_of(f)]

    def blocks_of(self, factor: Factor) -> list[Belief]:
        """Beliefs a factor depends on, precisions included."""
        blocks = [b for b, _ in self.slots[factor.name] if b is not None]
        names = [*factor.noise, *([factor.site.name] if is_noise_prior(factor) else []),
                 *(r.site for r in factor.spread), *(r.site for r, _ in factor.fixed)]
        return [*dict.fromkeys([*blocks, *(self.graph.block_of(n) for n in names)])]

    def __call__(self, factors: list[Factor], arrays: dict[str, FactorArrays],
                 stats: dict[str, Any], remainders: dict[str, list[Array]] | None = None) -> Array:
        """sum of E_q[log factor] over the given factors; with the `remainders` of the messages that
        approximate, the function whose gradient they are."""
        def one(f: Factor, a: FactorArrays, *held: list[Array]) -> Array:
            return self.factor(f, self.shared(f, a, stats), stats, *held)

        held = remainders or {}
        found = (self.each(f, one, arrays[f.name], *(r for n, r in held.items() if n == f.name))
                 for f in factors)
        return sum(map(jnp.sum, found), jnp.zeros(()))

    @staticmethod
    def each(f: Factor, fn: Callable[..., Any], arrays: FactorArrays, *more: Any,
             out: Any = 0) -> Any:
        """fn(copy, its numbers, ..) of all copies of a factor side by side; of one that has none,
        of itself.

        Args:
            fn: what is asked; arrays: the numbers of the factor; more: pytrees of arrays that hold
                something for each copy, in front.
            out: where copies lie in what comes of it; in front.
        """
        if not f.copies:
            return fn(f, arrays, *more)
        one = lambda chosen, *rest: fn(f.copy(chosen), *rest)
        return jax.vmap(one, (0, BY_COPY, *[0] * len(more)), out)(
            jnp.array(f.copies), arrays, *more)

    def without_gaps(self, f: Factor, arrays: FactorArrays) -> FactorArrays:
        """`evidence.without_gaps` of the numbers of a factor, of all its copies."""
        return self.each(f, lambda _, a: without_gaps(a), arrays, out=BY_COPY)

    def shared(self, factor: Factor, arrays: FactorArrays, stats: dict[str, Any]) -> FactorArrays:
        """The numbers of a copy of a factor, weighed by the probability of the values it is for."""
        by_block: dict[str, list] = {}
        for ref, i in factor.fixed:
            by_block.setdefault(self.graph.block_of(ref.site).name, []).append((ref, i))
        for name, fixed in by_block.items():
            block = self.graph.block_of(fixed[0][0].site)
            # What cannot be is no missing datum, which weighs nothing: it still has to tell so.
            share = block.share(stats[name], factor, fixed) + LEAST
            arrays = arrays._replace(weight=arrays.weight * share[..., None])
        return arrays

    def linearised(self, factors: Sequence[Factor], arrays: dict[str, FactorArrays],
                   stats: dict[str, Any], everywhere: bool = False) -> dict[str, FactorArrays]:
        """The numbers of factors, with the coefficients of a mean that is not affine at the present
        means; a constant, as far as messages go. `everywhere`: also where a factor weighs nothing,
        for what is predicted."""
        def one(f: Factor, a: FactorArrays) -> FactorArrays:
            return self._bent(f).linearised(a, stats, everywhere)

        return {**arrays, **{f.name: self.each(f, one, arrays[f.name], out=BY_COPY)
                             for f in factors
                             if f.curved and (everywhere or f.message == "linearise")}}

    def _bent(self, f: Factor) -> Bent:
        """The parts of a factor, or of a copy, that it is not conjugate in."""
        return Bent(self.graph, f, self.slots[f.name]) if f.fixed else self.bent[f.name]

    def messages(self, factor: Factor, arrays: FactorArrays, stats: dict[str, Any]
                 ) -> list[Message]:
        """What the messages of a factor are made of where they go over points; networks learn
        nothing from them."""
        if factor.name not in self.bent:
            return []
        return self._bent(factor).messages(self, arrays, stats, factor.message)

    def rules(self, factor: Factor) -> list[str]:
        """By message the rule by which its expectations are taken."""
        return self.bent[factor.name].rules(factor.message) if factor.name in self.bent else []

    def views(self, factor: Factor, arrays: FactorArrays, stats: dict[str, Any]) -> list[Moments]:
        """By message of one that is not scored, the moments of its latents."""
        return self._bent(factor).views(arrays, stats, factor.message)

    def scored(self, factor: Factor, arrays: FactorArrays, stats: dict[str, Any]
               ) -> tuple[Score, Moments]:
        """The density of an observed site as its program scores it, differentiable in all that it
        is made of, and the moments of its latents."""
        joined = self.joined[factor.name]._replace(factor=factor)
        return score_of(joined.place(arrays)), joined.view(arrays, stats)

    def remainders(self, factors: list[Factor], arrays: dict[str, FactorArrays],
                   stats: dict[str, Any]) -> dict[str, list[Array]]:
        """By factor that is not conjugate, `remainder` of its messages at the present beliefs."""
        def one(f: Factor, a: FactorArrays) -> list[Array]:
            return [remainder(*m) for m in self.messages(f, self.shared(f, a, stats), stats)]

        return {f.name: self.each(f, one, arrays[f.name]) for f in factors if f.bent}

    def no_remainders(self, factors: list[Factor]) -> dict[str, list[Array]]:
        """Messages as their points tell them."""
        return {f.name: [jnp.zeros((len(f.copies),) if f.copies else ())] * len(self.rules(f))
                for f in factors}

    def unclipped(self, factors: list[Factor], held: dict[str, list[Array]]
                  ) -> dict[str, list[Array]]:
        """Remainders with nothing left out of what points tell, where they tell all: precisions as
        they are, of any sign."""
        return {f.name: [jnp.zeros_like(r) if tells_all(rule, r.shape[-1]) else r
                         for r, rule in zip(held[f.name], self.rules(f))]
                for f in factors if f.name in held}

    def factor(self, factor: Factor, arrays: FactorArrays, stats: dict[str, Any],
               held: list[Array] | None = None) -> Array:
        """E_q[log f] of one factor, all normalisers included (and less <`held`, S> / 2)."""
        return density_of(factor).expected(self, factor, arrays, stats, held)

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
        if factor.curved and factor.message != "linearise":
            return self._bent(factor).square(arrays, stats, factor.message, keep, diagonal)
        views = [b.view(stats[b.name], factor)
                 for b, _ in self.slots[factor.name] if b is not None]
        batch = arrays.offset.shape[:-1]
        one = (1,) * len(batch)
        if self.slots[factor.name][-1][0] is None:
            *slots, main = *views, Moments(jnp.zeros((*one, 0)), jnp.zeros((*one, 0, 0)))
        else:
            *slots, main = views
        return arrays.K.square(arrays.offset, arrays.weight, slots, main, arrays.known, keep,
                               diagonal)

    def noise(self, factor: Factor, arrays: FactorArrays, stats: dict[str, Any]
              ) -> tuple[Array, Array]:
        """E[P] and E[log P] (or E[log|P|]), batch axes in front (size 1 for time)."""
        if factor.spread:
            return self.of_power(factor, arrays, stats, 1)
        if not factor.noise:
            return arrays.precision, arrays.logdet
        return self.monomial(factor, arrays, stats, factor.noise_key)

    def of_power(self, factor: Factor, arrays: FactorArrays, stats: dict[str, Any], power: int
                 ) -> tuple[Array, Array]:
        """E[P^power] and E[log P] of a precision that is made of Gaussian latents in any way."""
        return self._bent(factor).noise(self, arrays, stats, power)

    @staticmethod
    def log_scale(factor: Factor, noise: Array) -> Array:
        """log P of the parameter that the user gave, split by plates."""
        return density_of(factor).scale(factor, noise)[1]

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

            return by_step(factor, factor.noise_varying, one)

        def log_at(shifts: dict[str, Array]) -> Array:
            values = {n: self.graph.block_of(n).at_log(shift) for n, shift in shifts.items()}
            return at(values)[1]

        zero = {n: jnp.zeros_like(v) for n, v in logs.items()}
        base, slope = jax.jvp(log_at, (zero,), (logs,))
        return at(means)[0], base + slope
