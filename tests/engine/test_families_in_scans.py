"""Observed Gammas, Wisharts and Dirichlets of a scan whose parameters are data that differ by step:
the same as in a plate, where each element has its own."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpy.testing import assert_allclose
from scipy.special import gammaln

import jopa_ppl as jp

T = 6
rng = np.random.default_rng(0)
SHAPES, WEIGHTS = rng.uniform(0.5, 4.0, (2, T))
Y = rng.gamma(SHAPES, 1 / WEIGHTS)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def gammas(y, shapes, weights, carried):
    tau = jp.latent("tau", dist.Gamma(2.0, 1.5))
    x0 = jp.latent("x0", dist.Normal(0.0, 1.0))

    def step(x, inputs):
        y, shape, weight = inputs
        jp.observe("y", dist.Gamma(shape, tau * weight), y)
        x = jp.latent("x", dist.Normal(0.9 * x, 1.0))
        return (x if carried else x0), None

    jp.scan(step, 0.5 * x0 if carried else x0, (y, shapes, weights))


@pytest.mark.parametrize("carried", [False, True])       # with early steps, and without
def test_gammas_have_shapes_and_rates_of_their_own(carried):
    found = jp.VMP(gammas, progress=False).run(Y, SHAPES, WEIGHTS, carried)
    shape, rate = 2.0 + SHAPES.sum(), 1.5 + (WEIGHTS * Y).sum()
    assert_allclose(found.mean("tau"), shape / rate, rtol=1e-10)
    assert_allclose(found.variance("tau"), shape / rate**2, rtol=1e-10)
    energy = (gammaln(2.0) - 2 * np.log(1.5) - gammaln(shape) + shape * np.log(rate)
              + (gammaln(SHAPES) - SHAPES * np.log(WEIGHTS) - (SHAPES - 1) * np.log(Y)).sum())
    assert_allclose(found.free_energy[-1], energy, rtol=1e-10)


def test_gammas_of_data_alone():
    """Parameters without a latent: a constant of F, step by step."""
    def program(y, shapes, rates):
        x0 = jp.latent("x0", dist.Normal(0.0, 1.0))

        def step(x, inputs):
            y, shape, rate = inputs
            jp.observe("y", dist.Gamma(shape, rate), y)
            return jp.latent("x", dist.Normal(x, 1.0)), None

        jp.scan(step, x0, (y, shapes, rates))
        jp.observe("z", dist.Normal(x0, 1.0), 0.3)

    found = jp.VMP(program, progress=False).run(Y, SHAPES, WEIGHTS)
    want = -np.asarray(dist.Gamma(SHAPES, WEIGHTS).log_prob(Y)).sum()
    want += 0.5 * (0.09 / 2 + np.log(2 * np.pi * 2))
    assert_allclose(found.free_energy[-1], want, rtol=1e-10)


@pytest.mark.parametrize("plates", [False, True])
def test_simplices_of_steps(plates):
    concentrations = rng.uniform(0.5, 3.0, (T, 2, 3) if plates else (T, 3))
    y = np.stack([rng.dirichlet(c) for c in concentrations.reshape(-1, 3)]).reshape(
        concentrations.shape)

    def program(y, concentrations):
        x0 = jp.latent("x0", dist.Normal(0.0, 1.0))

        def step(x, inputs):
            y, c = inputs
            if plates:
                with jp.plate("n", 2):
                    jp.observe("y", dist.Dirichlet(c), y)
            else:
                jp.observe("y", dist.Dirichlet(c), y)
            return jp.latent("x", dist.Normal(x, 1.0)), None

        jp.scan(step, x0, (y, concentrations))
        jp.observe("z", dist.Normal(x0, 1.0), 0.3)

    found = jp.VMP(program, progress=False).run(y, concentrations)
    want = -np.asarray(dist.Dirichlet(jnp.asarray(concentrations)).log_prob(y)).sum()
    want += 0.5 * (0.09 / 2 + np.log(2 * np.pi * 2))
    assert_allclose(found.free_energy[-1], want, rtol=1e-9)


def test_precision_matrices_of_steps():
    dofs = rng.uniform(3.0, 6.0, T)
    rates = np.stack([np.eye(2) * a + b for a, b in rng.uniform(0.2, 1.0, (T, 2))])
    y = np.stack([np.cov(rng.normal(size=(2, 9))) for _ in range(T)])

    def program(y, dofs, rates):
        x0 = jp.latent("x0", dist.Normal(0.0, 1.0))

        def step(x, inputs):
            y, dof, rate = inputs
            jp.observe("y", dist.Wishart(dof, rate_matrix=rate), y)
            return jp.latent("x", dist.Normal(x, 1.0)), None

        jp.scan(step, x0, (y, dofs, rates))
        jp.observe("z", dist.Normal(x0, 1.0), 0.3)

    found = jp.VMP(program, progress=False).run(y, dofs, rates)
    want = -np.asarray(dist.Wishart(jnp.asarray(dofs), rate_matrix=rates).log_prob(y)).sum()
    want += 0.5 * (0.09 / 2 + np.log(2 * np.pi * 2))
    assert_allclose(found.free_energy[-1], want, rtol=1e-9)
