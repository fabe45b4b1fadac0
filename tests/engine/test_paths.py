"""Plans through steps that are not affine: against affine ones in disguise, gradients and draws."""

from __future__ import annotations

from contextlib import nullcontext

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from faults import message
from numpy.testing import assert_allclose
from scipy import optimize

import jopa_ppl as jp
from jopa_ppl.errors import ConvergenceWarning, JopaError, ShapeError, SiteError

A, B = jnp.array([[0.9, 0.3], [-0.2, 0.8]]), jnp.array([[0.1], [0.5]])
T = 9


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def linear(y=None, *, T=T, N=None, hide=False):
    """Affine, or so in disguise."""
    plate = (lambda: jp.plate("n", N)) if N else nullcontext
    same = (lambda x: jnp.arctanh(jnp.tanh(x))) if hide else (lambda x: x)
    with plate():
        x0 = jp.latent("x0", dist.Normal(jnp.array([0.5, -0.4]), 0.1).to_event(1))

    def step(x, y):
        with plate():
            jp.observe("y", dist.Normal(same(x), 0.2).to_event(1), y)
            u = jp.latent("u", dist.Normal(jnp.zeros(1), 1.0).to_event(1))
            mean = 2 * same(0.5 * (x @ A.T + u @ B.T))
            x = jp.latent("x", dist.Normal(mean, 0.05).to_event(1))
        return x, None

    jp.scan(step, x0, y, length=T)


def pendulum(goal=None, *, T, noise=1e-3):
    """A torque of 2 lifts the arm by swinging it: several valleys. x is an angle and its speed."""
    x0 = jp.latent("x0", dist.Normal(jnp.array([np.pi, 0.0]), 1e-3).to_event(1))

    def step(x, goal):
        u = jp.latent("u", dist.Normal(jnp.zeros(1), 2.0).to_event(1))
        speed = x[1] + 0.05 * (15 * jnp.sin(x[0]) + 6 * jnp.tanh(u[0]))
        x = jp.latent("x", dist.Normal(jnp.stack([x[0] + 0.05 * speed, speed]), noise).to_event(1))
        seen = jnp.stack([jnp.cos(x[0]), jnp.sin(x[0]), 0.1 * x[1]])
        jp.observe("goal", dist.Normal(seen, 0.3).to_event(1), goal)
        return x, None

    jp.scan(step, x0, goal, length=T)


def plan(model, *args, init=None, conditions=None, **kwargs):
    vmp = jp.VMP(jp.condition(model, conditions or {}), decide="u", tol=1e-13, progress=False)
    return vmp.run(*args, init=init, **kwargs)


@pytest.mark.parametrize("N", [None, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", [pytest.param("goal", marks=pytest.mark.slow),
                                  pytest.param("frames", marks=pytest.mark.slow), "given"])
def test_an_affine_program_in_disguise_has_the_plan_of_the_plain_one(N, case):
    rng, plates = np.random.default_rng(0), [N] if N else []
    y, u = np.full((T, *plates, 2), np.nan), np.full((T, *plates, 1), np.nan)
    y[-1] = 0.6
    if case != "goal":
        y[:3] = 0.4 * rng.normal(size=y[:3].shape)
    if case == "given":
        u[1], u[5] = 0.3, -0.2
    told = {} if case == "goal" else {"u": u}
    plain, hidden = (plan(linear, y, conditions=told, N=N, hide=h) for h in (False, True))
    assert plain.start is None and hidden.converged
    assert np.shape(hidden.start) == tuple(plates)
    assert_allclose(hidden.free_energy[-1], plain.free_energy[-1], rtol=1e-12)
    for name in ("u", "x"):
        assert_allclose(hidden.mean(name), plain.mean(name), atol=1e-12)
        assert_allclose(hidden.variance(name), plain.variance(name), atol=1e-12)


@pytest.mark.slow
def test_a_swing_up_follows_the_program_and_no_gradient_improves_it():
    steps = 40
    goal = np.tile([1.0, 0, 0], (steps, 1))
    found = plan(pendulum, goal, T=steps, noise=1e-5)
    u = np.asarray(found.mean("u"))[:, 0]

    def path(u, x0=(np.pi, 0.0)):
        def step(x, u):
            speed = x[1] + 0.05 * (15 * jnp.sin(x[0]) + 6 * jnp.tanh(u))
            x = jnp.stack([x[0] + 0.05 * speed, speed])
            return x, x

        return jax.lax.scan(step, jnp.asarray(x0), u)[1]

    def cost(u):
        x = path(u)
        seen = jnp.stack([jnp.cos(x[:, 0]), jnp.sin(x[:, 0]), 0.1 * x[:, 1]], -1)
        return 0.5 * (((seen - goal) / 0.3)**2).sum() + 0.5 * ((u / 2)**2).sum()

    assert_allclose(found.mean("x"), path(u), atol=1e-10)
    assert (np.diff(found.free_energy) <= 1e-9).all()
    # The best of BFGS from here, from constant actions and from waves; the spread of actions costs
    # as well.
    value, wave = jax.jit(jax.value_and_grad(cost)), lambda n: 1.0 - 2 * (np.arange(steps) // n % 2)
    best = min(optimize.minimize(value, start, jac=True, method="BFGS").fun
               for start in (u, *(a * wave(n) for n in (40, 10, 5) for a in (0.0, 1.5, -1.5))))
    assert cost(u) - best < 0.2
    assert found.start in found.compiled.decision.starts
    # Draws of the plan follow the program too.
    draws = found.sample(0, 20)
    for x0, x, u in zip(*(np.asarray(draws[n]) for n in ("x0", "x", "u"))):
        assert_allclose(x, path(u[:, 0], x0), atol=2e-3)


def test_a_plan_begins_where_it_is_told_to():
    steps = 12
    goal = np.tile([1.0, 0, 0], (steps, 1))
    vmp = jp.VMP(pendulum, decide="u", max_iters=2, progress=False)
    with pytest.warns(ConvergenceWarning, match="still getting better after 2 policies"):
        first = vmp.run(goal, T=steps)
    settled = plan(pendulum, goal, T=steps)
    with pytest.warns(ConvergenceWarning):
        again = vmp.run(goal, T=steps, init=settled.shifted(0))
    assert again.start == "given" and again.free_energy[-1] <= first.free_energy[-1]
    assert again.compiled is first.compiled and first.compiled.traces == 1
    later = settled.shifted(3)["u"]
    assert_allclose(later[:-3], settled.mean("u")[3:])
    assert_allclose(later[-3:], np.repeat(settled.mean("u")[-1:], 3, 0))
    for error, init, says in (
            (SiteError, {"x": np.zeros((steps, 2))}, ("unknown site in init=", "plan.shifted(1)")),
            (ShapeError, {"u": np.zeros((steps - 1, 1))}, ("another shape", "(12, 1)"))):
        message(error, lambda init=init: vmp.run(goal, T=steps, init=init), *says,
                site=next(iter(init)))
    message(JopaError, lambda: jp.VMP(pendulum, progress=False).run(goal, T=steps, init={}),
            "init= is where plans begin")
