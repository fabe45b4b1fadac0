"""Latents that no observation of a run reaches: predicted, and nothing else is moved by them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from fitting import run
from numpy.testing import assert_allclose
from oracles import dense_gaussian

import jopa_ppl as jp

KEEP, STEP = 0.8, 0.5


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def fleet(y):
    """Trajectories whose first states share an unknown mean and precision: y (T, n)."""
    m = jp.latent("m", dist.Normal(0.0, 2.0))
    tau = jp.latent("tau", dist.Gamma(6.0, 2.0))
    with jp.plate("n", y.shape[1]):
        x0 = jp.latent("x0", dist.Normal(m, 1 / jnp.sqrt(tau)))

    def step(x, y):
        with jp.plate("n", len(y)):
            jp.observe("y", dist.Normal(x, 0.3), y)
            return jp.latent("x", dist.Normal(KEEP * x, STEP)), None

    jp.scan(step, x0, y)


def frames(T):
    return np.random.default_rng(T).normal(1.0, 1.0, size=(T, 3))


@pytest.mark.parametrize("T", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_a_trajectory_without_a_frame_is_predicted_and_moves_nothing(T):
    y = frames(T)
    y[:, 1] = np.nan
    posterior, rest = run(fleet, y), run(fleet, y[:, [0, 2]])
    assert_allclose(posterior.free_energy[-1], rest.free_energy[-1], rtol=1e-10)
    for site in ("m", "tau"):
        assert_allclose(posterior.mean(site), rest.mean(site), rtol=1e-8)
        assert_allclose(posterior.variance(site), rest.variance(site), rtol=1e-8)
    for site in ("x0", "x"):
        assert_allclose(posterior.mean(site)[..., [0, 2]], rest.mean(site), rtol=1e-8)
        assert_allclose(posterior.variance(site)[..., [0, 2]], rest.variance(site), rtol=1e-8)

    # x0 ~ N(m, 1 / tau) with m ~ N(mu, v) and E[1 / tau] = b / (a - 1); then forward in time.
    tau = rest["tau"]
    mean = float(rest.mean("m"))
    var = float(rest.variance("m") + tau.rate / (tau.concentration - 1))
    draws = posterior.sample(jax.random.key(0), (10_000,))
    told = [(posterior.mean("x0")[1], posterior.variance("x0")[1], draws["x0"][:, 1])]
    told += [(posterior.mean("x")[t, 1], posterior.variance("x")[t, 1], draws["x"][:, t, 1])
             for t in range(T)]
    for found, spread, drawn in told:
        assert_allclose(found, mean, rtol=1e-8)
        assert_allclose(spread, var, rtol=1e-8)
        assert abs(drawn.mean() - mean) < 5 * np.sqrt(var / 10_000)
        assert_allclose(drawn.var(), var, rtol=0.1)
        mean, var = KEEP * mean, KEEP**2 * var + STEP**2

    # Every draw follows the draws of what it depends on.
    white = (draws["x0"][:, 1] - draws["m"]) * np.sqrt(draws["tau"])
    noise = (draws["x"][:, 0, 1] - KEEP * draws["x0"][:, 1]) / STEP
    for unit in (white, noise):
        assert abs(unit.mean()) < 0.05 and abs(unit.var() - 1) < 0.07
    assert abs(np.corrcoef(white, draws["m"])[0, 1]) < 0.05


@pytest.mark.slow
def test_a_known_first_state_without_frames_keeps_its_prior():
    """Where the prior stands alone: its own moments, and F of the other trajectories."""
    def program(y):
        with jp.plate("n", y.shape[1]):
            x0 = jp.latent("x0", dist.Normal(0.7, 1.5))

        def step(x, y):
            with jp.plate("n", len(y)):
                jp.observe("y", dist.Normal(x, 0.3), y)
                return jp.latent("x", dist.Normal(KEEP * x, STEP)), None

        jp.scan(step, x0, y)

    y = frames(3)
    y[:, 1] = np.nan
    posterior, rest = run(program, y), run(program, y[:, [0, 2]])
    assert_allclose(posterior.free_energy[-1], rest.free_energy[-1], rtol=1e-10)
    assert_allclose([posterior.mean("x0")[1], posterior.variance("x0")[1]], [0.7, 1.5**2])
    assert_allclose(posterior.mean("x")[:, 1], 0.7 * KEEP ** np.arange(1, 4))
    assert_allclose(posterior.variance("x")[0, 1], KEEP**2 * 1.5**2 + STEP**2)


def test_a_belief_about_what_nothing_reached_is_given_as_predicted():
    """Given to the next run, a global without data is its prediction, not a placeholder."""
    def program(y, z):
        tau = jp.latent("tau", dist.Gamma(6.0, 2.0))
        m = jp.latent("m", dist.Normal(0.0, 2.0))
        c = jp.latent("c", dist.Normal(0.0, 1 / jnp.sqrt(tau)))
        with jp.plate("n", len(y)):
            jp.observe("y", dist.Normal(m, 1 / jnp.sqrt(tau)), y)
        jp.observe("z", dist.Normal(c, 1.0), z)

    first = run(program, frames(4)[:, 0], np.array(np.nan))
    tau = first["tau"]
    var = float(tau.rate / (tau.concentration - 1))
    assert_allclose(first.variance("c"), var, rtol=1e-8)
    joint, single, _ = first.beliefs(["c"])
    assert not single
    assert_allclose(joint["c",].cov, [[var]], rtol=1e-8)
    second = run(jp.given(program, first, update=True), frames(5)[:, 0], np.array(2.0))
    assert_allclose(second.mean("c"), 2.0 * var / (1 + var), rtol=1e-8)
    assert_allclose(second.variance("c"), var / (1 + var), rtol=1e-8)


def test_predicted_variances_expect_the_inverse_of_every_precision():
    """E[1 / tau] = b / (a - 1), element by element and plate by plate, is what a step adds."""
    def walks(y):
        tau = jp.latent("tau", dist.Gamma(jnp.array([2.0, 5.0]), 1.0).to_event(1))
        with jp.plate("n", 3):
            kappa = jp.latent("kappa", dist.Gamma(3.0, 1.0))
            x0 = jp.latent("x0", dist.Normal(jnp.zeros(2), 1.0).to_event(1))

        def step(x, y):
            with jp.plate("n", 3):
                jp.observe("y", dist.Normal(x, 0.3).to_event(1), y)
                scale = 1 / jnp.sqrt(2 * tau * kappa[:, None])
                return jp.latent("x", dist.Normal(x, scale).to_event(1)), None

        jp.scan(step, x0, y)

    y = np.random.default_rng(0).normal(size=(8, 3, 2)).cumsum(0)
    y[6:] = np.nan
    posterior = run(walks, y)
    inverse = {n: posterior[n].rate / (posterior[n].concentration - 1) for n in ("tau", "kappa")}
    added = np.diff(posterior.variance("x"), axis=0)[5:]
    want = inverse["tau"] * inverse["kappa"][:, None] / 2
    assert_allclose(added, np.broadcast_to(want, added.shape), rtol=1e-8)


def test_a_step_that_is_reached_in_part_keeps_its_neighbours_together():
    """w_1 is predicted though x_1 is not; the prediction of x_3 needs Cov(x_1, x_2) as ever."""
    def program(y, z):
        def step(carry, now):
            before, earlier = carry
            x = jp.latent("x", dist.Normal(0.9 * before - 0.5 * earlier, 0.5))
            w = jp.latent("w", dist.Normal(0.3 * x, 0.7))
            jp.observe("y", dist.Normal(x, 0.2), now[0])
            jp.observe("z", dist.Normal(x + w, 0.2), now[1])
            return (x, before), None

        start = jp.latent("a", dist.Normal(0.0, 1.0)), jp.latent("b", dist.Normal(0.0, 1.0))
        jp.scan(step, start, (y, z))

    y, z = np.array([0.3, 0.5, -0.2, np.nan, np.nan]), np.array([0.1, np.nan, 0.4, np.nan, np.nan])
    exact = dense_gaussian(program, (y, z), {}, {"a": (), "b": (), "x": (5,), "w": (5,)})
    posterior = run(program, y, z)
    for site in ("x", "w"):
        assert_allclose(posterior.mean(site), exact.mean[site], rtol=1e-8, atol=1e-12)
        assert_allclose(posterior.variance(site), exact.var[site], rtol=1e-8)


@pytest.mark.parametrize("order", [1, 2])
def test_the_first_state_of_a_barren_chain_keeps_its_place_beside_one_that_is_seen(order):
    """a0 tells of b0 alone, as no observation sees the chain that starts from it."""
    def model(y):
        a0 = jp.latent("a0", dist.Normal(1.0, 1.5))
        b0 = [jp.latent(f"b{i}", dist.Normal(0.7 * a0 + i, 0.8)) for i in range(order)]

        def step(carry, y):
            a, bs = carry
            jp.observe("y", dist.Normal(bs[0] + bs[-1], 0.5), y)
            b = jp.latent("b", dist.Normal(0.9 * bs[0], 0.4))
            return (jp.latent("a", dist.Normal(a, 1.0)), (b, *bs[:-1])), None

        jp.scan(step, (a0, tuple(b0)), y)

    y = np.array([0.3, 1.2, -0.4])
    shapes = {"a0": (), "a": (3,), "b": (3,), **{f"b{i}": () for i in range(order)}}
    exact = dense_gaussian(model, (y,), {}, shapes)
    posterior = jp.VMP(model, progress=False).run(y)
    assert_allclose(posterior.free_energy[-1], -exact.evidence, rtol=1e-10)
    for name in posterior.sites:
        assert_allclose(posterior.mean(name), exact.mean[name], rtol=1e-8, atol=1e-12)
        assert_allclose(posterior.variance(name), exact.var[name], rtol=1e-8)
