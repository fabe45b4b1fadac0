"""What `jopa_ppl.models.control` refuses, and the actions that it tells the program of."""

from __future__ import annotations

from typing import NamedTuple

import gymnasium as gym
import numpy as np
import pytest
from faults import message
from numpy.testing import assert_allclose

from jopa_ppl.errors import DataError, JopaError, ShapeError
from jopa_ppl.models.control import World, agent, cut, imagine, learn, scaled

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


def test_frames_are_in_one_unit_whatever_the_wrappers_give():
    picture = np.array([[[0], [255]], [[128], [3]]], np.uint8)
    assert_allclose(scaled(picture), picture / 255, rtol=1e-6)
    gaps = np.array([np.nan, 0.0, 1.0])
    assert scaled(gaps) is gaps
    for wrong in (picture.astype(float), picture.astype(int), np.array([-0.5, 0.5]),
                  np.array([np.inf])):
        message(DataError, lambda wrong=wrong: scaled(wrong), "frames are pictures")
    frames = np.random.default_rng(0).uniform(size=(2, 60, 4, 4, 1))
    message(DataError, lambda: learn(300 * frames, np.zeros((2, 60, 1)), 1.0), "pictures")
    message(DataError, lambda: learn(frames, np.full((2, 60, 1), 2.0), 1.0), "larger than")


def test_an_agent_reads_frames_in_that_unit():
    class Still(gym.Env):
        action_space = gym.spaces.Box(-np.array([2.0, 0.5], np.float32),
                                      np.array([2.0, 0.5], np.float32))

    class Known(NamedTuple):
        vae: None = None
        speed: float = 0.1
        largest: np.ndarray = np.array([2.0, 0.5], np.float32)
        program = staticmethod(lambda y=None, **_: None)
        taken = staticmethod(np.tanh)

    made = agent(Known(), Still(), 5)
    made.goal(np.full((4, 4, 1), 51, np.uint8))
    assert_allclose(made._goal.values, 0.2, rtol=1e-6)
    message(DataError, lambda: made.goal(np.full((4, 4, 1), 51.0)), "frames are pictures")
