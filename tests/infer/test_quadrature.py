"""Few parameters integrated over: moments and evidence against dense grids of exact Gaussians, and
against chains that are enumerated."""

from __future__ import annotations

import itertools

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import programs
import pytest
from numpy.testing import assert_allclose
from scipy import stats

import jopa_ppl as jp

Y = (programs.NILE[:20] - 900) / 150


def level(y):
    q = jp.latent("q", dist.Gamma(2.0, 0.2))
    s = jp.latent("s", dist.Gamma(2.0, 1.0))

    def step(x, y):
        x = jp.latent("x", dist.Normal(x, 1 / jnp.sqrt(q)))
        jp.observe("y", dist.Normal(x, 1 / jnp.sqrt(s)), y)
        return x, None

    jp.scan(step, jp.latent("x0", dist.Normal(0.0, 2.0)), y)


def gaussian(covariance, noise, y):
    """log p(y) of y = f + e, f ~ N(0, covariance), and the mean and variance of f."""
    C = covariance + noise * np.eye(len(y))
    gain = np.linalg.solve(C, covariance)
    square, logdet = np.einsum("...i,...i", y, np.linalg.solve(C, y[:, None])[..., 0]), (
        np.linalg.slogdet(C)[1])
    value = -0.5 * (square + logdet + len(y) * np.log(2 * np.pi))
    spread = np.diagonal(covariance - covariance @ gain, axis1=-2, axis2=-1)
    return value, np.swapaxes(gain, -1, -2) @ y, spread


def summed(log_density, cell, means=None, variances=None):
    """log of the integral, weights, and mean and variance of a mixture."""
    top = log_density.max()
    weight = np.exp(log_density - top)
    total = np.log(weight.sum() * cell) + top
    weight = weight / weight.sum()
    if means is None:
        return total, weight
    axes = tuple(range(weight.ndim))
    mean = (weight[..., None] * means).sum(axes)
    return total, weight, mean, (weight[..., None] * (variances + (means - mean)**2)).sum(axes)


def test_a_level_with_two_unknown_precisions_is_that_of_a_dense_grid():
    a, b = np.linspace(-4, 6.5, 106), np.linspace(-3, 4, 71)
    steps = np.minimum.outer(np.arange(20), np.arange(20)) + 1.0
    rows = [[gaussian(steps / q + 4.0, 1 / s, Y) for s in np.exp(b)] for q in np.exp(a)]
    value, mean, spread = (np.array([[r[i] for r in row] for row in rows]) for i in range(3))
    prior = (stats.gamma(2, scale=5).logpdf(np.exp(a)) + a)[:, None] + (
        stats.gamma(2, scale=1).logpdf(np.exp(b)) + b)
    total, weight, mean, variance = summed(value + prior, 0.01, mean, spread)
    found = jp.marginalised(level).quadrature(Y)
    assert_allclose(found.log_evidence, total, atol=1e-5)
    assert found.error < 1e-4
    assert_allclose(found.mean("x"), mean, atol=1e-5)
    assert_allclose(found.variance("x"), variance, rtol=1e-4)
    for name, axis, at in (("q", 1, np.exp(a)), ("s", 0, np.exp(b))):
        share = weight.sum(axis)
        assert_allclose(found.mean(name), share @ at, rtol=1e-4)
        assert_allclose(found.variance(name), share @ (at - share @ at)**2, rtol=1e-3)
    draws = found.sample(0, 1000)
    assert draws["x"].shape == (1000, 20)
    z = (draws["x"].mean(0) - mean) / np.sqrt(variance / 1000)
    assert np.abs(z).max() < 4.5
    assert_allclose(draws["x"].var(0), variance, rtol=0.25)
    assert "log evidence" in found.summary()
    with pytest.raises(jp.SiteError, match="unknown site"):
        found.mean("nobody")


@pytest.mark.slow
def test_a_kernel_with_three_unknown_numbers_is_that_of_a_dense_grid():
    t, y = np.linspace(0, 3, 9), np.array([0.1, 0.8, 1.1, 0.9, 0.2, -0.7, -1.0, -0.8, 0.1])

    def kernel(y):
        length = jp.latent("length", dist.LogNormal(0.0, 0.5))
        size = jp.latent("size", dist.LogNormal(0.0, 0.5))
        noise = jp.latent("noise", dist.LogNormal(-1.0, 0.5))
        K = size**2 * jnp.exp(-0.5 * ((t[:, None] - t) / length)**2) + 1e-6 * jnp.eye(9)
        f = jp.latent("f", dist.MultivariateNormal(jnp.zeros(9), K))
        jp.observe("y", dist.Normal(f, noise).to_event(1), y)

    grid = np.linspace(-5, 5, 41)                   # in spreads of the priors
    value, mean, spread = (np.zeros((41, 41, 41, *n)) for n in ((), (9,), (9,)))
    for i, j in itertools.product(range(41), repeat=2):
        K = np.exp(grid[j]) * np.exp(-0.5 * ((t[:, None] - t) / np.exp(0.5 * grid[i]))**2)
        K = K + 1e-6 * np.eye(9)
        for k in range(41):
            value[i, j, k], mean[i, j, k], spread[i, j, k] = gaussian(
                K, np.exp(2 * (0.5 * grid[k] - 1)), y)
    prior = stats.norm.logpdf(grid)
    prior = prior[:, None, None] + prior[:, None] + prior
    total, _, mean, variance = summed(value + prior, 0.25**3, mean, spread)
    found = jp.marginalised(kernel).quadrature(y)
    assert_allclose(found.log_evidence, total, atol=1e-3)
    assert_allclose(found.mean("f"), mean, atol=1e-4)
    assert_allclose(found.variance("f"), variance, rtol=1e-2)


@pytest.mark.slow
def test_a_chain_of_two_states_with_one_unknown_is_enumerated():
    y = np.array([0.2, -0.1, 1.9, 2.2, 1.7, 0.1])

    def model(y):
        stay = jp.latent("stay", dist.Beta(4.0, 2.0))
        z0 = jp.latent("z0", dist.Categorical(jnp.array([0.5, 0.5])))

        def step(z, y):
            P = jnp.array([[stay, 1 - stay], [1 - stay, stay]])
            z = jp.latent("z", dist.Categorical(P[z]))
            jp.observe("y", dist.Normal(2.0 * z, 1.0), y)
            return z, None

        jp.scan(step, z0, y)

    paths = np.array(list(itertools.product([0, 1], repeat=7)))
    moves = (paths[:, 1:] != paths[:, :-1]).sum(1)
    fit = stats.norm(2.0 * paths[:, 1:], 1).logpdf(y).sum(1)
    p = np.linspace(0, 1, 4001)[1:-1]
    each = np.log(0.5) + fit + (6 - moves) * np.log(p)[:, None] + moves * np.log1p(-p)[:, None]
    joint = np.exp(each) * stats.beta(4, 2).pdf(p)[:, None]
    found = jp.marginalised(model).quadrature(y)
    assert_allclose(found.log_evidence, np.log(joint.sum() / 4000), atol=1e-4)
    assert_allclose(found.mean("stay"), (joint.sum(1) @ p) / joint.sum(), rtol=1e-4)
    assert_allclose(found.mean("z"), (joint.sum(0) @ paths[:, 1:]) / joint.sum(), atol=1e-4)


def test_what_cannot_be_integrated_over_is_refused():
    def four(y):
        a = jp.latent("a", dist.LogNormal(0.0, 1.0).expand([4]).to_event(1))
        m = jp.latent("m", dist.Normal(0.0, 1.0))
        with numpyro.plate("n", 4):
            jp.observe("y", dist.Normal(m, a), y)

    with pytest.raises(jp.StructureError, match=r"4 numbers in 'a'(.|\n)*NUTS"):
        jp.marginalised(four).quadrature(np.ones(4))

    def none(y):
        jp.observe("y", dist.Normal(jp.latent("m", dist.Normal(0.0, 1.0)), 1.0), y)

    with pytest.raises(jp.StructureError, match="nothing to integrate over"):
        jp.marginalised(none).quadrature(np.array(1.0))


@pytest.mark.slow
def test_a_density_that_goes_on_and_on_is_refused():
    """A needle on a wide hill: no product of points about the needle holds both."""
    def model(y):
        theta = jp.latent("theta", dist.StudentT(1.0, 0.0, 1e-3))
        f = jp.latent("f", dist.Normal(jnp.sinh(theta), 1.0))
        jp.observe("y", dist.Normal(f, 1.0), y)

    with pytest.raises(jp.NumericalError, match=r"does not end"):
        jp.marginalised(model).quadrature(np.array(3.0))
