"""Latents of a scan whose steps meet no others, beside a chain that has begun before step 0."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import jopa_ppl as jp


def beside(order):
    """x of this order, whose first values are latents; u_t ~ N(.3, 4) apart from all, z_t of it."""
    def model(y=None, z=None, *, T):
        first = tuple(jp.latent(f"h{i}", dist.Normal(0.5, 1.0)) for i in range(order))

        def step(carry, seen):
            y, z = seen
            u = jp.latent("u", dist.Normal(0.3, 2.0))
            x = jp.latent("x", dist.Normal(0.5 * carry[0] + 0.2 * carry[-1], 0.7))
            jp.observe("y", dist.Normal(carry[0], 0.4), y)
            jp.observe("z", dist.Normal(u, 0.5), z)
            return (x, *carry[:-1]), None

        jp.scan(step, first, (y, z), length=T)
    return model


@pytest.mark.parametrize("order,T", [(1, 1), (1, 4), (2, 1), (2, 2), (2, 5), (3, 2), (3, 7)])
def test_steps_that_meet_no_others_are_each_for_itself(order, T):
    rng = np.random.default_rng(0)
    y, z = rng.normal(size=(2, T))
    z[T // 2:] = np.where(np.arange(T - T // 2) % 2, z[T // 2:], np.nan)
    with jax.enable_x64(True):
        posterior = jp.VMP(beside(order), progress=False).run(y, z, T=T)
        precision = 0.25 + np.where(np.isnan(z), 0.0, 4.0)
        mean = (0.3 / 4 + 4 * np.nan_to_num(z)) / precision
        np.testing.assert_allclose(posterior.mean("u"), mean, atol=1e-12)
        np.testing.assert_allclose(posterior.variance("u"), 1 / precision, atol=1e-12)
        draws = posterior.sample(0, (4000,))["u"]
        np.testing.assert_allclose(draws.mean(0), mean, atol=0.2)
        np.testing.assert_allclose(draws.std(0), precision**-0.5, rtol=0.1)
        alone = jp.VMP(jp.condition(beside(order), {"u": jnp.zeros(T)}), progress=False).run(
            y, np.full(T, np.nan), T=T)
        np.testing.assert_allclose(posterior.mean("x"), alone.mean("x"), atol=1e-10)
