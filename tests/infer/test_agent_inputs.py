"""What an agent is given: what cannot be says so, and a frame that cannot be is taken for lost."""

from __future__ import annotations

import warnings

import gymnasium as gym
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from gymnasium.spaces import Box

import jopa_ppl as jp
from jopa_ppl.errors import DataError, DataWarning, JopaError, ShapeError

KNOWN = {"A": np.array([[1.0, 0.1], [0.0, 0.9]]), "B": np.array([[0.0], [0.3]])}


def cart(y=None, *, T, seen=0.05):
    A = jp.latent("A", dist.Normal(jnp.eye(2), 0.1).to_event(2))
    B = jp.latent("B", dist.Normal(jnp.zeros((2, 1)), 0.3).to_event(2))
    x0 = jp.latent("x0", dist.Normal(jnp.zeros(2), 2.0).to_event(1))

    def step(x, y):
        jp.observe("y", dist.Normal(x, seen).to_event(1), y)
        u = jp.latent("u", dist.Normal(jnp.zeros(1), 1.0).to_event(1))
        return jp.latent("x", dist.Normal(A @ x + B @ u, 0.02).to_event(1)), None

    jp.scan(step, x0, y, length=T)


def driver(**options) -> jp.Agent:
    """Of a cart that is known."""
    agent = jp.Agent(jp.condition(cart, KNOWN), {}, horizon=5, **options)
    agent.goal(np.zeros(2))
    return agent


class Push(gym.Env):
    observation_space, action_space = Box(-9.0, 9.0, (2,)), Box(-0.2, 0.2, (1,))

    def reset(self, seed=None, options=None):
        self.x = np.array([1.0, 0.0])
        return self.x, {}

    def step(self, push):
        self.x = KNOWN["A"] @ self.x + KNOWN["B"] @ push
        return self.x, 0.0, False, False, {}


def test_adapting_needs_something_to_adapt():
    agent = driver(adapt=2)
    with pytest.raises(JopaError) as e:
        agent.act(np.zeros(2))
    assert "jp.Agent(model, posterior" in str(e.value)
    agent = driver()
    for _ in range(2):
        agent.act(np.zeros(2))
    with pytest.raises(JopaError, match="moves beliefs"):
        agent.learn()
    adapts = jp.Agent(cart, {}, horizon=5, adapt=1)         # from the priors
    adapts.goal(np.zeros(2))
    adapts.act(np.zeros(2))


@pytest.mark.parametrize("forget", [0.0, 1.2, "0.9", True])
def test_a_rate_is_told_as_it_was_given(forget):
    with pytest.raises(JopaError) as e:
        driver(adapt=2, forget=forget)
    assert f"forget={forget!r}" in str(e.value) and "0 < forget <= 1" in str(e.value)


def test_what_is_no_belief_about_dynamics():
    with pytest.raises(JopaError, match="holds no beliefs"):
        jp.Agent(cart, None, horizon=5)
    plan = jp.VMP(jp.condition(cart, KNOWN), decide="u", progress=False).run(
        jp.sparse(4, {0: np.zeros(2), -1: np.ones(2)}), T=4)
    with pytest.raises(JopaError, match="a plan holds beliefs"):
        jp.Agent(cart, plan, horizon=5)


def test_a_wrong_first_frame_leaves_the_agent_as_it_was():
    agent = driver()
    with pytest.raises(ShapeError):
        agent.act(np.zeros(3))
    assert np.isfinite(agent.act(np.zeros(2))).all()


def test_a_frame_that_cannot_be_is_taken_for_lost():
    agent, told = driver(), [np.array([1.0, 0.0]), np.array([np.inf, 0.0]), np.array([1.0, 0.0])]
    agent.act(told[0])
    with pytest.warns(DataWarning, match="taken for lost"):
        agent.act(told[1])
    assert agent.steps[-1].lost is not None and np.isnan(agent.frames[-1]).all()
    agent.act(told[2])
    assert agent.steps[-1].lost is None
    blind = driver()
    for frame in (told[0], None, told[2]):
        blind.act(frame)
    np.testing.assert_allclose(agent.steps[-1].action, blind.steps[-1].action)
    with pytest.raises(DataError):
        driver().act(told[1])                               # of the first nothing else is known


def test_goals_are_looked_at_once_frames_are_known():
    agent = driver()
    with pytest.raises(DataError, match="infinite"):
        agent.goal(np.array([np.inf, 0.0]))
    agent.act(np.zeros(2))
    with pytest.raises(ShapeError, match="does not fit what is seen"):
        agent.goal(np.zeros(3))


def test_spaces_that_do_not_fit():
    with pytest.raises(JopaError) as e:
        jp.rollout(Push(), driver(space=Box(-1.0, 1.0, (1,))), steps=2, progress=False)
    assert "another space" in str(e.value)
    found = jp.rollout(Push(), driver(space=Box(-0.1, 0.1, (1,))), steps=2, progress=False)
    assert np.abs(found.actions).max() <= 0.1 + 1e-7
    class Double(Push):
        action_space = Box(-0.1, 0.1, (1,), np.float64)

    jp.rollout(Double(), driver(space=Box(-0.1, 0.1, (1,))), steps=1, progress=False)
    with pytest.raises(JopaError, match="real numbers"):
        driver(space=Box(-2, 2, (1,), np.int32))
    with pytest.raises(ShapeError) as e:
        driver().act({"image": np.zeros(2)})
    assert "to_frame=" in str(e.value)


def test_a_vector_that_does_not_go_on_is_refused():
    envs = gym.vector.SyncVectorEnv([Push], autoreset_mode=gym.vector.AutoresetMode.DISABLED)
    with pytest.raises(JopaError, match="go on with another one"):
        jp.rollout(envs, driver(), steps=2, progress=False)


def test_a_scalar_action_is_told_how_to_get_an_axis():
    def scalar(y=None, *, T):
        x0 = jp.latent("x0", dist.Normal(0.0, 1.0))

        def step(x, y):
            jp.observe("y", dist.Normal(x, 0.1), y)
            u = jp.latent("u", dist.Normal(0.0, 1.0))
            return jp.latent("x", dist.Normal(0.9 * x + u, 0.1)), None

        jp.scan(step, x0, y, length=T)

    agent = jp.Agent(scalar, {}, horizon=3, space=Box(-1.0, 1.0, (1,)))
    agent.goal(np.array(0.0))
    with pytest.raises(ShapeError) as e, warnings.catch_warnings():
        agent.act(np.array(0.5))
    assert "one axis" in str(e.value)
