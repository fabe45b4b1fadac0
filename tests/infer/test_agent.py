"""Agents: filtering against one run over all frames, the first action against a plan, episodes."""

from __future__ import annotations

import warnings
from contextlib import nullcontext

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from faults import message
from numpy.testing import assert_allclose

import jopa_ppl as jp
from jopa_ppl.errors import (
    DataError,
    DataWarning,
    JopaError,
    NumericalError,
    ShapeError,
    StructureError,
)
from jopa_ppl.infer.unseen import Seen

D, DU = 3, 2
GOAL = np.full(D, 0.5)
LOST = np.full((1, D), np.nan)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


class Turning(gym.Env):
    """A state that turns, moved by actions; `change`: the step from which they move it half as far
    the other way."""

    def __init__(self, change: int | None = None, steps: int = 12) -> None:
        rng = np.random.default_rng(3)
        self.A = 0.97 * np.linalg.qr(rng.normal(size=(D, D)))[0]
        self.B = 0.5 * rng.normal(size=(D, DU))
        self.change, self.steps = change, steps
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (D,), np.float64)
        self.action_space = gym.spaces.Box(-2.0, 2.0, (DU,), np.float64)

    def seen(self) -> np.ndarray:
        return self.x + 0.01 * self.np_random.normal(size=D)

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.x, self.t = self.np_random.normal(size=D), 0
        return self.seen(), {}

    def step(self, u):
        gain = -0.5 if self.change is not None and self.t >= self.change else 1.0
        self.x = self.A @ self.x + gain * self.B @ u + 0.02 * self.np_random.normal(size=D)
        self.t += 1
        return self.seen(), -float(((self.x - GOAL)**2).sum()), False, self.t >= self.steps, {}


def lds(y=None, *, T, N=None, seen=0.01):
    plate = (lambda: jp.plate("n", N)) if N else nullcontext
    A = jp.latent("A", dist.Normal(jnp.eye(D), 0.7).to_event(2))
    B = jp.latent("B", dist.Normal(jnp.zeros((D, DU)), 1.0).to_event(2))
    W = jp.latent("W", dist.Wishart(D + 2.0, rate_matrix=0.01 * jnp.eye(D)))
    with plate():
        x0 = jp.latent("x0", dist.Normal(jnp.zeros(D), 1.0).to_event(1))

    def step(x, y):
        with plate():
            jp.observe("y", dist.Normal(x, seen).to_event(1), y)
            u = jp.latent("u", dist.Normal(jnp.zeros(DU), 1.0).to_event(1))
            mean = x @ A.T + u @ B.T
            x = jp.latent("x", dist.MultivariateNormal(mean, precision_matrix=W))
        return x, None

    jp.scan(step, x0, y, length=T)


def lds_from_data(y):
    """Its first state is data, and no belief."""
    def step(x, y):
        x = jp.latent("x", dist.Normal(0.9 * x, 0.1).to_event(1))
        jp.observe("y", dist.Normal(x, 0.2).to_event(1), y)
        return x, None

    jp.scan(step, jnp.zeros(D), y)


@pytest.fixture(scope="module")
def learned():
    with jax.enable_x64(True):
        env, rng, frames, actions = Turning(steps=30), np.random.default_rng(0), [], []
        for seed in range(4):
            y, over = env.reset(seed=seed)[0], False
            while not over:
                frames.append(y)
                actions.append(rng.normal(size=DU))
                y, _, _, over, _ = env.step(actions[-1])
        y, u = (np.array(x).reshape(4, 30, -1).swapaxes(0, 1) for x in (frames, actions))
        return jp.VMP(jp.condition(lds, {"u": u}), progress=False).run(y, T=30, N=4)


def agent_of(learned, **options):
    found = jp.Agent(lds, learned, horizon=8, space=Turning().action_space,
                     planning={"seen": 0.1}, **options)
    found.goal(GOAL)
    return found


def test_episodes_filter_as_one_run_and_act_as_a_plan(learned):
    env, agent = Turning(), agent_of(learned)
    found = jp.rollout(env, agent, episodes=2, seed=0, progress=False)
    assert found.frames.shape == found.states.shape == (2, 12, D)
    assert found.actions.shape == (2, 12, DU) and found.rewards.shape == (2, 12)
    assert_allclose(found.returns, found.rewards.sum(1))
    assert found.covs.shape == (2, 12, D, D) and found.converged.all()
    assert_allclose(found.covs[1], np.stack([s.state.cov for s in agent.steps]))
    assert (found.lengths == 12).all() and not found.ended.any()
    assert (found.rewards[:, -4:].mean(1) > 0.7 * found.rewards[:, 0]).all()
    # The state before the last frame is that of one run; beliefs about A are cut at each window.
    held = jp.given(lds, learned, ["A", "B", "W"])
    u = np.concatenate([found.actions[0, :-1], np.full((1, DU), np.nan)])
    whole = jp.VMP(jp.condition(held, {"u": u}), progress=False).run(found.frames[0], T=12)
    assert_allclose(found.states[0, -1], whole.state_at(-1).mean, atol=2e-3)
    # The first action is the mean of a plan from the belief about the first state.
    assert found.plans.shape == (2, 12, 9, DU) and not found.failed.any()
    assert_allclose(found.plans[1], np.stack([s.ahead for s in agent.steps]))
    first = agent.steps[0]
    model = jp.given(held, first.state, update=True)
    window = np.concatenate([LOST, np.tile(GOAL, (8, 1))])
    plan = jp.VMP(model, decide="u", progress=False).run(window, T=9, seen=0.1)
    assert_allclose(first.drawn, np.clip(plan.mean("u")[0], -2, 2), rtol=1e-9)
    assert first.failed is None and first.late == 0


def test_a_lost_frame_leaves_the_state_to_what_moves_it(learned):
    env, agent = Turning(), agent_of(learned)
    y, _ = env.reset(seed=1)
    for t in range(4):
        y, *_ = env.step(agent.act(None if t == 2 else y))
    before, lost = agent.steps[1], agent.steps[2]
    A, B = learned.mean("A"), learned.mean("B")
    assert_allclose(lost.state.mean, A @ before.state.mean + B @ before.drawn, atol=1e-6)
    assert (np.diagonal(lost.state.cov) > 1.5 * np.diagonal(before.state.cov)).all()


@pytest.mark.slow
def test_copies_of_a_vector_environment_have_agents_of_their_own(learned):
    envs = gym.vector.SyncVectorEnv([lambda: Turning(steps=5)] * 2)
    found = jp.rollout(envs, agent_of(learned), episodes=2, seed=0, progress=False)
    one = jp.rollout(Turning(steps=5), agent_of(learned), episodes=1, seed=0, progress=False)
    assert_allclose(found.rewards[0], one.rewards[0], rtol=1e-6)
    assert found.frames.shape == (2, 5, D) and (found.lengths == 5).all()
    message(JopaError, lambda: jp.rollout(envs, agent_of(learned), episodes=3), "multiple of 2")


def test_one_agent_acts_in_all_copies_as_agents_of_their_own_do(learned):
    envs = gym.vector.SyncVectorEnv([lambda: Turning(steps=5)] * 2)
    options = {"horizon": 8, "space": envs.action_space, "planning": {"seen": 0.1}}
    agent = jp.Agent(lds, learned, copies=2, arguments={"N": 2}, **options)
    apart = jp.Agent(lds, learned, **{**options, "space": envs.single_action_space})
    found = []
    for one in (agent, apart):
        one.goal(GOAL)
        found.append(jp.rollout(envs, one, episodes=4, seed=0, progress=False))
    for name in ("frames", "actions", "rewards", "states", "plans"):
        assert_allclose(getattr(found[0], name), getattr(found[1], name), atol=1e-6)
    assert found[0].plans.shape == (4, 5, 9, DU) and (found[0].lengths == 5).all()
    message(JopaError, lambda: jp.rollout(Turning(), agent), "copies side by side", "2 copies")
    # What a copy sees after its end is another episode.
    ends = gym.vector.SyncVectorEnv([lambda: Turning(steps=2), lambda: Turning(steps=5)])
    short = jp.rollout(ends, agent, episodes=2, seed=0, progress=False)
    assert list(short.lengths) == [2, 5] and np.isnan(short.rewards[0, 2:]).all()
    frames = np.array(agent.frames)
    assert np.isnan(frames[2:, 0]).all() and np.isfinite(frames[:, 1]).all()
    assert_allclose(short.rewards[1], found[1].rewards[1], atol=1e-6)
    agent.reset()
    message(ShapeError, lambda: agent.goal(np.zeros((3, D))), "the goal does not fit", "each=True")
    agent.goal(GOAL)
    message(ShapeError, lambda: agent.act(np.zeros((3, D))), "other copies", "copies=3")


@pytest.mark.slow
def test_a_plant_that_changes_is_followed_by_an_agent_that_forgets(learned):
    ends = {}
    for name, options in (("fixed", {}), ("adapts", {"adapt": 4, "forget": 0.7})):
        agent, found = agent_of(learned, **options), []
        for seed in range(4):
            agent.reset(beliefs=True)
            found.append(jp.rollout(Turning(change=15, steps=60), agent, seed=seed, progress=False
                                    ).rewards[0, -10:].mean())
        ends[name] = np.array(found)
    assert np.median(ends["adapts"]) > 0.2 * np.median(ends["fixed"])


@pytest.mark.slow
def test_learning_from_an_episode_moves_what_is_global(learned):
    agent = agent_of(learned)
    message(DataError, agent.learn, "nothing to learn from")
    found = jp.rollout(Turning(), agent, seed=5, progress=False)
    after = agent.learn()
    assert agent.learned is after
    assert (after.variance("A") < learned.variance("A")).all()
    assert_allclose(agent.learn().mean("A"), after.mean("A"), rtol=1e-12)       # frames count once
    # A second episode's prior is what the first one left; and all of it can be put back.
    agent.reset()
    for y in found.frames[0, :5]:
        agent.act(y)
    assert (agent.learn().variance("A") < after.variance("A")).all()
    agent.reset(beliefs=True)
    assert agent.learned is learned


@pytest.mark.slow
def test_what_adapts_goes_on_from_what_was_learned(learned):
    """Steps that `learn` has counted are not counted again by the next window."""
    windows = []
    agent = agent_of(learned, adapt=4)
    env, run = Turning(), agent._run
    agent._run = lambda model, window: windows.append(len(window)) or run(model, window)
    y, _ = env.reset(seed=5)
    for t in range(10):
        y, *_ = env.step(agent.act(y))
        if t == 5:
            before = agent.learn()
    # Steps 4 and, from step 5 on, 9: not 8, which would be of frames that were learned from.
    assert [t for t, n in enumerate(windows) if n == 5] == [4, 9]
    assert agent.learned is not before


def test_a_goal_is_for_all_copies_or_for_each(learned):
    """Of as many elements as there are copies, or steps, it is still what it is said to be."""
    plant = jp.condition(lds, {n: learned.mean(n) for n in "ABW"})
    made = lambda copies: jp.Agent(plant, {}, horizon=3, planning={"seen": 0.1}, **(
        {"copies": copies, "arguments": {"N": copies}} if copies else {}))
    one, three = made(None), made(3)
    y, course, goals = np.random.default_rng(0).normal(size=(3, 3, D))

    def alone(n, goal):
        one.reset()
        one.goal(goal)
        return one.act(y[n])

    three.goal(GOAL)                                            # as many elements as copies
    assert_allclose(three.act(y), [alone(n, GOAL) for n in range(3)], atol=1e-9)
    three.reset()
    three.goal(course)                                          # as many steps
    assert_allclose(three.act(y), [alone(n, course) for n in range(3)], atol=1e-9)
    three.reset()
    three.goal(goals, each=True)
    assert_allclose(three.act(y), [alone(n, goals[n]) for n in range(3)], atol=1e-9)
    message(ShapeError, lambda: three.goal(goals[:2], each=True), "one goal for each copy", "2")
    message(ShapeError, lambda: one.goal(goals, each=True), "one goal for each copy", "no copies")
    one.reset()
    short = np.zeros(1)                                         # nothing is stretched to fit
    message(ShapeError, lambda: one.goal(short), "the goal does not fit", "(3,), or 3 of them")
    fresh = made(None)
    fresh.goal(short)                                           # what fits is not known yet
    message(ShapeError, lambda: fresh.act(y[0]), "the goal does not fit", "(3,), or 3 of them")


class Ending(Turning):
    """It is over, for good, at the third step."""

    def step(self, u):
        seen, reward, _, cut, info = super().step(u)
        return seen, reward, self.t == 3, cut, info


def test_an_episode_may_end_early_by_itself(learned):
    agent = agent_of(learned)
    found = jp.rollout(Ending(), agent, episodes=2, seed=0, progress=False)
    assert found.ended.all() and list(found.lengths) == [3, 3]
    both = gym.vector.SyncVectorEnv([Ending, lambda: Turning(steps=5)])
    found = jp.rollout(both, agent, episodes=2, seed=0, progress=False)      # agents of their own
    assert list(found.ended) == [True, False] and list(found.lengths) == [3, 5]
    assert np.isnan(found.frames[0, 3:]).all() and np.isfinite(found.frames[1]).all()


def test_actions_are_cut_to_the_box_of_the_environment(learned):
    agent = jp.Agent(lds, learned, horizon=8, planning={"seen": 0.1})
    agent.goal(20 * GOAL)
    found = jp.rollout(Turning(), agent, steps=2, seed=0, progress=False)
    assert np.abs(found.actions).max() == 2.0 and agent.space is None
    assert_allclose(agent.steps[0].drawn, found.actions[0, 0])       # the program is told

    class Choosing(Turning):
        def __init__(self):
            super().__init__()
            self.action_space = gym.spaces.Discrete(2)

    message(JopaError, lambda: jp.rollout(Choosing(), agent), "actions are real numbers", "Box")
    narrow = jp.Agent(lds, learned, horizon=8, space=gym.spaces.Box(-1, 1, (1,)))
    narrow.goal(GOAL)
    message(ShapeError, lambda: narrow.act(np.zeros(D)), "actions do not fit", "(2,)", "(1,)",
            site="u")


def test_bad_input_is_refused_by_name(learned):
    message(JopaError, lambda: jp.Agent(lds, learned, horizon=5, space=gym.spaces.Discrete(2)),
            "actions are real numbers", "Box")
    message(JopaError, lambda: jp.Agent(lds, learned, horizon=5, forget=0.9), "adapt=")
    message(JopaError, lambda: jp.Agent(lds, learned, horizon=0), "horizon")
    agent = jp.Agent(lds, learned, horizon=5)
    message(DataError, lambda: agent.act(np.zeros(D)), "there is no goal")
    message(DataError, lambda: agent.goal(np.full(D, np.nan)), "a goal that says nothing")
    agent.goal(GOAL)
    message(DataError, lambda: agent.act(None), "the first frame is lost")
    agent.act(np.zeros(D))
    message(ShapeError, lambda: agent.act(np.zeros(D + 1)), "observations have changed their shape")


def test_a_goal_unlike_anything_seen_is_warned_of(learned):
    rng = np.random.default_rng(0)
    seen = rng.normal(size=(300, D))
    seen[7, 0] = np.nan
    agent = jp.Agent(lds, learned, horizon=5, seen=seen)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        agent.goal(GOAL)
        agent.goal(np.array([np.nan, 0.5, np.nan]))             # a part of it, asked of alone
        jp.Agent(lds, learned, horizon=5).goal(30 * GOAL)       # nothing to compare with
    with pytest.warns(DataWarning, match="unlike anything that has been seen: 1"):
        agent.goal(30 * GOAL)
    with pytest.warns(DataWarning, match="unlike anything"):    # one step of a course is
        agent.goal(np.stack([GOAL, GOAL, GOAL, GOAL, -9 * GOAL]))
    assert message(ShapeError, lambda: agent.goal(np.zeros(D + 1)))
    assert message(DataError, lambda: jp.Agent(lds, learned, horizon=5, seen=seen[7:8]))
    assert_allclose(Seen.of(seen + 1e7).apart, Seen.of(seen).apart, rtol=1e-6)
    frames = np.zeros((40, 8, 8, 1))                            # a line that moves
    frames[np.arange(40), :, np.arange(40) % 8] = 1.0
    pixels = jp.Agent(lds, learned, horizon=5, seen=np.clip(
        frames + 0.01 * rng.normal(size=frames.shape), 0, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pixels.goal(frames[3])
    with pytest.warns(DataWarning, match="unlike anything"):
        pixels.goal(frames[3].transpose(1, 0, 2))


def test_a_plan_that_fails_leaves_the_last_one_in_force(learned, monkeypatch):
    agent = agent_of(learned)
    agent.act(np.zeros(D))
    good = agent.plan
    run = jp.VMP.run

    def failing(self, *args, **kwargs):
        if self.options.decide:
            raise NumericalError("it diverged", found="NaN", expected="numbers", fix="none")
        return run(self, *args, **kwargs)

    monkeypatch.setattr(jp.VMP, "run", failing)
    agent.act(np.zeros(D))
    agent.act(np.zeros(D))
    assert [s.late for s in agent.steps] == [0, 1, 2] and "it diverged" in agent.steps[2].failed
    assert agent.plan is good and not agent.steps[2].converged
    assert_allclose(agent.steps[2].drawn, np.clip(good.mean("u")[2], -2, 2))


def test_plans_that_rounding_has_eaten_are_nobodys(learned, monkeypatch):
    """Their costs are finite, and no copy stands out."""
    agent = jp.Agent(lds, learned, horizon=8, copies=2, arguments={"N": 2},
                     planning={"seen": 0.1})
    agent.goal(GOAL)
    agent.act(np.zeros((2, D)))
    run = jp.VMP.run

    def eaten(self, *args, **kwargs):
        found = run(self, *args, **kwargs)
        if self.options.decide:
            raise NumericalError("rounding has eaten the result", posterior=found, found="digits",
                                 expected="digits", fix="none")
        return found

    monkeypatch.setattr(jp.VMP, "run", eaten)
    agent.act(np.zeros((2, D)))
    assert "rounding" in agent.steps[1].failed and list(agent.steps[1].late) == [1, 1]
    assert_allclose(agent.steps[1].drawn, agent.steps[0].ahead[1])


def test_plans_that_explode_are_those_of_their_copies_alone():
    """x' = x + x^3 / 2 + 0.3 u overflows within a few steps from 9, whatever is done."""
    def cubic(y=None, *, T, N, seen=0.05):
        with jp.plate("n", N):
            x0 = jp.latent("x0", dist.Normal(jnp.zeros(1), 1.0).to_event(1))

        def step(x, y):
            with jp.plate("n", N):
                jp.observe("y", dist.Normal(x, seen).to_event(1), y)
                u = jp.latent("u", dist.Normal(jnp.zeros(1), 1.0).to_event(1))
                mean = x + 0.5 * x**3 + 0.3 * u
                return jp.latent("x", dist.Normal(mean, 0.05).to_event(1)), None

        jp.scan(step, x0, y, length=T)

    def acting(first):
        agent = jp.Agent(cubic, {}, horizon=15, messages={"x": "linearise"}, copies=2,
                         arguments={"N": 2})
        agent.goal(np.zeros(1))
        taken = [agent.act(np.array([[at], [0.1]])) for at in first]
        return agent, np.array(taken)

    calm, wild = acting([0.3, 0.2, 0.2]), acting([0.3, 9.0, 40.0])
    assert [list(s.late) for s in wild[0].steps] == [[0, 0], [1, 0], [2, 0]]
    assert "stopped being finite" in wild[0].steps[1].failed
    assert_allclose(wild[1][1:, 0], wild[0].steps[0].ahead[1:3, 0])      # the last good plan
    assert_allclose(wild[1][:, 1], calm[1][:, 1], atol=1e-3)             # goes its own way
    message(NumericalError, lambda: acting([9.0]), "stopped being finite")


@pytest.mark.slow
def test_a_state_is_the_belief_that_a_later_program_begins_with():
    def oscillator(y=None, *, T):
        last = jp.latent("x0", dist.Normal(jnp.zeros(D), 1.0).to_event(1))
        x = jp.latent("x1", dist.Normal(last, 0.3).to_event(1))

        def step(carry, y):
            last, x = carry
            jp.observe("y", dist.Normal(x, 0.2).to_event(1), y)
            mean = jnp.tanh(1.9 * x - 0.95 * last)
            return (x, jp.latent("x", dist.Normal(mean, 0.05).to_event(1))), None

        jp.scan(step, (last, x), y, length=T)

    y = 0.3 * np.random.default_rng(0).normal(size=(5, D))
    vmp = lambda m: jp.VMP(m, messages={"x": "linearise"}, tol=1e-10, progress=False)
    state = vmp(oscillator).run(np.concatenate([y[:1], LOST]), T=2).state_at(0)
    for frame in y[1:]:
        found = vmp(jp.given(oscillator, state, update=True)).run(np.stack([LOST[0], frame]), T=2)
        state = found.state_at(-1)
    whole = vmp(oscillator).run(y, T=5)
    at_last = whole.state_at(-1)
    assert state.members == at_last.members == ("x0", "x1")
    assert_allclose(at_last.mean, np.concatenate(whole.mean("x")[2:4]), rtol=1e-9)
    assert_allclose(state.mean, at_last.mean, atol=0.05)          # linearised at what was known
    message(ShapeError, lambda: whole.state_at(5), "there is no such step")

    def line(y):
        a = jp.latent("a", dist.Normal(0.0, 1.0))
        jp.observe("y", dist.Normal(a, 1.0), y)

    message(ShapeError, lambda: jp.VMP(line, progress=False).run(0.3).state_at(0), "no such step")
    walk = jp.VMP(lds_from_data, progress=False).run(np.zeros((3, D)))
    message(StructureError, lambda: walk.state_at(0), "pass NaN")
