"""Draws from a chain are made by the kernel that was asked for."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import jopa_ppl as jp
from jopa_ppl.linalg import chain


def walk(y):
    def step(x, y):
        jp.observe("y", dist.Normal(x, 1.0), y)
        return jp.latent("x", dist.Normal(0.9 * x, 0.5)), None

    jp.scan(step, jp.latent("x0", dist.Normal(0.0, 1.0)), y)


@pytest.mark.parametrize(("asked", "made"), [
    ("auto", "auto"), ("sequential", "sequential"), ("parallel", "parallel"), ("funsor", "auto")])
def test_draws_are_made_by_the_kernel_asked_for(asked, made, monkeypatch):
    seen, sample = [], chain.sample
    monkeypatch.setattr(chain, "sample", lambda *args, method="auto", **options: (
        seen.append(method), sample(*args, method=method, **options))[1])
    found = jp.VMP(walk, chain=asked, progress=False).run(np.arange(12.0))
    drawn = found.sample(0, 4000)["x"]
    assert set(seen) == {made}
    np.testing.assert_allclose(drawn.mean(0), found.mean("x"), atol=0.06)
    np.testing.assert_allclose(jnp.var(drawn, 0), found.variance("x"), rtol=0.15)
