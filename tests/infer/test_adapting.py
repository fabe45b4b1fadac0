"""An agent whose dynamics are not linear follows a gain that changes, if it forgets."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from gymnasium.spaces import Box

import jopa_ppl as jp

RULE = {"x": "linearise"}
PUSH = 10                   # of the features, that which the gain multiplies


def features(x, u):
    p, v = x[..., 0], x[..., 1]
    push = jnp.tanh(u[..., 0])
    return jnp.stack([jnp.ones_like(p), p, v, p**2, p * v, v**2, p**3, jnp.sin(2 * p),
                      jnp.cos(2 * p), push**2, push], -1)


def hill(y=None, *, T, seen=0.01):
    """A ball on a bumpy track, from its place and speed."""
    A = jp.latent("A", dist.Normal(jnp.zeros((2, 11)), 0.3).to_event(2))
    W = jp.latent("W", dist.Wishart(4.0, rate_matrix=1e-4 * jnp.eye(2)))
    x0 = jp.latent("x0", dist.Normal(jnp.zeros(2), 1.0).to_event(1))

    def step(x, y):
        jp.observe("y", dist.Normal(x, seen).to_event(1), y)
        u = jp.latent("u", dist.Normal(jnp.zeros(1), 1.0).to_event(1))
        mean = x + A @ features(x, u)
        return jp.latent("x", dist.MultivariateNormal(mean, precision_matrix=W)), None

    jp.scan(step, x0, y, length=T)


def moved(x, u, gain, rng):
    """The track: it pulls to the middle, and pushes count as much as `gain` says."""
    p, v = x
    pull = -0.03 * np.sin(2 * p) - 0.02 * p
    return np.array([p + 0.1 * v, 0.97 * v + pull + gain * np.tanh(u)]) + 0.002 * rng.normal(size=2)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_a_gain_that_changes_is_followed_by_an_agent_that_forgets(seed):
    rng, x, frames, pushes = np.random.default_rng(seed), np.zeros(2), [], []
    for _ in range(200):
        pushes.append(rng.normal(size=1))
        frames.append(x + 0.01 * rng.normal(size=2))
        x = moved(x, pushes[-1][0], 0.08, rng)
    with jax.enable_x64(True):
        learned = jp.VMP(jp.condition(hill, {"u": np.array(pushes)}), messages=RULE,
                         progress=False).run(np.array(frames), T=200)
        assert abs(learned.mean("A")[1, PUSH] - 0.08) < 0.01
        known = jp.condition(hill, {"W": np.asarray(learned.mean("W"))})
        gains = {}
        for name, how in (("fixed", {}), ("forgets", {"adapt": 4, "forget": 0.9})):
            drive, x = np.random.default_rng(100 + seed), np.zeros(2)
            agent = jp.Agent(known, learned, horizon=12, messages=RULE, space=Box(-3, 3, (1,)),
                             planning={"seen": 0.1}, max_iters=3, **how)
            for t in range(80):
                agent.goal(np.array([0.6 if t // 10 % 2 else -0.6, np.nan]))
                u = agent.act(x + 0.01 * drive.normal(size=2))[0]
                x = moved(x, u, 0.08 if t < 40 else 0.04, drive)
            gains[name] = float(agent.learned.mean("A")[1, PUSH])
    assert abs(gains["fixed"] - 0.08) < 0.01
    assert abs(gains["forgets"] - 0.04) < 0.01, gains
