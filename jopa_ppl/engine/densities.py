"""What a family of factors answers: its numbers, its expected log density, its faults.

One row of `DENSITIES` a family; nothing else in the engine asks which one a factor is of. A family
whose latent site is no Gaussian has a belief as well (`jopa_ppl.beliefs`).
"""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import gammaln

from jopa_ppl.beliefs.discrete import Dirichlet, log_normaliser, log_of
from jopa_ppl.beliefs.layout import join, split
from jopa_ppl.engine.evidence import FactorArrays
from jopa_ppl.engine.expectations import Expectations, Stats
from jopa_ppl.engine.likelihoods import Placement
from jopa_ppl.engine.numbers import (
    SYMMETRIC,
    gaussian_numbers,
    own_value,
    symmetric_or_nan,
    to_precision,
    weight_of,
)
from jopa_ppl.engine.reading import Source, by_step, evaluate_in
from jopa_ppl.graph.factor import Factor
from jopa_ppl.linalg.factors import expected_log_density
from jopa_ppl.linalg.families import (
    Gamma,
    Wishart,
    gamma_divergence,
    gamma_log_density,
    wishart_divergence,
    wishart_log_density,
)
from jopa_ppl.linalg.nonconjugate import curvature, expected_score
from jopa_ppl.program.refs import Ref


class Density:
    """A family. `of_precision`: its latent site is a precision, of whose belief F holds the
    divergence from its prior; `gaussian`: it is affine in the latents of its mean."""

    of_precision: ClassVar[bool] = False
    gaussian: ClassVar[bool] = False

    def numbers(self, f: Factor, source: Source) -> FactorArrays:
        """The numbers of a factor, from the program's data."""
        raise NotImplementedError

    def expected(self, energy: Expectations, f: Factor, arrays: FactorArrays, stats: Stats,
                 held: list[Array] | None) -> Array:
        """E_q[log f], all normalisers included (and less <`held`, S> / 2); in nats."""
        raise NotImplementedError

    def divergence(self, energy: Expectations, f: Factor, arrays: FactorArrays, stats: Stats,
                   belief: Any) -> Array:
        """-E_q[log f] - entropy of a precision's belief: KL(q || f) where f has weight one."""
        raise NotImplementedError

    def scale(self, f: Factor, found: Array) -> tuple[Array, Array]:
        """What its latent noise comes to, and the log of it, split by plates."""
        return to_precision(f, found)

    def improper(self, f: Factor, arrays: FactorArrays) -> Array:
        """Where its own parameters make no density (or are NaN)."""
        return jnp.zeros((), bool)

    def faults(self, energy: Expectations, f: Factor, arrays: FactorArrays) -> dict[str, Array]:
        """Where its numbers are at fault, by what it is called; compiled only for an error."""
        numbers = jax.tree.leaves((arrays.K, arrays.known, arrays.offset))
        return {"coefficients": sum((~jnp.isfinite(x)).sum() for x in numbers)}


class GaussianDensity(Density):
    """N(r; 0, P^-1) of a residual r that is multi-affine in latents."""

    gaussian = True

    def numbers(self, f: Factor, source: Source) -> FactorArrays:
        return gaussian_numbers(f, source)

    def expected(self, energy: Expectations, f: Factor, arrays: FactorArrays, stats: Stats,
                 held: list[Array] | None) -> Array:
        if f.site.rules.certain:            # the belief follows it
            return jnp.zeros(())
        square, count, precision, logdet = energy.parts(f, arrays, stats)
        found = expected_log_density(square, count, precision, logdet,
                                     precision.ndim == arrays.offset.ndim)
        if held is None:
            return found
        return found - 0.5 * sum(jnp.sum(r * m.at.cov) for r, m in zip(
            held, energy.messages(f, arrays, stats)))


class Scored(Density):
    """A density that is not conjugate, at the present beliefs about all that it is made of."""

    def numbers(self, f: Factor, source: Source) -> FactorArrays:
        # Nothing to probe: it is evaluated at every belief.
        flat = jnp.zeros((*source.batch(f), 1))
        zero = jnp.zeros(())
        return FactorArrays(zero, flat, weight_of(f, source), zero, None, None, source.env(f))

    def expected(self, energy: Expectations, f: Factor, arrays: FactorArrays, stats: Stats,
                 held: list[Array] | None) -> Array:
        (score, view, rule), = energy.messages(f, arrays, stats)
        if held is None and rule == "linearise":
            held = [curvature(score, view, rule)]           # the mean alone sees no spread
        return expected_score(score, view, rule, None if held is None else held[0])


class GammaDensity(Density):
    """Gamma(shape, rate), elementwise; the rate may be a product of other precisions.

    Its arrays hold the shape in K and the site's own value in offset.
    """

    of_precision = True

    def numbers(self, f: Factor, source: Source) -> FactorArrays:
        return _own_numbers(f, source, 1.0)

    def scale(self, f: Factor, found: Array) -> tuple[Array, Array]:
        rate = split(jnp.broadcast_to(found, f.site.shape), f.site, f.plates)
        return rate, jnp.log(rate)

    def _prior(self, energy: Expectations, f: Factor, arrays: FactorArrays, stats: Stats
               ) -> tuple[Array, Array, Array]:
        """Shape, E[rate] and E[log rate], split by plates."""
        shape = split(arrays.K, f.site, f.plates)
        if f.noise:
            return shape, *energy.monomial(f, arrays, stats, "rate")
        rate = split(_at_data(energy, f, arrays, "rate"), f.site, f.plates)
        return shape, rate, jnp.log(rate)

    def expected(self, energy: Expectations, f: Factor, arrays: FactorArrays, stats: Stats,
                 held: list[Array] | None) -> Array:
        shape, rate, log_rate = self._prior(energy, f, arrays, stats)
        if f.site.observed:
            mean, log = arrays.offset, jnp.log(arrays.offset)
        else:
            mean, log = (split(s, f.site, f.plates) for s in stats[f.site.name])
        return jnp.sum(arrays.weight * gamma_log_density(shape, rate, log_rate, mean, log))

    def divergence(self, energy: Expectations, f: Factor, arrays: FactorArrays, stats: Stats,
                   belief: Gamma) -> Array:
        prior = self._prior(energy, f, arrays, stats)
        belief = Gamma(*(split(x, f.site, f.plates) for x in belief))
        density = gamma_log_density(*prior, belief.mean, belief.log)
        return jnp.sum(gamma_divergence(belief, *prior) + (1 - arrays.weight) * density)

    def improper(self, f: Factor, arrays: FactorArrays) -> Array:
        return ~(arrays.K > 0)

    def faults(self, energy: Expectations, f: Factor, arrays: FactorArrays) -> dict[str, Array]:
        found = self.improper(f, arrays).sum()
        if not f.noise:
            found = found + (~(_at_data(energy, f, arrays, f.noise_key) > 0)).sum()
        return {"gamma": found}


class WishartDensity(Density):
    """W(dof, rate matrix^-1); its arrays hold the dof in K and the site's own value in offset."""

    of_precision = True

    def numbers(self, f: Factor, source: Source) -> FactorArrays:
        return _own_numbers(f, source, jnp.eye(f.site.shape[-1]))

    def expected(self, energy: Expectations, f: Factor, arrays: FactorArrays, stats: Stats,
                 held: list[Array] | None) -> Array:
        if f.site.observed:
            mean = join(arrays.offset, f.site, f.plates, int(f.in_time))
            log = 2 * jnp.log(jnp.diagonal(jnp.linalg.cholesky(mean), axis1=-2, axis2=-1)).sum(-1)
        else:
            mean, log = stats[f.site.name]
        rate = self.rate(energy, f, arrays)
        return jnp.sum(self._each(f, arrays) * wishart_log_density(arrays.K, rate, mean, log))

    def divergence(self, energy: Expectations, f: Factor, arrays: FactorArrays, stats: Stats,
                   belief: Wishart) -> Array:
        prior = arrays.K, self.rate(energy, f, arrays)
        density = wishart_log_density(*prior, belief.mean, belief.log)
        return jnp.sum(wishart_divergence(belief, *prior) + (1 - self._each(f, arrays)) * density)

    @staticmethod
    def _each(f: Factor, arrays: FactorArrays) -> Array:
        """The weight of every matrix, where the site has its batch axes."""
        axes, lead = [p.axis for p in f.plates], int(f.in_time)
        weight = arrays.weight[..., 0]
        weight = weight.reshape((*weight.shape, *(1,) * (len(f.site.shape) - 2 - len(axes))))
        return jnp.moveaxis(weight, range(lead, lead + len(axes)), [lead + a for a in axes])

    def rate(self, energy: Expectations, f: Factor, arrays: FactorArrays) -> Array:
        """The rate matrix, whichever way it was given."""
        matrix = _at_data(energy, f, arrays, f.noise_key)
        if f.noise_key in SYMMETRIC:
            matrix = symmetric_or_nan(matrix)
        if f.noise_key == "rate_matrix":
            return matrix
        chol = matrix if f.noise_key == "scale_tril" else jnp.linalg.cholesky(matrix)
        eye = jnp.broadcast_to(jnp.eye(matrix.shape[-1], dtype=matrix.dtype), matrix.shape)
        white = jax.scipy.linalg.solve_triangular(chol, eye, lower=True)
        return jnp.swapaxes(white, -1, -2) @ white

    def improper(self, f: Factor, arrays: FactorArrays) -> Array:
        return ~(arrays.K > f.site.shape[-1] - 1)

    def faults(self, energy: Expectations, f: Factor, arrays: FactorArrays) -> dict[str, Array]:
        root = jnp.linalg.cholesky(self.rate(energy, f, arrays))
        return {"wishart_rate": (~jnp.isfinite(root)).sum(),
                "wishart_dof": self.improper(f, arrays).sum()}


class CategoricalDensity(Density):
    """E[log p_k] of a site's value k; the probabilities data, or (products of) Dirichlet latents.

    Its arrays hold the site's own value in offset, where it is data.
    """

    def numbers(self, f: Factor, source: Source) -> FactorArrays:
        zero = jnp.zeros(())
        return FactorArrays(zero, own_value(f, source), weight_of(f, source), zero, None, None,
                            source.env(f))

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


class TallyDensity(CategoricalDensity):
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


class PoissonDensity(CategoricalDensity):
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
        return _own_numbers(f, source, 1.0 / f.site.shape[-1])

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
        return _own_numbers(f, source, 0.5)

    @staticmethod
    def _each(f: Factor, arrays: FactorArrays) -> Array:
        weight = jnp.broadcast_to(arrays.weight, arrays.offset.shape)
        return join(weight, f.site, f.plates, int(f.in_time))

    def faults(self, energy: Expectations, f: Factor, arrays: FactorArrays) -> dict[str, Array]:
        return {"beta": self.improper(f, arrays).sum()}


DENSITIES = {"categorical": CategoricalDensity(), "multinomial": MultinomialDensity(),
             "bernoulli": TallyDensity(), "binomial": TallyDensity(),
             "poisson": PoissonDensity(), "beta": BetaDensity(),
             "dirichlet": DirichletDensity(), "normal": GaussianDensity(),
             "recursion": GaussianDensity(), "mvn": GaussianDensity(), "gamma": GammaDensity(),
             "wishart": WishartDensity(), "likelihood": Scored()}


def density_of(f: Factor) -> Density:
    """The row of a factor's family."""
    return DENSITIES[f.family]


def _own_numbers(f: Factor, source: Source, filler: Array | float) -> FactorArrays:
    evaluate, own = source.evaluator(f), [f.site.outputs["concentration"]]
    shape = by_step(f, f.varying_in_time, lambda step: evaluate(own, {}, step)[0])
    return FactorArrays(shape, own_value(f, source, filler), weight_of(f, source), jnp.zeros(()),
                        None, None, source.env(f))


def _at_data(energy: Expectations, f: Factor, arrays: FactorArrays, key: str) -> Array:
    """A parameter of the noise that is made of data."""
    return by_step(f, f.noise_varying, lambda step: evaluate_in(
        energy.graph.reader, f, arrays.env, [f.site.outputs[key]], {}, step)[0])
