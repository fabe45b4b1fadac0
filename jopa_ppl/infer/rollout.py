"""Episodes of an agent in an environment: `rollout`."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from jopa_ppl.errors import JopaError, whole
from jopa_ppl.infer.agent import Agent, Step


@dataclass(frozen=True, eq=False)
class Rollout:
    """Episodes as arrays, NaN (False) after an episode's end: axes (episodes, steps, ..).

    frames: what the agent saw; actions: what the environment took; rewards: its own, which no agent
    sees; states (.., n): means of the beliefs about the state; lengths (episodes,): steps; ended
    (episodes,): whether the environment ended it early; steps: what the agent did, by episode.
    """

    frames: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    states: np.ndarray
    lengths: np.ndarray
    ended: np.ndarray
    steps: list[list[Step]]

    @property
    def returns(self) -> np.ndarray:
        """Summed rewards of every episode, (episodes,)."""
        return np.nansum(self.rewards, 1)


def rollout(env: Any, agent: Agent, *, episodes: int = 1, steps: int | None = None,
            seed: int | None = None, progress: bool = True) -> Rollout:
    """Let an agent act in a Gymnasium environment, or in the copies of a vector environment.

    Args:
        env: actions in a Box; observations (through the agent's `to_frame`) as its program has
            them. Of a `gymnasium.vector` environment every copy has an agent of its own, and
            `episodes` is a multiple of their number.
        steps: at most in an episode; None: until the environment ends it.
        seed: of the first `env.reset`; later episodes go on from there.

    Raises:
        JopaError: `episodes` does not fit the vector. As `Agent.act`.
    """
    whole("jp.rollout", episodes=episodes, steps=1 if steps is None else steps)
    copies = getattr(env, "num_envs", None)
    if copies and episodes % copies:
        raise JopaError("episodes of a vector environment run side by side",
                        found=f"{episodes} episodes", expected=f"a multiple of {copies}",
                        fix=f"episodes={copies}")
    found: list[list[tuple]] = []
    with tqdm(total=episodes, desc="episodes", disable=not progress) as bar:
        for i in range(episodes // (copies or 1)):
            found += _side_by_side(env, agent, copies, steps, seed if i == 0 else None)
            bar.update(copies or 1)
    return _stacked(found)


def _side_by_side(env: Any, agent: Agent, copies: int | None, most: int | None, seed: int | None
                  ) -> list[list[tuple]]:
    """One episode in every copy: [(step, frame, reward, ended), ..] each."""
    agents = [agent] if copies is None else [copy.copy(agent) for _ in range(copies)]
    for one in agents:
        one.reset()
    observation, _ = env.reset(seed=seed)
    seen = [observation] if copies is None else list(observation)
    found: list[list[tuple]] = [[] for _ in agents]
    done = np.zeros(len(agents), bool)
    while not done.all() and (most is None or max(map(len, found)) < most):
        actions = []
        for one, frame, over in zip(agents, seen, done):
            actions.append(one.steps[-1].action if over else one.act(frame))
        taken = actions[0] if copies is None else np.stack(actions)
        observation, reward, ended, cut, _ = env.step(taken)
        seen = [observation] if copies is None else list(observation)
        reward, ended, cut = map(np.atleast_1d, (reward, ended, cut))
        for one, mine, r, e, over in zip(agents, found, reward, ended, done):
            if not over:
                mine.append((one.steps[-1], one.frames[-1], float(r), bool(e)))
        done |= ended | cut
    return found


def _stacked(found: list[list[tuple]]) -> Rollout:
    longest = max(map(len, found))

    def padded(rows: list[list[Any]]) -> np.ndarray:
        out = np.full((len(rows), longest, *np.shape(rows[0][0])), np.nan)
        for i, row in enumerate(rows):
            out[i, :len(row)] = np.stack([np.asarray(x) for x in row])
        return out

    return Rollout(padded([[x[1] for x in e] for e in found]),
                   padded([[x[0].action for x in e] for e in found]),
                   padded([[x[2] for x in e] for e in found]),
                   padded([[x[0].state.mean for x in e] for e in found]),
                   np.array([len(e) for e in found]), np.array([e[-1][3] for e in found]),
                   [[x[0] for x in e] for e in found])
