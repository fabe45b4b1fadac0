"""Latents that every step of a scan draws anew, against the same drawn at once before it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpy.testing import assert_allclose

import jopa_ppl as jp

Y = np.cumsum(np.random.default_rng(4).normal(size=(10, 2)), 0)


def robust(y, inside):
    """A walk of several series under noise of a precision for each step."""
    rate = jp.latent("rate", dist.Gamma(3.0, 1.0))
    prior = dist.Gamma(2.0, 2.0 * rate)
    if not inside:
        with jp.plate("series", 2):
            scales = jp.latent("w", prior.expand([len(y), 2]))

    def step(carry, y):
        x, t = carry
        with jp.plate("series", 2):
            x = jp.latent("x", dist.Normal(x, 0.5))
            w = jp.latent("w", prior) if inside else scales[t]
            jp.observe("y", dist.Normal(x, 1 / jnp.sqrt(w)), y)
        return (x, t + 1), None

    with jp.plate("series", 2):
        x0 = jp.latent("x0", dist.Normal(0.0, 3.0))
    jp.scan(step, (x0, 0), y)


@pytest.mark.parametrize("gap", [False, True])
def test_precisions_of_steps_are_one_site_before_the_scan(gap):
    y = np.where(np.arange(20).reshape(10, 2) == 7, np.nan, Y) if gap else Y
    with jax.enable_x64(True):
        found, before = (jp.VMP(robust, progress=False, tol=1e-10, max_iters=500).run(y, inside)
                         for inside in (True, False))
        assert found.converged and found.mean("w").shape == (10, 2)
        assert_allclose(found.free_energy[-1], before.free_energy[-1], rtol=1e-10)
        for name in ("w", "x", "rate"):
            assert_allclose(found.mean(name), before.mean(name), rtol=1e-6)
        gap, error = found.free_energy_error(1000)
        assert abs(gap) < 4 * error + 0.02
