"""The arithmetic of one graph, whatever the order of updates: its numbers from data, what the
energy is differentiated in, and F. Pure functions of arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jopa_ppl.beliefs import Belief, Clamp
from jopa_ppl.engine.coordinates import tied
from jopa_ppl.engine.densities import density_of, numbers_of
from jopa_ppl.engine.energy import Energy, is_noise_prior
from jopa_ppl.engine.evidence import Evidence, FactorArrays
from jopa_ppl.engine.faults import bad_weight, informative_factors, partly_missing
from jopa_ppl.engine.reach import Activity, partial_values
from jopa_ppl.engine.reading import Source, read_series
from jopa_ppl.graph.factor import Factor, Graph
from jopa_ppl.linalg.families import diagonal

Data = tuple[dict[str, FactorArrays], dict[str, Array]]


class Local(NamedTuple):
    """The energy as a function of what it is differentiated in of one block, `own` at present, and
    of remainders, `held` at present; the statistics of all blocks, and the numbers of factors
    linearised at them."""

    less: Callable[[Any, dict[str, list[Array]]], Array]
    own: Any
    held: dict[str, list[Array]]
    stats: dict[str, Any]
    arrays: dict[str, FactorArrays]

    def energy(self, mine: Any) -> Array:
        """What messages are the gradient of."""
        return self.less(mine, self.held)


class Arithmetic:
    """A graph and its energy: what beliefs about it are asked, at data and at moments."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.energy = Energy(graph)

    # -- data ----------------------------------------------------------------------------------

    def evidence(self, data: dict[str, Array], weigh: Callable[..., Data] | None = None
                 ) -> Evidence:
        """The numbers of every factor, from the program's data.

        `weigh` may change the weights of observed sites, and where sites in part are data, before
        it is decided what they reach.
        """
        graph = self.graph
        outer, series = read_series(graph, data)
        source = Source(graph, self.energy.slots, data, outer, series)
        arrays = {f.name: numbers_of(f, source) for f in graph.factors}
        raw = {}
        for name, variable in graph.variables.items():
            site = variable.site
            if site.partial:
                inputs = {**data, **{f"known/{k}": v for k, v in outer.items()}}
                if site.scan is None:
                    (raw[name],) = graph.program.evaluate([site.outputs["present"]], inputs)
                else:
                    raw[name] = jax.vmap(lambda s, site=site: graph.program.evaluate(
                        [site.outputs["present"]], {**data, **s})[0])(series[site.scan].steps)
        values, present = partial_values(graph, series, outer, raw)
        known = {**outer, **{n: v for w in series for n, v in w.known.items()}}
        checks = {**self._checks(arrays), "partly": partly_missing(graph, known)}
        if weigh is not None:
            arrays, present = weigh(arrays, present)
        checks["unfit"] = jnp.stack([jnp.zeros((), bool), *(
            ~jnp.asarray(b.fits({f.name: arrays[f.name] for f in self.energy.touching(b)}))
            for b in graph.blocks if b.checked)]).any()
        activity = Activity(graph, arrays, present, keep_outer=weigh is not None)
        arrays = {f.name: arrays[f.name]._replace(weight=activity.weight(f))
                  for f in graph.factors}
        arrays |= {f.name: self.energy.without_gaps(f, arrays[f.name])
                   for f in graph.factors if f.reads}
        checks["untold"] = {n: ~told for n, told in activity.told.items()
                            if graph.program.sites[n].updated}
        priors = {f.name: arrays[f.name]._replace(weight=activity.weight(f, unmasked=True))
                  for f in graph.factors if "weight" in f.site.outputs and not f.site.observed}
        bound = Evidence(arrays, {}, activity.alive, series, values, present, checks, priors)
        return bound._replace(clamps={b.name: self.clamp(b, bound) for b in graph.blocks})

    def clamp(self, block: Belief, bound: Evidence) -> Any:
        """What of a block is not inferred: barren latents and data."""
        alive, values, present = bound.alive, bound.values, bound.present

        def one(name: str) -> Clamp:
            size = self.graph.variables[name].dims
            free = jnp.broadcast_to(alive[name][..., None], (*alive[name].shape, size))
            free = free.astype(jnp.result_type(float))
            value = jnp.zeros_like(free)
            if name in values:
                free = jnp.where(present[name], 0.0, free)
                value = jnp.where(present[name], values[name], 0.0)
            return Clamp(free, value)

        return tied(self.energy, block, block.mask(one), bound.arrays)

    def _checks(self, arrays: dict[str, FactorArrays]) -> dict[str, Array]:
        """The few faults of the data that do not show as a free energy that is not finite."""
        seen, negative, shape = [], [], []
        telling = informative_factors(self.graph)
        for f in self.graph.factors:
            a = arrays[f.name]
            if f in telling and not f.site.partial:
                seen.append((a.weight > 0).any())
            if "weight" in f.site.outputs:
                negative.append(bad_weight(a).any())
            shape.append(density_of(f).improper(f, a).any())
        return {k: jnp.stack(v).any() if v else jnp.zeros((), bool)
                for k, v in (("seen", seen), ("negative", negative), ("shape", shape))}

    # -- beliefs -------------------------------------------------------------------------------

    def stats(self, moments: dict[str, Any], clamps: dict[str, Any]) -> dict[str, Any]:
        """What the energy is differentiated in, by block."""
        return {b.name: b.stats(moments[b.name], clamps[b.name]) for b in self.graph.blocks}

    def energy_of(self, block: Belief, factors: list[Factor], moments: dict[str, Any],
                  bound: Evidence) -> Local:
        """The energy of some factors as a function of a block alone."""
        stats = self.stats(moments, bound.clamps)
        arrays = self.energy.linearised(factors, bound.arrays, stats)
        held = self.energy.remainders([f for f in factors if f.bends(block)], arrays, stats)
        return Local(lambda mine, less: self.energy(factors, arrays, {**stats, block.name: mine},
                                                    less), stats[block.name], held, stats, arrays)

    def at(self, moments: dict[str, Any], bound: Evidence, **means: Any) -> Evidence:
        """The evidence with what is not affine linearised at some beliefs, what is predicted
        included; `means`: by block, other statistics to do so at."""
        stats = {**self.stats(moments, bound.clamps), **means}
        return bound._replace(arrays=self.energy.linearised(
            self.graph.factors, bound.arrays, stats, everywhere=True))

    def free_energy(self, moments: dict[str, Any], bound: Evidence, solved: Belief | None = None
                    ) -> Array:
        """F = -U - sum of entropies, in nats, every normaliser in it; = -ELBO.

        `solved`: a block that has just been updated (`Belief.once_solved`).
        """
        stats, energy = self.stats(moments, bound.clamps), self.energy
        arrays = energy.linearised(self.graph.factors, bound.arrays, stats)
        noise = [f for f in self.graph.factors if is_noise_prior(f)]
        rest = [f for f in self.graph.factors if f not in noise]
        entropy = sum(b.entropy(moments[b.name], bound.clamps[b.name]) for b in self.graph.blocks)
        if solved is not None:
            stats[solved.name], more = solved.once_solved(stats[solved.name],
                                                          bound.clamps[solved.name])
            entropy += more
        return -energy(rest, arrays, stats) - entropy + sum(
            density_of(f).divergence(energy, f, arrays[f.name], stats, moments[f.site.name])
            for f in noise)

    def terms(self, moments: dict[str, Any], bound: Evidence) -> dict[str, Array]:
        """E_q[log p] of every factor, by name."""
        stats = self.stats(moments, bound.clamps)
        arrays = self.energy.linearised(self.graph.factors, bound.arrays, stats)
        return {f.name: self.energy([f], arrays, stats) for f in self.graph.factors}

    def cancelled(self, moments: dict[str, Any], bound: Evidence) -> tuple[Array, Array]:
        """Sums of absolute terms where known matrices P meet residuals r that their elements take
        nearly all of from each other: max_i (|P| |r|)_i / sqrt P_ii, and |r|' |P| |r| / 2.

        Times half a unit of the last place these are errors of F and, with sqrt(J_ii C_ii / P_ii)
        for the spread of an element at most, of the means in spreads.
        """
        stats, found = self.stats(moments, bound.clamps), []

        def one(f: Factor, a: FactorArrays) -> tuple[Array, Array]:
            P = a.known_matrix
            r = jnp.sqrt(jnp.maximum(diagonal(self.energy.parts(f, a, stats)[0]), 0.0))
            terms = jnp.abs(P) @ r[..., None]
            own = diagonal(P)[..., None]
            pull = terms / jnp.sqrt(jnp.where(own > 0, own, jnp.inf))
            return pull.max(initial=0.0), 0.5 * (terms[..., 0] * r).sum()

        for f in self.graph.factors:
            if not f.curved and bound.arrays[f.name].known_matrix is not None:
                found.append(self.energy.each(f, one, bound.arrays[f.name]))
        zero = jnp.zeros(())
        return (jnp.stack([zero, *(pull.max() for pull, _ in found)]).max(),
                sum((size.sum() for _, size in found), zero))

    def ties(self, block: Belief, moments: dict[str, Any], bound: Evidence) -> dict[str, Array]:
        """By factor of the block, of the element it holds most tightly: the precision that the
        factor gives to it, its variance and its mean; and the factor's own largest precision, which
        coefficients do not enlarge, or 0 where it is not data or a matrix."""
        clamp, found = bound.clamps[block.name], {}
        for f in self.energy.touching(block):
            m, J, C = self._elements(block, moments, self._message(block, f, moments, bound),
                                     clamp)
            at, a = jnp.argmax(jnp.where(C.max() > 0, J * C, J)), bound.arrays[f.name]
            own = jnp.zeros(())
            if a.precision is not None and a.known_matrix is None:
                own = jnp.where(a.weight > 0, a.precision, 0.0).max(initial=0.0)
            found[f.name] = jnp.stack([J[at], C[at], m[at], own])
        return found

    def eased(self, block: Belief, site: str, moments: dict[str, Any], bound: Evidence,
              share: Array) -> tuple[Array, Array]:
        """What `ties` says of a site, precision and variance, were its precision `share` of what it
        is: so much that rounding leaves its digits to the rest."""
        clamp, mine, rest = bound.clamps[block.name], [], []
        for f in self.energy.touching(block):
            (mine if f.site.name == site else rest).append(self._message(block, f, moments, bound))
        add = lambda *messages: jax.tree.map(lambda *x: sum(x), *messages)
        own = add(*mine)
        message = add(jax.tree.map(lambda x: share * x, own), *rest)
        new = {**moments, block.name: block.update(moments[block.name], message, clamp)}
        _, _, C = self._elements(block, new, message, clamp)
        _, J, _ = self._elements(block, new, own, clamp)
        at = jnp.argmax(J * C)
        return J[at], C[at]

    def _message(self, block: Belief, factor: Factor, moments: dict[str, Any], bound: Evidence
                 ) -> Any:
        local = self.energy_of(block, [factor], moments, bound)
        return jax.grad(local.energy)(local.own)

    @staticmethod
    def _elements(block: Belief, moments: dict[str, Any], message: Any, clamp: Any
                  ) -> tuple[Array, ...]:
        """Means, precisions that a message gives, and variances of a block's elements."""
        q = moments[block.name]
        return tuple(jnp.concatenate([x.ravel() for x in jax.tree.leaves(tree)])
                     for tree in (block.means(q), block.precisions(message, clamp),
                                  block.variances(q)))
