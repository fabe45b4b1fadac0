"""Scans that draw nothing, their carries functions of latents outside: loops of a program."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpy.testing import assert_allclose

import jopa_ppl as jp

RNG = np.random.default_rng(3)
Y = np.cumsum(RNG.normal(size=(8, 3)), 0)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def fit(model, *args):
    return jp.VMP(model, progress=False, tol=1e-10, max_iters=500).run(*args)


def smoothed(y, in_scan, counts=False, after=False):
    """Exponential smoothing of several series, in a scan or by hand."""
    rate = jp.latent("rate", dist.Beta(2.0, 2.0))
    sd = jp.latent("sd", dist.HalfNormal(1.0))
    emitted = lambda level: dist.Poisson(jnp.exp(level)) if counts else dist.Normal(level, sd)

    def step(level, y):
        with jp.plate("series", 3):
            jp.observe("y", emitted(level), y)
        return rate * y + (1 - rate) * level, level

    if in_scan:
        last, _ = jp.scan(step, y[0] * 0.5, y)
    else:
        level, levels = y[0] * 0.5, []
        for now in y:
            levels.append(level)
            level = rate * now + (1 - rate) * level
        last, levels = level, jnp.stack(levels)
        with jp.plate("series", 3):
            jp.observe("y", emitted(levels) if counts else dist.Normal(levels, sd), y)
    if after:
        jp.observe("last", dist.Normal(last, 0.3).to_event(1), y[0])


@pytest.mark.parametrize("args", [(Y,), (np.abs(Y).round(), True), (Y, False, True)],
                         ids=["gaussian", "counts", "its last carry seen"])
def test_a_scan_that_draws_nothing_is_what_it_says(args):
    y, *options = args
    loop, flat = (fit(smoothed, y, in_scan, *options) for in_scan in (True, False))
    assert loop.converged
    assert_allclose(loop.free_energy[-1], flat.free_energy[-1], rtol=1e-8)
    for name in loop.sites:
        assert_allclose(loop.mean(name), flat.mean(name), rtol=1e-5)
        assert_allclose(loop.variance(name), flat.variance(name), rtol=1e-5)


def test_draws_say_the_same_of_f():
    found = fit(smoothed, Y, True)
    gap, error = found.free_energy_error(1000)
    assert abs(gap) < 4 * error + 0.05
