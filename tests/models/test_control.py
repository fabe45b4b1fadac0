"""What `jopa_ppl.models.control` refuses, and the actions that it tells the program of."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from faults import message
from numpy.testing import assert_allclose

from jopa_ppl.errors import JopaError, ShapeError
from jopa_ppl.models.control import World, agent, cut, imagine, learn

WORLD = World(None, None, 0.1, np.array([2.0, 0.5]))


def test_actions_are_told_as_the_program_draws_them():
    taken = np.array([[1.0, -0.25], [2.0, 0.5], [-3.0, 0.0]])
    drawn = WORLD.drawn(taken)
    assert drawn.dtype == np.float32 and np.isfinite(drawn).all()
    assert_allclose(WORLD.taken(drawn[0]), taken[0], rtol=1e-6)
    assert_allclose(WORLD.taken(drawn[1:]), [[1.998, 0.4995], [-1.998, 0.0]], rtol=1e-6)


def test_episodes_are_cut_into_windows_time_first():
    episodes = np.arange(2 * 7).reshape(2, 7, 1)
    assert_allclose(cut(episodes, 3)[..., 0].T, [[0, 1, 2], [3, 4, 5], [7, 8, 9], [10, 11, 12]])


@pytest.mark.parametrize(("frames", "actions", "says"), [
    ((2, 60, 8, 8, 1), (2, 59, 1), "frames and actions of episodes"),
    ((60, 8, 8, 1), (60, 1), "frames and actions of episodes"),
    ((2, 40, 8, 8, 1), (2, 40, 1), "shorter than a window")])
def test_episodes_that_do_not_fit(frames, actions, says):
    message(ShapeError, lambda: learn(np.zeros(frames), np.zeros(actions), 1.0), says)


def test_other_actions_than_were_learned_from():
    class Still(gym.Env):
        action_space = gym.spaces.Box(-1.0, 1.0, (2,))

    message(JopaError, lambda: agent(WORLD, Still(), 5), "other actions", "RescaleAction")
    for space, says in ((gym.spaces.Box(-2.0, 2.0, (1,)), "other actions"),
                        (gym.spaces.Discrete(2), "actions are real numbers")):
        Still.action_space = space
        message(JopaError, lambda: agent(WORLD, Still(), 5), says)


@pytest.mark.parametrize(("seen", "actions"), [(1, 5), (4, 4)])
def test_what_cannot_be_imagined(seen, actions):
    message(ShapeError, lambda: imagine(WORLD, np.zeros((seen, 1, 8, 8, 1)),
                                        np.zeros((actions, 1, 2))), "what follows frames")
