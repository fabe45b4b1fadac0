"""Plans against independent solutions: a dense QP, Monte Carlo, the dense posterior."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import jopa_ppl as jp

A = np.array([[1.0, 0.1], [0.0, 0.95]])
B = np.array([[0.0], [0.3]])
GOAL_SD, ACTION_SD, PRIOR = 0.05, 2.0, 0.5
START, GOAL = np.array([0.3, -0.2]), np.array([1.0, 0.0])


def plant(y=None, *, T, A, B, noise, d=2, du=1):
    x0 = jp.latent("x0", dist.Normal(jnp.ones(d), PRIOR).to_event(1))

    def step(x, y):
        jp.observe("y", dist.Normal(x, GOAL_SD).to_event(1), y)
        u = jp.latent("u", dist.Normal(jnp.zeros(du), ACTION_SD).to_event(1))
        return jp.latent("x", dist.Normal(A @ x + B @ u, noise).to_event(1)), None

    jp.scan(step, x0, y, length=T)


def goals(T, everywhere):
    steps = range(1, T) if everywhere else [T - 1]
    return jp.sparse(T, {**{t: GOAL for t in steps}, 0: START})


def quadratic_program(T, steps):
    """The open-loop least-squares plan for the mean dynamics, densely."""
    weight = PRIOR**-2 + GOAL_SD**-2
    x0 = (np.ones(2) * PRIOR**-2 + START * GOAL_SD**-2) / weight
    H, g = np.eye(T) / ACTION_SD**2, np.zeros(T)
    for t in steps:
        M = np.zeros((2, T))
        for i in range(t):
            M[:, i] = (np.linalg.matrix_power(A, t - 1 - i) @ B)[:, 0]
        gap = GOAL - np.linalg.matrix_power(A, t) @ x0
        H += M.T @ M / GOAL_SD**2
        g += M.T @ gap / GOAL_SD**2
    return np.linalg.solve(H, g)


@pytest.mark.parametrize("T", [2, 3, 21, 201])     # horizons of 1 to 200 actions
def test_plan_is_the_lq_optimum_whatever_the_process_noise(T):
    with jax.enable_x64(True):
        for everywhere in (False, True):
            truth = quadratic_program(T, range(1, T) if everywhere else range(max(1, T - 1), T))
            for noise in (1e-4, 1.0, np.sqrt(10.0)):
                plan = jp.VMP(plant, decide="u").run(goals(T, everywhere), T=T, A=A, B=B,
                                                     noise=np.asarray(noise))
                got = np.asarray(plan.mean("u"))[:, 0]
                np.testing.assert_allclose(got, truth, atol=1e-6 * np.abs(truth).max() + 1e-12)


def line(y=None, *, T):
    x0 = jp.latent("x0", dist.Normal(jnp.zeros(1), 1.0).to_event(1))

    def step(x, y):
        jp.observe("y", dist.Normal(x, 0.1).to_event(1), y)
        u = jp.latent("u", dist.Normal(jnp.zeros(1), 1.0).to_event(1))
        return jp.latent("x", dist.Normal(0.9 * x + u, 0.3).to_event(1)), None

    jp.scan(step, x0, y, length=T)


@pytest.mark.parametrize(("seen", "x1", "variance"), [
    ({}, 1.0, 0.9**2 + 0.3**2), ({0: np.zeros(1)}, 1.0, 0.9**2 / 101 + 0.3**2),
    ({1: np.ones(1)}, 1.0, 1 / (1 / 0.01 + 1 / 0.9))])
def test_an_action_of_the_past_acts_whatever_is_seen_after_it(seen, x1, variance):
    """u_0 = 1 is given; then the cheapest u_1, u_2 that bring x_3 near 1."""
    given = jp.condition(line, {"u": np.array([[1.0], [np.nan], [np.nan], [np.nan]])})
    with jax.enable_x64(True):
        plan = jp.VMP(given, decide="u").run(jp.sparse(4, {**seen, 3: np.ones(1)}), T=4)
        x, u = plan.mean("x")[:, 0], plan.mean("u")[:, 0]
        np.testing.assert_allclose([x[0], plan.variance("x")[0, 0]], [x1, variance], rtol=1e-10)
        np.testing.assert_allclose(u[1:3], [0.0939560439560440, 0.104395604395604], rtol=1e-10)
        np.testing.assert_allclose(x[1:], 0.9 * x[:-1] + u[1:], atol=1e-12)
        assert plan.at("u", 0).mean[0] == 1 and plan.variance("u")[0, 0] == 0


@pytest.mark.parametrize("step", [0, 1])        # before the first decision, and after it
def test_a_given_action_has_its_density_in_the_free_energy_once(step):
    def walk(y, sd):
        def step(x, now):
            y, sd = now
            u = jp.latent("u", dist.Normal(0.0, sd))
            x = jp.latent("x", dist.Normal(x + u, 0.3))
            jp.observe("y", dist.Normal(x, 0.1), y)
            return x, None

        jp.scan(step, 0.0, (y, sd))

    u, rest = np.full(2, np.nan), []
    u[step] = 0.5
    with jax.enable_x64(True):
        for sd in (1.0, 10.0, 100.0):
            deviation = np.where(np.arange(2) == step, sd, 1.0)
            plan = jp.VMP(jp.condition(walk, {"u": u}), decide="u").run(
                np.array([np.nan, 1.0]), deviation)
            rest.append(plan.free_energy[-1] + dist.Normal(0.0, sd).log_prob(0.5))
    # x_2 = u + 0.5 + noise, to be seen as 1 with precision P: u closes P / (1 + P) of the gap that
    # it knows of, and log(1 + P) / 2 is what its own spread costs.
    P, noise = 100.0, 0.3**2
    gap = 0.5**2 + (noise if step == 0 else 0.0)
    unknown = noise if step == 0 else 2 * noise
    right = 0.5 * (gap * P / (1 + P) + unknown * P + np.log(1 + P) + np.log(2 * np.pi / P))
    np.testing.assert_allclose(rest, right, rtol=1e-10)


def test_a_plan_without_a_decision_left_is_refused():
    inner = jp.condition(line, {"u": np.zeros((3, 1))})
    rest = jp.condition(inner, {"u": np.full((3, 1), np.nan)})
    whole = jp.condition(rest, {"u": np.array([[np.nan], [np.nan], [np.nan]])})
    with pytest.raises(jp.DataError, match=r"(?s)'u'.*nothing is left to decide"):
        jp.VMP(whole, decide="u").run(jp.sparse(3, {-1: np.ones(1)}), T=3)


def test_another_chain_of_the_scan_keeps_its_posterior():
    def other(z):
        def step(r, z):
            r = jp.latent("r", dist.Normal(0.5 * r, 0.3))
            jp.observe("z", dist.Normal(r, 0.1), z)
            return r, None

        jp.scan(step, 0.0, z)

    def both(y, z):
        def step(carry, now):
            x, r = carry
            u = jp.latent("u", dist.Normal(0.0, 1.0))
            x = jp.latent("x", dist.Normal(0.9 * x + u, 0.3))
            r = jp.latent("r", dist.Normal(0.5 * r, 0.3))
            jp.observe("y", dist.Normal(x, 0.1), now[0])
            jp.observe("z", dist.Normal(r, 0.1), now[1])
            return (x, r), None

        jp.scan(step, (0.0, 0.0), (y, z))

    y, z = np.array([np.nan, np.nan, 1.0]), np.array([0.3, np.nan, 0.2])
    with jax.enable_x64(True):
        alone = jp.VMP(other).run(z)
        plan, without = (jp.VMP(both, decide="u").run(y, z) for z in (z, np.full(3, np.nan)))
        for moment in ("mean", "variance"):
            np.testing.assert_allclose(getattr(plan, moment)("r"), getattr(alone, moment)("r"),
                                       rtol=1e-10)
        np.testing.assert_allclose(plan.mean("u"), without.mean("u"), rtol=1e-10)
        np.testing.assert_allclose(plan.free_energy[-1] - without.free_energy[-1],
                                   alone.free_energy[-1], rtol=1e-10)
        drawn = plan.sample(0, 4000)
        for name in ("r", "x", "u"):
            np.testing.assert_allclose(drawn[name].std(0), np.sqrt(plan.variance(name)), rtol=0.1)


def test_evidence_about_a_start_that_trajectories_share_is_refused():
    """It would not be used: x0 is no part of the chain, whose plate it is not in."""
    def shared(y):
        x0 = jp.latent("x0", dist.Normal(0.0, 1.0))

        def step(x, y):
            with jp.plate("n", 2):
                jp.observe("y", dist.Normal(x, 0.1), y)
                u = jp.latent("u", dist.Normal(0.0, 1.0))
                return jp.latent("x", dist.Normal(0.9 * x + u, 0.3)), None

        jp.scan(step, x0 * jnp.ones(2), y)

    goal = np.array([[np.nan, np.nan], [1.0, 2.0]])
    with jax.enable_x64(True):
        plan = jp.VMP(shared, decide="u").run(goal)         # from the prior of x0 alone
        np.testing.assert_allclose(plan.mean("u")[0], goal[1] * 100 / 101, rtol=1e-10)
        with pytest.raises(jp.StructureError, match=r"(?s)'x0'.*plates.*jp.given"):
            jp.VMP(shared, decide="u").run(np.array([[0.3, 0.3], [1.0, 2.0]]))


def test_a_warm_plan_traces_nothing_more():
    count, first = 0, None

    def counted(y, **kwargs):
        nonlocal count
        count += 1
        plant(y, **kwargs)

    for target in (0.5, 0.7, 0.9):
        goal = jp.sparse(4, {0: START, -1: np.array([target, 0.0])})
        jp.VMP(counted, decide="u").run(goal, T=4, A=A, B=B, noise=np.asarray(0.1))
        first = first or count
    assert count == first


def uncertain(y=None, *, T):
    M = jp.latent("M", dist.Normal(jnp.concatenate([jnp.asarray(A), jnp.asarray(B)], 1),
                                   0.2).to_event(2))
    x0 = jp.latent("x0", dist.Normal(jnp.ones(2), PRIOR).to_event(1))

    def step(x, y):
        jp.observe("y", dist.Normal(x, 0.3).to_event(1), y)
        u = jp.latent("u", dist.Normal(jnp.zeros(1), ACTION_SD).to_event(1))
        return jp.latent("x", dist.Normal(M @ jnp.concatenate([x, u]), 0.1).to_event(1)), None

    jp.scan(step, x0, y, length=T)


def expected_cost(actions, x, draws, held, rng):
    """Monte Carlo of the cost of open-loop actions from states x, M drawn each step or held."""
    M = np.concatenate([A, B], 1) + 0.2 * rng.normal(size=(draws, 2, 3))
    total = np.zeros(draws)
    x = np.broadcast_to(x, (draws, 2)).copy()
    for t, u in enumerate(actions):
        if not held and t:
            M = np.concatenate([A, B], 1) + 0.2 * rng.normal(size=(draws, 2, 3))
        total += 0.5 * u**2 / ACTION_SD**2
        h = np.concatenate([x, np.full((draws, 1), u)], 1)
        x = np.einsum("nij,nj->ni", M, h) + 0.1 * rng.normal(size=(draws, 2))
        total += 0.5 * ((x - GOAL)**2).sum(1) / 0.3**2
    return total.mean(), total.std() / np.sqrt(draws)


def test_plan_under_uncertain_dynamics_minimises_the_expected_cost():
    """One decision, then a goal: the optimum is a parabola's, found by Monte Carlo on a grid."""
    with jax.enable_x64(True):
        goal = jp.sparse(2, {0: START, 1: GOAL})
        prior = jp.given(uncertain, {"M": dist.Normal(np.concatenate([A, B], 1), 0.2).to_event(2)})
        plan = jp.VMP(prior, decide="u").run(goal, T=2)
        u = float(plan.mean("u")[0, 0])
        weight = PRIOR**-2 + 0.3**-2
        mean = (np.ones(2) * PRIOR**-2 + START * 0.3**-2) / weight
        grid = np.linspace(u - 3, u + 3, 13)
        rng = np.random.default_rng(0)
        starts = mean + rng.normal(size=(200_000, 2)) / np.sqrt(weight)
        costs = [expected_cost([g], starts, 200_000, False, np.random.default_rng(1))[0]
                 for g in grid]
        a, b, _ = np.polyfit(grid, costs, 2)
        assert abs(-b / (2 * a) - u) < 0.02
        # Certainty equivalence would ignore Var(B) and act more.
        certain = B[:, 0] @ (GOAL - A @ mean) / 0.3**2 / (B[:, 0] @ B[:, 0] / 0.3**2 + 0.25)
        assert abs(certain - u) > 0.1


def test_without_decide_the_dense_posterior_of_states_and_actions():
    T, noise = 4, 0.3
    with jax.enable_x64(True):
        y = goals(T, False)
        found = jp.VMP(plant).run(y, T=T, A=A, B=B, noise=np.asarray(noise))
        n = 2 + 3 * (T - 1)                     # x0, then (u_t, x_{t+1}) up to the last frame
        J, h = np.zeros((n, n)), np.zeros(n)
        J[:2, :2] += np.eye(2) / PRIOR**2
        h[:2] += 1 / PRIOR**2
        place = [slice(0, 2)] + [slice(3 + 3 * t, 5 + 3 * t) for t in range(T - 1)]
        for t, seen in ((0, START), (T - 1, GOAL)):
            J[place[t], place[t]] += np.eye(2) / GOAL_SD**2
            h[place[t]] += seen / GOAL_SD**2
        for t in range(T - 1):
            R = np.zeros((2, n))
            R[:, place[t + 1]], R[:, place[t]] = np.eye(2), -A
            R[:, 2 + 3 * t] = -B[:, 0]
            J += R.T @ R / noise**2
            J[2 + 3 * t, 2 + 3 * t] += ACTION_SD**-2
        mean, cov = np.linalg.solve(J, h), np.linalg.inv(J)
        for t in range(T - 1):
            np.testing.assert_allclose(found.mean("u")[t, 0], mean[2 + 3 * t], rtol=1e-8)
            np.testing.assert_allclose(found.variance("u")[t, 0], cov[2 + 3 * t, 2 + 3 * t],
                                       rtol=1e-8)
            np.testing.assert_allclose(found.mean("x")[t], mean[place[t + 1]], rtol=1e-8,
                                       atol=1e-12)
