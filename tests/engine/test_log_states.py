"""LogNormal states of a scan, against the same program of their logs."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpy.testing import assert_allclose

import jopa_ppl as jp

Y = np.exp(0.3 * np.cumsum(np.random.default_rng(5).normal(size=5)))


def growing(y, logs):
    def step(x, y):
        if logs:
            x = jp.latent("x", dist.Normal(0.9 * x, 0.2))
            jp.observe("y", dist.Normal(jnp.exp(x), 0.3), y)
        else:
            x = jp.latent("x", dist.LogNormal(0.9 * jnp.log(x), 0.2))
            jp.observe("y", dist.Normal(x, 0.3), y)
        return x, None

    first = dist.Normal(0.0, 0.5) if logs else dist.LogNormal(0.0, 0.5)
    jp.scan(step, jp.latent("x0", first), y)


def test_lognormal_states_are_gaussian_in_their_logs():
    with jax.enable_x64(True):
        found, logs = (jp.VMP(growing, progress=False, tol=1e-12, max_iters=500).run(Y, x)
                       for x in (False, True))
        assert found.converged
        assert_allclose(found.free_energy[-1], logs.free_energy[-1], rtol=1e-8)
        mean, variance = logs.mean("x"), logs.variance("x")
        assert_allclose(found.mean("x"), np.exp(mean + variance / 2), rtol=1e-6)
        drawn = {n: np.asarray(v) for n, v in found.sample(0, (50,)).items()}
        assert_allclose(found.log_prob(drawn), logs.log_prob(
            {n: np.log(v) for n, v in drawn.items()}) - np.log(drawn["x"]).sum(-1)
            - np.log(drawn["x0"]), rtol=1e-5)
