"""Densities of values by their probabilities, of counts, and of the probabilities themselves."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array
from jax.scipy.special import gammaln

from jopa_ppl.beliefs.discrete import Dirichlet, log_normaliser, log_of
from jopa_ppl.beliefs.layout import join, split
from jopa_ppl.engine.density import Density, own_numbers
from jopa_ppl.engine.evidence import FactorArrays
from jopa_ppl.engine.expectations import Expectations, Stats
from jopa_ppl.engine.likelihoods import Placement
from jopa_ppl.engine.numbers import own_value, weight_of
from jopa_ppl.engine.reading import Source, by_step
from jopa_ppl.graph.factor import Factor
from jopa_ppl.program.refs import Ref


class Valued(Density):
    """A density of values; its arrays hold the site's own in offset, where it is data."""

    def numbers(self, f: Factor, source: Source) -> FactorArrays:
        zero = jnp.zeros(())
        return FactorArrays(zero, own_value(f, source), weight_of(f, source), zero, None, None,
                            source.env(f))


class CategoricalDensity(Valued):
    """E[log p_k] of a site's value k; the probabilities data, or (products of) Dirichlet latents.
    """

    def expected(self, energy: Expectations, f: Factor, arrays: FactorArrays, stats: Stats,
                 held: list[Array] | None) -> Array:
        log, lead = self.log_probs(energy, f, arrays, stats), int(f.in_time)
        own = dict(f.fixed).get(f.site.ref())
        if own is not None:
            found = split(log[..., own], f.site, f.plates)
        else:
            value = join(arrays.offset, f.site, f.plates, lead).astype(int)
            value = jnp.where(value < 0, log.shape[-1], value)      # none: NaN, and no last one
            found = split(jnp.take_along_axis(log, value[..., None], -1)[..., 0], f.site, f.plates)
        return jnp.sum(arrays.weight * found)

    @staticmethod
    def log_probs(energy: Expectations, f: Factor, arrays: FactorArrays, stats: Stats) -> Array:
        """Expected logs of the probabilities, (*lead, *batch, K)."""
        # A product of probabilities of Dirichlet latents: its log is the sum of theirs.
        logs = {Ref(n): jnp.exp(stats[energy.graph.block_of(n).name]) for n in f.noise}
        place = Placement(energy.graph, f, (), arrays)
        (probs,) = place.each([f.site.outputs["probs"]], None, shared=logs)
        return log_of(probs)


class TallyDensity(Valued):
    """a E[log p] + b E[log(1 - p)] + c of a probability p that is an element of Beta latents.

    Its arrays hold a, b and c of observed sites in K, (*lead, *site shape, 3); a latent one, of
    value k, has k, 1 - k and 0.
    """

    def numbers(self, f: Factor, source: Source) -> FactorArrays:
        arrays, evaluate = super().numbers(f, source), source.evaluator(f)
        if not f.site.observed:
            return arrays
        output = [f.site.outputs["tally"]]
        return arrays._replace(K=by_step(f, True, lambda step: evaluate(output, {}, step)[0]))

    def expected(self, energy: Expectations, f: Factor, arrays: FactorArrays, stats: Stats,
                 held: list[Array] | None) -> Array:
        place, own = Placement(energy.graph, f, (), arrays), dict(f.fixed).get(f.site.ref())
        logs = {n: stats[energy.graph.block_of(n).name] for n in f.noise}
        # What moves elements moves their logs.
        yes, no = (place.each([f.site.outputs["probs"]], None,
                              shared={Ref(n): x[..., i] for n, x in logs.items()})[0]
                   for i in (0, 1))
        a, b, c = jnp.moveaxis(arrays.K, -1, 0) if own is None else (own, 1 - own, 0.0)
        return jnp.sum(arrays.weight * split(a * yes + b * no + c, f.site, f.plates))


class PoissonDensity(Valued):
    """y E[log rate] - E[rate] - log y! of observed counts y, the rate a product of data and of
    Gamma latents."""

    def scale(self, f: Factor, found: Array) -> tuple[Array, Array]:
        rate = split(jnp.broadcast_to(found, f.site.shape), f.site, f.plates)
        return rate, jnp.log(jnp.where(rate > 0, rate, 1.0))

    def expected(self, energy: Expectations, f: Factor, arrays: FactorArrays, stats: Stats,
                 held: list[Array] | None) -> Array:
        rate, log_rate = energy.monomial(f, arrays, stats, "rate")
        count = arrays.offset
        found = jnp.where((rate > 0) | (count == 0), count * log_rate, -jnp.inf) - rate
        return jnp.sum(arrays.weight * (found - gammaln(count + 1)))


class MultinomialDensity(CategoricalDensity):
    """log n! + sum_k (y_k E[log p_k] - log y_k!) of observed counts y, n = sum_k y_k."""

    def expected(self, energy: Expectations, f: Factor, arrays: FactorArrays, stats: Stats,
                 held: list[Array] | None) -> Array:
        log = split(self.log_probs(energy, f, arrays, stats), f.site, f.plates)
        count = arrays.offset
        found = (count * log - gammaln(count + 1)).sum(-1) + gammaln(count.sum(-1) + 1)
        return jnp.sum(arrays.weight[..., 0] * found)


class DirichletDensity(Density):
    """log Dir(p; c) = sum (c - 1) log p - log B(c); its arrays hold c in K."""

    of_precision = True

    def numbers(self, f: Factor, source: Source) -> FactorArrays:
        return own_numbers(f, source, 1.0 / f.site.shape[-1])

    def expected(self, energy: Expectations, f: Factor, arrays: FactorArrays, stats: Stats,
                 held: list[Array] | None) -> Array:
        log = (jnp.log(join(arrays.offset, f.site, f.plates, int(f.in_time)))
               if f.site.observed else stats[f.site.name])
        found = ((arrays.K - 1) * log).sum(-1) - log_normaliser(arrays.K)
        return jnp.sum(self._each(f, arrays) * found)

    def divergence(self, energy: Expectations, f: Factor, arrays: FactorArrays, stats: Stats,
                   belief: Dirichlet) -> Array:
        a, c = belief.concentration, arrays.K
        found = ((a - c) * belief.log).sum(-1) - log_normaliser(a) + log_normaliser(c)
        density = ((c - 1) * belief.log).sum(-1) - log_normaliser(c)
        return jnp.sum(found + (1 - self._each(f, arrays)) * density)

    @staticmethod
    def _each(f: Factor, arrays: FactorArrays) -> Array:
        """The weight of every set of probabilities, where the site has its batch axes."""
        return arrays.weight[..., 0].reshape((*[f.segment.length] * f.in_time,
                                              *f.site.shape[:-1]))

    def improper(self, f: Factor, arrays: FactorArrays) -> Array:
        return ~(arrays.K > 0)

    def faults(self, energy: Expectations, f: Factor, arrays: FactorArrays) -> dict[str, Array]:
        return {"dirichlet": self.improper(f, arrays).sum()}


class BetaDensity(DirichletDensity):
    """log Beta(p; c) = sum (c - 1) (log p, log(1 - p)) - log B(c); its arrays hold c in K."""

    def numbers(self, f: Factor, source: Source) -> FactorArrays:
        return own_numbers(f, source, 0.5)

    @staticmethod
    def _each(f: Factor, arrays: FactorArrays) -> Array:
        weight = jnp.broadcast_to(arrays.weight, arrays.offset.shape)
        return join(weight, f.site, f.plates, int(f.in_time))

    def faults(self, energy: Expectations, f: Factor, arrays: FactorArrays) -> dict[str, Array]:
        return {"beta": self.improper(f, arrays).sum()}
