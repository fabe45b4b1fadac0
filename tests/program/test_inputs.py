"""Inputs of a scan are data: probed once, not step by step; the beliefs are those of the same
actions as a conditioned site."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import jopa_ppl as jp
from tests.benchmarks.inputs import program, series
from tests.oracles import dense_gaussian

D, T = 2, 12


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def test_as_an_input_or_as_a_site():
    y, u = series(D, T)
    options = {"progress": False, "tol": 0, "max_iters": 2000}
    site = jp.VMP(jp.condition(program, {"u": u}), **options).run(y, d=D)
    given = jp.VMP(program, **options)
    p = given.run(y, u, d=D)
    for name in ("A", "B", "W", "x", "x0"):
        np.testing.assert_allclose(p.mean(name), site.mean(name), rtol=1e-7, atol=1e-7)
        np.testing.assert_allclose(p.variance(name), site.variance(name), rtol=1e-6)
    prior = float(dist.Normal(0.0, 2.0).log_prob(u).sum())
    np.testing.assert_allclose(p.free_energy[-1] - prior, site.free_energy[-1], rtol=1e-9)
    compiled = given.compile(y, u, d=D)
    assert not any("time" in f.varying for f in compiled.graph.factors)


def lagged(y, u, v, *, order):
    """Inputs of this step and of the ones before, a counter, one input that multiplies a state and
    one that multiplies another."""
    b = jp.latent("b", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
    x0 = jp.latent("x0", dist.Normal(0.0, 1.0))

    def step(carry, now):
        x, t, past = carry
        y, u, v = now
        mean = 0.8 * x + b @ u + 0.3 * past[-1].sum() + 0.1 * t + v * past[0][0] + 0.2 * v * x
        x = jp.latent("x", dist.Normal(mean, 0.5))
        jp.observe("y", dist.Normal(x + u[0], 0.3), y)
        return (x, t + 1.0, (u, *past[:-1])), None

    jp.scan(step, (x0, 0.0, (jnp.zeros(2),) * order), (y, u, v))


@pytest.mark.parametrize("order", [1, 2])
def test_inputs_of_earlier_steps(order):
    rng = np.random.default_rng(order)
    y, u, v = rng.normal(size=7), rng.normal(size=(7, 2)), rng.normal(size=7)
    y[3] = np.nan
    exact = dense_gaussian(lagged, (y, u, v), {"order": order}, {"b": (2,), "x0": (), "x": (7,)})
    p = jp.VMP(lagged, progress=False, tol=0, max_iters=3000).run(y, u, v, order=order)
    for name in ("b", "x0", "x"):
        np.testing.assert_allclose(p.mean(name), exact.mean[name], rtol=1e-7, atol=1e-7)


def plated(y, u):
    b = jp.latent("b", dist.Normal(0.0, 1.0))

    def step(x, now):
        y, u = now
        with jp.plate("n", 3):
            x = jp.latent("x", dist.Normal(0.9 * x + b * u, 0.5))
            jp.observe("y", dist.Normal(x, 0.3), y)
        return x, None

    jp.scan(step, jnp.zeros(3), (y, u))


@pytest.mark.parametrize("own", [True, False])
def test_inputs_in_a_plate(own):
    rng = np.random.default_rng(0)
    y, u = rng.normal(size=(6, 3)), rng.normal(size=(6, 3) if own else 6)
    exact = dense_gaussian(plated, (y, u), {}, {"b": (), "x": (6, 3)})
    p = jp.VMP(plated, progress=False, tol=0, max_iters=3000).run(y, u)
    for name in ("b", "x"):
        np.testing.assert_allclose(p.mean(name), exact.mean[name], rtol=1e-7, atol=1e-7)
