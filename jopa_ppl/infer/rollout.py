"""Episodes of an agent in an environment: `rollout`."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from jopa_ppl.errors import JopaError, whole
from jopa_ppl.infer.agent import Agent
from jopa_ppl.infer.inputs import real


@dataclass(frozen=True, eq=False)
class Rollout:
    """Episodes as arrays, NaN (False) after an episode's end: axes (episodes, steps, ..).

    frames: what the agent saw; actions: what the environment took; rewards: its own, which no agent
    sees; states (.., n), covs (.., n, n): means and covariances of the beliefs about the state;
    plans (.., horizon + 1, n): actions ahead, as the program draws them; failed: whether a step's
    own plan failed, and an earlier one went on; converged: whether it had settled (of `copies` of
    one agent: all of them); lengths (episodes,): steps; ended (episodes,): whether the environment
    ended it early.
    """

    frames: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    states: np.ndarray
    covs: np.ndarray
    plans: np.ndarray
    failed: np.ndarray
    converged: np.ndarray
    lengths: np.ndarray
    ended: np.ndarray

    @property
    def returns(self) -> np.ndarray:
        """Summed rewards of every episode, (episodes,)."""
        return np.nansum(self.rewards, 1)


# One step of all copies: (copies, ..) by field of a Rollout, and which episodes had not ended.
_Row = dict[str, np.ndarray]


def rollout(env: Any, agent: Agent, *, episodes: int = 1, steps: int | None = None,
            seed: int | None = None, progress: bool = True) -> Rollout:
    """Let an agent act in a Gymnasium environment, or in the copies of a vector environment.

    Args:
        env: actions in a Box; observations (through the agent's `to_frame`) as its program has
            them. Of a `gymnasium.vector` environment `episodes` is a multiple of the number of
            copies, and every copy has an agent of its own, unless this one is for as many
            (`jp.Agent(copies=)`), which is faster. What copies of an agent come to believe of
            what is global is theirs, and gone after it.
        agent: where it has no `space`, actions are cut to the environment's here.
        steps: at most in an episode; None: until the environment ends it.
        seed: of the first `env.reset`; later episodes go on from there.

    Raises:
        JopaError: `episodes` does not fit the vector, nor the agent the environment; actions are
            no Box. As `Agent.act`.
    """
    whole("jp.rollout", episodes=episodes, steps=1 if steps is None else steps)
    copies = getattr(env, "num_envs", None)
    if copies and episodes % copies:
        raise JopaError("episodes of a vector environment run side by side",
                        found=f"{episodes} episodes", expected=f"a multiple of {copies}",
                        fix=f"episodes={copies}")
    if agent.copies not in (None, copies):
        raise JopaError("the agent is for copies side by side", found=copies or "one environment",
                        expected=f"{agent.copies} copies", fix="gymnasium.vector.SyncVectorEnv")
    mode = getattr(env, "metadata", {}).get("autoreset_mode")
    if copies and getattr(mode, "name", "") == "DISABLED":
        raise JopaError("copies whose episode has ended go on with another one", found=str(mode),
                        expected="AutoresetMode.NEXT_STEP, or SAME_STEP",
                        fix="make the vector environment with one of them")
    found: list[list[_Row]] = []
    groups, space = episodes // (copies or 1), agent.space
    theirs = env.action_space if agent.copies == copies else env.single_action_space
    _fits(space, theirs)
    most = steps or getattr(getattr(env, "spec", None), "max_episode_steps", None)
    with tqdm(total=most and groups * most, unit="step", disable=not progress,
              desc=f"{episodes} episode{'s'[:episodes > 1]}") as bar:
        try:
            agent.space = real(theirs) if space is None else space
            for i in range(groups):
                found.append(_side_by_side(env, agent, copies, steps, seed if i == 0 else None,
                                           bar))
        finally:
            agent.space = space
    return _stacked(found)


def _fits(space: Any, theirs: Any) -> None:
    """Refuse an agent that may act beyond what the environment takes."""
    if space is None or space.shape != theirs.shape or not hasattr(theirs, "low"):
        return                                  # `Agent.act`, or the environment, tells of it
    slack = lambda bound: 1e-6 * np.abs(bound)                  # of float32 beside float64
    if ((space.low < theirs.low - slack(theirs.low)).any()
            or (space.high > theirs.high + slack(theirs.high)).any()):
        raise JopaError("the agent acts in another space than the environment", found=space,
                        expected=theirs, fix="jp.Agent(space=env.action_space), or leave it out")


def _side_by_side(env: Any, agent: Agent, copies: int | None, most: int | None, seed: int | None,
                  bar: tqdm) -> list[_Row]:
    """One episode in every copy."""
    apart = copies is not None and agent.copies is None
    agents = [copy.copy(agent) for _ in range(copies)] if apart else [agent]
    for one in agents:
        one.reset()
    joined = np.stack if agent.copies is None else lambda parts: parts[0]
    observation, _ = env.reset(seed=seed)
    rows: list[_Row] = []
    done = np.zeros(copies or 1, bool)
    while not done.all() and (most is None or len(rows) < most):
        for i, one in enumerate(agents):
            if not (apart and done[i]):
                # A copy whose episode has ended begins another one, which is no part of this.
                one.act(observation[i] if apart else observation,
                        done if agent.copies is not None else None)
        steps = [one.steps[-1] for one in agents]
        taken = joined([s.action for s in steps])
        observation, *told, _ = env.step(taken if copies is not None else taken[0])
        reward, ended, cut = map(np.atleast_1d, told)
        ahead = joined([s.ahead if agent.copies is None else s.ahead.swapaxes(0, 1) for s in steps])
        failed = joined([s.late > 0 for s in steps])
        converged = np.broadcast_to([s.converged for s in steps], done.shape)
        frames = [one.frames[-1] for one in agents]
        rows.append({"frames": joined(frames), "actions": taken, "rewards": reward.astype(float),
                     "states": joined([s.state.mean for s in steps]),
                     "covs": joined([s.state.cov for s in steps]), "plans": ahead, "failed": failed,
                     "converged": converged, "alive": ~done, "ended": ended & ~done})
        done = done | ended | cut
        bar.update()
    return rows


def _stacked(found: list[list[_Row]]) -> Rollout:
    longest = max(map(len, found))

    def episodes(rows: list[_Row]) -> _Row:
        """(copies, longest, ..) of each, NaN or False where an episode had ended."""
        wide = {k: np.stack([np.asarray(row[k]) for row in rows], 1) for k in rows[0]}

        def cut(x: np.ndarray) -> np.ndarray:
            alive = wide["alive"]
            kept = alive.reshape((*alive.shape, *(1,) * (x.ndim - 2)))
            none = False if x.dtype == bool else np.nan
            out = np.full((len(x), longest, *x.shape[2:]), none)
            out[:, :x.shape[1]] = np.where(kept, x, none)
            return out

        return {k: cut(x) for k, x in wide.items()}

    parts = [episodes(rows) for rows in found]
    every = {k: np.concatenate([part[k] for part in parts]) for k in parts[0]}
    alive, ended = every.pop("alive"), every.pop("ended")
    return Rollout(**every, lengths=alive.sum(1), ended=ended.any(1))
