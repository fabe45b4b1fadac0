"""Expectations of densities with corners, against integrals over both of their sides."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import integrate, stats

from jopa_ppl.linalg.corners import over_corner


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("make", [
    lambda s: dist.Laplace(0.0, s), lambda s: dist.AsymmetricLaplace(0.0, s, 2.0),
    lambda s: dist.AsymmetricLaplaceQuantile(0.0, s, 0.9)])
@pytest.mark.parametrize("z, s, var_z, cov, var_s", [
    (0.3, -0.4, 0.5, 0.0, 0.0), (-1.0, 0.2, 0.8, 0.25, 0.3), (4.0, 0.0, 0.1, -0.1, 0.2)])
def test_the_mean_is_the_integral(make, z, s, var_z, cov, var_s):
    log = lambda z, s: make(jnp.exp(s)).log_prob(z)
    found = over_corner(log, *map(jnp.asarray, (z, s, var_z, cov, var_s)))
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    slope, left = cov / var_z, max(var_s - cov**2 / var_z, 0.0)

    def given(x):
        """Over s given z, which is smooth."""
        at = s + slope * (x - z) + np.sqrt(left) * nodes
        return weights @ np.asarray(log(x, jnp.asarray(at))) / weights.sum()

    sd = np.sqrt(var_z)
    edges = sorted([z - 10 * sd, *[0.0] * int(abs(z) < 10 * sd), z + 10 * sd])
    exact = sum(integrate.quad(lambda x: stats.norm.pdf(x, z, sd) * given(x), a, b,
                               epsabs=1e-9)[0] for a, b in itertools.pairwise(edges))
    np.testing.assert_allclose(found, exact, atol=1e-7)


def test_what_is_known_has_no_spread():
    log = lambda z, s: dist.Laplace(0.0, jnp.exp(s)).log_prob(z)
    zero = jnp.zeros(())
    value, slopes = jax.value_and_grad(
        lambda z, v: over_corner(log, z, zero, v, zero, zero), (0, 1))(jnp.asarray(-0.7), zero)
    np.testing.assert_allclose(value, stats.laplace.logpdf(-0.7), rtol=1e-12)
    assert np.isfinite(slopes).all()
