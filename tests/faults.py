"""Programs to meet bad input, and the form that every error must have."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import jopa_ppl as jp
from jopa_ppl.errors import (
    JopaError,
)

N, T = 3, 4
Y = np.array([0.3, -0.2, 0.9])
FRAMES = np.array([[0.1, 0.4], [0.3, 0.2], [-0.4, 0.5], [0.2, 0.1]])
ACTIONS = np.ones((T, 1))


def mean_only(y=None):
    m = jp.latent("m", dist.Normal(0.0, 1.0))
    with jp.plate("n", N):
        jp.observe("y", dist.Normal(m, 1.0), y)


def act(y=None, *, T=T):
    """Two-dimensional states with known dynamics, moved by actions."""
    x0 = jp.latent("x0", dist.Normal(jnp.zeros(2), 1.0).to_event(1))

    def step(x, y):
        jp.observe("y", dist.Normal(x, 0.1).to_event(1), y)
        u = jp.latent("u", dist.Normal(jnp.zeros(1), 1.0).to_event(1))
        return jp.latent("x", dist.Normal(x + jnp.ones((2, 1)) @ u, 0.1).to_event(1)), None

    jp.scan(step, x0, y, length=T)


def drift(y, offset, scale):
    """A line's noisy return to `offset`: slope and noise unknown, everything in units of scale."""
    A = jp.latent("A", dist.Normal(0.5, 0.5))
    tau = jp.latent("tau", dist.Gamma(2.0, scale**2))
    x0 = jp.latent("x0", dist.Normal(offset, scale))

    def step(x, y):
        jp.observe("y", dist.Normal(x, 0.1 * scale), y)
        x = jp.latent("x", dist.Normal(offset + A * (x - offset), 1.0 / jnp.sqrt(tau)))
        return x, None

    jp.scan(step, x0, y)


def series(T: int = 20) -> np.ndarray:
    rng, x = np.random.default_rng(0), [1.0]
    for _ in range(T - 1):
        x.append(0.8 * x[-1] + 0.5 * rng.normal())
    return np.array(x) + 0.1 * rng.normal(size=T)


def message(error: type | tuple, call, *says: str, site: str | None = None) -> JopaError:
    """The error that `call()` raises, whose message must have every part."""
    with pytest.raises(error) as caught:
        call()
    text = str(caught.value)
    for part in ("found:", "expected:", "way out:", *says):
        assert part in text, text
    if site is not None:
        assert caught.value.site == site and f"'{site}'" in text, text
    return caught.value


def refused(error: type, model, *args, says: tuple = (), site: str | None = None,
            run: dict | None = None, **options):
    """`VMP(model, **options).run(*args, **run)` ends in `error`."""
    vmp = jp.VMP(model, progress=False, **options)
    return message(error, lambda: vmp.run(*args, **run or {}), *says, site=site)
