"""Linear-Gaussian series whose parameters are learnt, conjugate as shipped; plans."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from numpyro import plate, sample
from numpyro.contrib.control_flow import scan

import jopa_ppl as jp

from .judges import Model
from .kalman import F

PUSHED = np.array([0.5, -1.0])


def learning(y: Array) -> None:
    """Dynamics, their noise and the sensor's."""
    A = sample("A", dist.Normal(jnp.eye(2), 0.7).to_event(2))
    W = sample("W", dist.Wishart(4.0, rate_matrix=0.2 * jnp.eye(2)))
    tau = sample("tau", dist.Gamma(2.0, 0.2))

    def step(x: Array, y: Array) -> tuple[Array, None]:
        x = sample("x", dist.MultivariateNormal(A @ x, precision_matrix=W))
        sample("y", dist.Normal(x, 1 / jnp.sqrt(tau)).to_event(1), obs=y)
        return x, None

    scan(step, sample("x0", dist.Normal(jnp.zeros(2), 1.0).to_event(1)), y)


def loadings(y: Array) -> None:
    """Dynamics and loadings under precisions of their own, entries missing."""
    with plate("k", 2):
        alpha = sample("alpha", dist.Gamma(2.0, 1.0))
        A = sample("A", dist.Normal(jnp.eye(2), 0.5).to_event(1))
        L = sample("L", dist.Normal(jnp.zeros(3), (1 / jnp.sqrt(alpha))[..., None]).to_event(1))
    tau = sample("tau", dist.Gamma(2.0, 0.2))

    def step(x: Array, y: Array) -> tuple[Array, None]:
        x = sample("x", dist.Normal(A @ x, 1.0).to_event(1))
        jp.observe("y", dist.Normal(x @ L, 1 / jnp.sqrt(tau)).to_event(1), y)
        return x, None

    scan(step, sample("x0", dist.Normal(jnp.zeros(2), 1.0).to_event(1)), y)


def mixing(share: Array, y: Array) -> None:
    """Dynamics mixed of two matrices in shares that change."""
    A = sample("A", dist.Normal(jnp.eye(2) * jnp.array([[[0.9]], [[-0.5]]]), 0.3).to_event(3))

    def step(x: Array, now: tuple[Array, Array]) -> tuple[Array, None]:
        s, y = now
        x = sample("x", dist.Normal(s * (A[0] @ x) + (1 - s) * (A[1] @ x), 0.2).to_event(1))
        sample("y", dist.Normal(x, 0.3).to_event(1), obs=y)
        return x, None

    scan(step, sample("x0", dist.Normal(jnp.zeros(2), 1.0).to_event(1)), (share, y))


def factor(y: Array) -> None:
    """A common factor, its loadings and the noises learnt."""
    L = sample("L", dist.Normal(jnp.array([1.0, 0.0, 0.0]), 0.5).to_event(1))
    tau = sample("tau", dist.Gamma(jnp.full(3, 2.0), 0.3).to_event(1))

    def step(f: Array, y: Array) -> tuple[Array, None]:
        f = sample("f", dist.Normal(0.8 * f, 0.5))
        sample("y", dist.Normal(L * f, 1 / jnp.sqrt(tau)).to_event(1), obs=y)
        return f, None

    scan(step, sample("f0", dist.Normal(0.0, 1.0)), y)


def autoregression(y: Array, order: int) -> None:
    """What is seen regressed on its own past."""
    w = sample("w", dist.Normal(jnp.zeros(order), 0.5).to_event(1))
    c = sample("c", dist.Normal(0.0, 1.0))
    tau = sample("tau", dist.Gamma(2.0, 0.5))
    past = jnp.stack([y[order - 1 - k:len(y) - 1 - k] for k in range(order)], -1)
    with plate("n", len(y) - order):
        sample("y", dist.Normal(c + past @ w, 1 / jnp.sqrt(tau)), obs=y[order:])


def latent_pair(y: Array) -> None:
    """A latent autoregression of order two, the last two values the carry."""
    a, b = sample("a", dist.Normal(0.5, 0.5)), sample("b", dist.Normal(0.0, 0.5))
    tau = sample("tau", dist.Gamma(2.0, 0.5))

    def step(carry: tuple[Array, Array], y: Array) -> tuple[tuple[Array, Array], None]:
        old, now = carry
        new = sample("x", dist.Normal(a * now + b * old, 1 / jnp.sqrt(tau)))
        sample("y", dist.Normal(new, 0.3), obs=y)
        return (now, new), None

    scan(step, (sample("x0", dist.Normal(0.0, 1.0)), sample("x1", dist.Normal(0.0, 1.0))), y)


def structured(y: Array) -> None:
    """A level and a season, each of an unknown precision."""
    level_tau = sample("level_tau", dist.Gamma(2.0, 0.1))
    season_tau = sample("season_tau", dist.Gamma(2.0, 0.1))
    noise = sample("noise", dist.Gamma(2.0, 0.2))
    turn = jnp.array([[np.cos(np.pi / 6), np.sin(np.pi / 6)],
                      [-np.sin(np.pi / 6), np.cos(np.pi / 6)]])

    def step(carry: tuple[Array, Array], y: Array) -> tuple[tuple[Array, Array], None]:
        level, season = carry
        level = sample("level", dist.Normal(level, 1 / jnp.sqrt(level_tau)))
        season = sample("season", dist.Normal(turn @ season, 1 / jnp.sqrt(season_tau)
                                              ).to_event(1))
        sample("y", dist.Normal(level + season[0], 1 / jnp.sqrt(noise)), obs=y)
        return (level, season), None

    first = sample("l0", dist.Normal(0.0, 1.0)), \
        sample("s0", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
    scan(step, first, y)


def controlled(u: Array, y: Array) -> None:
    """Dynamics, the actions' effect and the noise, actions known."""
    A = sample("A", dist.Normal(jnp.eye(2), 0.7).to_event(2))
    B = sample("B", dist.Normal(jnp.zeros((2, 1)), 3.0).to_event(2))
    W = sample("W", dist.Wishart(4.0, rate_matrix=0.2 * jnp.eye(2)))

    def step(x: Array, now: tuple[Array, Array]) -> tuple[Array, None]:
        u, y = now
        x = sample("x", dist.MultivariateNormal(A @ x + B @ u, precision_matrix=W))
        sample("y", dist.Normal(x, 0.3).to_event(1), obs=y)
        return x, None

    scan(step, sample("x0", dist.Normal(jnp.zeros(2), 1.0).to_event(1)), (u, y))


def planned(goal: Array) -> None:
    """Actions towards a goal under known dynamics."""
    def step(x: Array, goal: Array) -> tuple[Array, None]:
        jp.observe("y", dist.Normal(x, 0.1).to_event(1), goal)
        u = sample("u", dist.Normal(0.0, 2.0))
        x = sample("x", dist.Normal(jnp.asarray(F) @ x + PUSHED * u, 0.2).to_event(1))
        return x, None

    scan(step, sample("x0", dist.Normal(jnp.ones(2), 0.01).to_event(1)), goal)


GOAL = np.full((8, 2), np.nan)
GOAL[-1] = [2.0, -1.0]


def best_plan(found: jp.Posterior, _: Model, args: tuple[Any, ...]) -> None:
    """Actions are the minimum of a quadratic: their cost, and the goal's at the states that follow.

    The last one is after the goal, and nothing.
    """
    (goal,) = args

    def cost(u: Array) -> Array:
        x, total = jnp.ones(2), jnp.sum(u**2) / 8
        for t in range(len(goal) - 1):
            x = jnp.asarray(F) @ x + PUSHED * u[t]
        return total + jnp.sum((x - goal[-1])**2) / 0.02

    zero = jnp.zeros(len(goal))
    exact = -jnp.linalg.solve(jax.hessian(cost)(zero), jax.grad(cost)(zero))
    np.testing.assert_allclose(found.mean("u")[:len(goal) - 1], exact[:-1], atol=1e-6)


def streamed(found: jp.Posterior, model: Model, args: tuple[Any, ...]) -> None:
    """Data in two parts, the second with the belief of the first for a prior, are all at once."""
    half = len(args[0]) // 2
    first = jp.VMP(model, progress=False, tol=1e-10).run(*(a[:half] for a in args))
    second = jp.VMP(jp.given(model, first, update=True), progress=False, tol=1e-10
                    ).run(*(a[half:] for a in args))
    np.testing.assert_allclose(second.mean("w"), found.mean("w"), atol=1e-8)
    np.testing.assert_allclose(second.variance("w"), found.variance("w"), rtol=1e-8)
    total = first.free_energy[-1] + second.free_energy[-1]
    np.testing.assert_allclose(total, found.free_energy[-1], rtol=1e-8)


def filtered(found: jp.Posterior, model: Model, args: tuple[Any, ...]) -> None:
    """One run for each step: beliefs of the last state, against a Kalman filter."""
    (y,) = args
    from .kalman import ROOT
    mean, cov, total = np.zeros(2), np.eye(2), 0.0
    for t, seen in enumerate(y):
        mean, cov = F @ mean, F @ cov @ F.T + ROOT @ ROOT.T
        spread = cov + 0.09 * np.eye(2)
        gap = seen - mean
        total -= 0.5 * (gap @ np.linalg.solve(spread, gap)
                        + np.linalg.slogdet(2 * np.pi * spread)[1])
        gain = np.linalg.solve(spread, cov).T
        mean, cov = mean + gain @ gap, cov - gain @ cov
        if t in (2, 5, len(y) - 1):
            run = jp.VMP(model, progress=False).run(y[:t + 1]) if t < len(y) - 1 else found
            np.testing.assert_allclose(run.mean("x")[-1], mean, atol=1e-9)
            np.testing.assert_allclose(run.variance("x")[-1], np.diag(cov), rtol=1e-8)
            np.testing.assert_allclose(run.free_energy[-1], -total, rtol=1e-9)
