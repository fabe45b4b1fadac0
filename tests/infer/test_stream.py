"""A stream: filtered and adapted one step at a time, with steps of which nothing is seen."""

from __future__ import annotations

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from faults import message
from numpy.testing import assert_allclose

import jopa_ppl as jp
from jopa_ppl.engine.compiled import COMPILED

A, B = np.array([[0.95, 0.2], [-0.2, 0.9]]), np.array([[0.5], [-1.0]])
W, START, SEEN = 25.0 * np.eye(2), np.array([1.0, -0.5]), 0.05


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def lds(y=None, *, T, d=2, du=1, forget=1.0):
    """The README's program, which may forget."""
    with numpyro.handlers.scale(scale=forget):
        A = jp.latent("A", dist.Normal(jnp.eye(d), 0.7).to_event(2))
        B = jp.latent("B", dist.Normal(jnp.zeros((d, du)), 3.0).to_event(2))
        W = jp.latent("W", dist.Wishart(d + 2.0, rate_matrix=0.01 * jnp.eye(d)))
    follows(y, A, B, W, T)


def known(y=None, *, T):
    """The same with known dynamics."""
    follows(y, A, B, W, T)


def follows(y, A, B, W, T):
    x0 = jp.latent("x0", dist.MultivariateNormal(START, jnp.eye(2)))

    def step(x, y):
        jp.observe("y", dist.Normal(x, SEEN).to_event(1), y)                         # sense
        u = jp.latent("u", dist.Normal(jnp.zeros(1), 2.0).to_event(1))               # act
        x = jp.latent("x", dist.MultivariateNormal(A @ x + B @ u, precision_matrix=W))
        return x, None

    jp.scan(step, x0, y, length=T)


def simulate(T, missing=0.1):
    rng = np.random.default_rng(T)
    x, states, u = START, [], rng.normal(size=(T, 1))
    for t in range(T):
        states.append(x)
        x = A @ x + B @ u[t] + 0.2 * rng.normal(size=2)
    y = np.array(states) + SEEN * rng.normal(size=(T, 2))
    y[rng.random(T) < missing] = np.nan
    return np.array(states), y, u


def run(model, y, **kwargs):
    return jp.VMP(model, progress=False).run(y, T=len(y), **kwargs)


def follow(model, last, u, y, update=True):
    """After one more frame: a window from the last state that was seen, its frame counted."""
    model = jp.given(jp.condition(model, {"u": u[None]}), {"x0": last.at("x", -2)}, update=True)
    if update:
        model = jp.given(model, last, update=True)
    return run(model, np.stack([np.full(2, np.nan), y]))


def compiled():
    return len(COMPILED.entries)


# -- a run without data --------------------------------------------------------------------------


@pytest.mark.parametrize("T", [1, 3])
def test_a_run_of_missing_frames_carries_the_prior_forward(T):
    """The issue: one missing frame at T = 1 ended in a circle of two errors."""
    model = jp.condition(known, {"u": np.ones((T, 1))})
    found = run(model, np.full((T, 2), np.nan))
    mean, cov = START, np.eye(2)
    assert_allclose(found.mean("x0"), mean)
    for t in range(T):
        mean, cov = A @ mean + B[:, 0], A @ cov @ A.T + np.linalg.inv(W)
        assert_allclose(found.mean("x")[t], mean, rtol=1e-12)
        assert_allclose(found.at("x", t).covariance_matrix, cov, rtol=1e-10)
    actions = T * (0.5 * np.log(2 * np.pi) + np.log(2.0) + 0.125)      # they are data, of N(0, 2^2)
    assert_allclose(found.free_energy[-1], actions, rtol=1e-12)


def test_without_data_all_beliefs_are_the_priors():
    found = run(lds, np.full((2, 2), np.nan))
    assert found.converged
    assert_allclose(found.free_energy[-1], 0, atol=1e-10)
    assert_allclose(found.mean("A"), np.eye(2), atol=1e-12)
    assert_allclose(found.variance("A"), np.full((2, 2), 0.7**2), rtol=1e-12)
    assert_allclose(found.variance("B"), np.full((2, 1), 9.0), rtol=1e-12)
    assert_allclose(found.mean("W"), 400.0 * np.eye(2), rtol=1e-12, atol=1e-9)
    assert_allclose(found.mean("u"), 0, atol=1e-12)
    # x_1 = A x_0 + B u + noise: E[A x0 x0' A'] + E[B u u' B'] + E[W^-1] - mean mean'.
    second = np.eye(2) + np.outer(START, START)
    spread = np.eye(2) + 0.49 * np.trace(second) + 9.0 * 4.0 + 0.01 / (4.0 - 2 - 1)
    assert_allclose(found.variance("x")[0], np.diag(spread), rtol=1e-10)
    draws = found.sample(0, (2000,))
    assert_allclose(draws["x"][:, 0].std(0), np.sqrt(np.diag(spread)), rtol=0.15)
    later = run(jp.given(lds, found, update=True), np.full((2, 2), np.nan))
    assert_allclose(later.variance("A"), found.variance("A"), rtol=1e-10)
    assert_allclose(later.free_energy[-1], 0, atol=1e-10)


def test_a_plan_without_a_goal_and_rows_that_are_all_left_out_stay_errors():
    message(jp.DataError, lambda: jp.VMP(known, decide="u").run(np.full((3, 2), np.nan), T=3),
            "nothing is observed after the first decision")
    message(jp.SiteError, lambda: jp.VMP(lds).run(None, T=2), "nothing is observed", "all NaN")


# -- one step at a time ----------------------------------------------------------------------------


@pytest.mark.parametrize("T", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_filtering_step_by_step_is_smoothing_at_the_last_state(T):
    """Known A, B and W: the filtered belief is the smoother's, and the evidence its sum."""
    _, y, u = simulate(T)
    last = run(jp.condition(known, {"u": u[:1]}), y[:2])
    total, before = float(last.free_energy[-1]), None
    for t in range(2, T):
        last = follow(known, last, u[t - 1], y[t], update=False)
        total += float(last.free_energy[-1])
        before = before or compiled()
    assert compiled() == before and last.compiled.traces == 1
    whole = run(jp.condition(known, {"u": u[:-1]}), y)
    assert_allclose(last.mean("x")[-2], whole.mean("x")[-2], rtol=1e-9)
    assert_allclose(last.at("x", -2).covariance_matrix, whole.at("x", -2).covariance_matrix,
                    rtol=1e-9)
    assert_allclose(total, whole.free_energy[-1], rtol=1e-9)


@pytest.mark.parametrize("T", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_adapting_step_by_step_to_known_states_is_one_regression(T):
    """Unknown A and B, states and noise known: each step is one more row of a regression."""
    states, y, u = simulate(T, missing=0)
    row = lambda t: jp.condition(lds, {"W": W, "x0": states[t], "x": states[t + 1:t + 2],
                                       "u": u[t:t + 1]})
    last, before = run(row(0), y[:1]), None
    with warnings.catch_warnings():
        warnings.simplefilter("error", jp.DataWarning)
        for t in range(1, T - 1):
            last = run(jp.given(row(t), last, update=True), y[t:t + 1])
            before = before or compiled()
    assert compiled() == before and last.compiled.traces == 1
    whole = run(jp.condition(lds, {"W": W, "x0": states[0], "x": states[1:], "u": u[:-1]}),
                y[:-1])
    for site in ("A", "B"):
        assert_allclose(last.mean(site), whole.mean(site), rtol=1e-9)
        assert_allclose(last.variance(site), whole.variance(site), rtol=1e-9)
    assert np.abs(last.mean("A") - A).max() < 0.1


@pytest.mark.parametrize("T", [60, pytest.param(1000, marks=pytest.mark.slow)])
def test_everything_unknown_is_filtered_and_adapted(T):
    """Where mean field cuts at every step: near one run over all, compiled once."""
    _, y, u = simulate(T)
    last, before = run(jp.condition(lds, {"u": u[:1]}), y[:2]), None
    for t in range(2, T):
        last = follow(lds, last, u[t - 1], y[t])
        before = before or compiled()
    assert compiled() == before and last.compiled.traces == 1
    whole = run(jp.condition(lds, {"u": u[:-1]}), y)
    for site, wanted in (("A", A), ("B", B)):
        assert_allclose(last.mean(site), whole.mean(site), atol=0.15)
        assert_allclose(last.mean(site), wanted, atol=0.2)
    gap = np.abs(last.mean("x")[-2] - whole.mean("x")[-2]) / np.sqrt(whole.variance("x")[-2])
    assert gap.max() < 0.25                                   # of a standard deviation


def test_beliefs_that_no_observation_reaches_are_told_of():
    """Sense, act, move: in a window of one frame no state after the one that is seen is seen."""
    _, y, u = simulate(4, missing=0)
    last = run(jp.condition(lds, {"u": u[:1]}), y[:2])
    one = jp.given(jp.given(jp.condition(lds, {"u": u[2:3]}), last, update=True),
                   {"x0": last.at("x", -1)}, update=True)
    with pytest.warns(jp.DataWarning, match="'A', 'B' and 'W'") as caught:
        found = run(one, y[2:3])
    assert "last.at('x', -2)" in str(caught[0].message)
    assert_allclose(found.mean("A"), last.mean("A"), rtol=1e-10)
    with warnings.catch_warnings():
        warnings.simplefilter("error", jp.DataWarning)
        run(jp.given(one, last), y[2:3])                      # beliefs that are used, not moved
        run(one, np.full((1, 2), np.nan))                     # nothing is seen, nothing is lost
        follow(lds, last, u[1], y[2])


def test_a_scale_below_one_forgets():
    """A power on the prior: after many steps without news only the last few are remembered."""
    _, y, u = simulate(2, missing=0)
    last = run(jp.condition(lds, {"u": u[:1]}), y)
    given = jp.given(lds, last, update=True)
    found = run(given, np.full((2, 2), np.nan), forget=jnp.asarray(0.8))
    for site in ("A", "B"):
        assert_allclose(found.mean(site), last.mean(site), rtol=1e-9)
        assert_allclose(found.variance(site), last.variance(site) / 0.8, rtol=1e-9)


def test_beliefs_given_again_and_again_compile_once():
    """Later beliefs take the place of earlier ones about the same sites, or of fewer."""
    def program(y):
        m = jp.latent("m", dist.Normal(0.0, 1.0))
        b = jp.latent("b", dist.Normal(0.0, 1.0))
        jp.observe("y", dist.Normal(m, 1.0), y)
        jp.observe("z", dist.Normal(b, 1.0), y)

    model, compiled = program, set()
    for _ in range(5):
        found = jp.VMP(model, progress=False).run(np.array(1.0))
        compiled.add(id(found.compiled))
        model = jp.given(model, found, update=True)
    assert model.fn is program and len(compiled) == 2           # with priors, with beliefs
    assert np.isclose(found.mean("m"), 5 / 6)
    fewer = jp.given(model, {"m": dist.Normal(3.0, 0.1)}, update=True)
    assert fewer.fn is model                                    # b stays as it was given
    assert jp.given(fewer, {"m": dist.Normal(0.0, 1.0)}).fn is model
