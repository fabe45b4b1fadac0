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
