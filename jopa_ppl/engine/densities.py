"""Densities of Gaussians and of precisions, those that are scored, and the table of all.

One row of `DENSITIES` a family; nothing else in the engine asks which one a factor is of. A family
whose latent site is no Gaussian has a belief as well (`jopa_ppl.beliefs`).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from jopa_ppl.beliefs.layout import join, split
from jopa_ppl.engine.counts import (
    BetaDensity,
    CategoricalDensity,
    DirichletDensity,
    MultinomialDensity,
    PoissonDensity,
    TallyDensity,
)
from jopa_ppl.engine.density import Density, at_data, own_numbers
from jopa_ppl.engine.evidence import BY_COPY, FactorArrays
from jopa_ppl.engine.expectations import Expectations, Stats
from jopa_ppl.engine.numbers import (
    SYMMETRIC,
    gaussian_numbers,
    symmetric_or_nan,
    weight_of,
)
from jopa_ppl.engine.reading import Source
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
        return found - 0.5 * sum(jnp.sum(r * at.cov) for r, at in zip(
            held, energy.views(f, arrays, stats)))


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
        return own_numbers(f, source, 1.0)

    def scale(self, f: Factor, found: Array) -> tuple[Array, Array]:
        rate = split(jnp.broadcast_to(found, f.site.shape), f.site, f.plates)
        return rate, jnp.log(rate)

    def _prior(self, energy: Expectations, f: Factor, arrays: FactorArrays, stats: Stats
               ) -> tuple[Array, Array, Array]:
        """Shape, E[rate] and E[log rate], split by plates."""
        shape = split(arrays.K, f.site, f.plates)
        if f.noise:
            return shape, *energy.monomial(f, arrays, stats, "rate")
        rate = split(at_data(energy, f, arrays, "rate"), f.site, f.plates)
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
            found = found + (~(at_data(energy, f, arrays, f.noise_key) > 0)).sum()
        return {"gamma": found}


class WishartDensity(Density):
    """W(dof, rate matrix^-1); its arrays hold the dof in K and the site's own value in offset."""

    of_precision = True

    def numbers(self, f: Factor, source: Source) -> FactorArrays:
        return own_numbers(f, source, jnp.eye(f.site.shape[-1]))

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
        matrix = at_data(energy, f, arrays, f.noise_key)
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


DENSITIES = {"categorical": CategoricalDensity(), "multinomial": MultinomialDensity(),
             "bernoulli": TallyDensity(), "binomial": TallyDensity(),
             "poisson": PoissonDensity(), "beta": BetaDensity(),
             "dirichlet": DirichletDensity(), "normal": GaussianDensity(),
             "recursion": GaussianDensity(), "mvn": GaussianDensity(), "gamma": GammaDensity(),
             "wishart": WishartDensity(), "likelihood": Scored()}


def numbers_of(f: Factor, source: Source) -> FactorArrays:
    """The numbers of a factor, of all its copies side by side."""
    density = density_of(f)
    if not f.copies:
        return density.numbers(f, source)
    return jax.vmap(lambda chosen: density.numbers(f.copy(chosen), source), out_axes=BY_COPY)(
        jnp.array(f.copies))


def density_of(f: Factor) -> Density:
    """The row of a factor's family; of one that has none, what its program scores it by."""
    return DENSITIES.get(f.family, DENSITIES["likelihood"])
