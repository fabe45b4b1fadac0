"""Linear-Gaussian series that are conjugate as shipped, parameters known or learnt."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from numpyro import plate, sample
from numpyro.contrib.control_flow import scan
from numpyro.handlers import mask

import jopa_ppl as jp

RNG = np.random.default_rng(20)
T = 20
F = 0.95 * np.array([[np.cos(0.4), -np.sin(0.4)], [np.sin(0.4), np.cos(0.4)]])
C = np.array([[1.0, 0.0], [0.5, 1.0], [0.0, -0.7]])
PUSH = RNG.normal(size=(T, 1))
PATH = np.zeros((T, 2))
for _t in range(1, T):
    PATH[_t] = F @ PATH[_t - 1] + PUSH[_t] * np.array([0.5, -1.0]) + 0.2 * RNG.normal(size=2)
TWO = PATH + 0.3 * RNG.normal(size=(T, 2))
THREE = PATH @ C.T + 0.3 * RNG.normal(size=(T, 3))
MANY = np.stack([TWO, TWO[::-1] * 0.5, RNG.normal(size=(T, 2))], 1)
ONE = np.cumsum(0.3 * RNG.normal(size=T)) + 0.4 * RNG.normal(size=T)
GAPS = np.where(np.arange(T) % 5 == 2, np.nan, ONE)
MONTHS = ONE + np.sin(np.arange(T) * np.pi / 6)
INPUT = np.cos(0.5 * np.arange(T))
MATRICES = F + 0.1 * RNG.normal(size=(T, 2, 2))
REGIMES = (np.arange(T) // 7) % 2
LONG = np.zeros(T + 12)
for _t in range(2, T + 12):
    LONG[_t] = 0.6 * LONG[_t - 1] - 0.3 * LONG[_t - 2] + 0.5 * RNG.normal()
ROOT = np.array([[0.3, 0.0], [0.1, 0.2]])


def _level(y: Array, first: float) -> None:
    def step(x: Array, y: Array) -> tuple[Array, None]:
        x = sample("x", dist.Normal(x, 0.3))
        jp.observe("y", dist.Normal(x, 0.4), y)
        return x, None

    scan(step, sample("x0", dist.Normal(0.0, first)), y)


def level(y: Array) -> None:
    _level(y, 3.0)


def level_diffuse(y: Array) -> None:
    """A first state of variance 1e12."""
    _level(y, 1e6)


def trend(y: Array) -> None:
    """A level and a slope, noise in both."""
    def step(carry: tuple[Array, Array], y: Array) -> tuple[tuple[Array, Array], None]:
        level, slope = carry
        level = sample("level", dist.Normal(level + slope, 0.2))
        slope = sample("slope", dist.Normal(slope, 0.1))
        sample("y", dist.Normal(level, 0.4), obs=y)
        return (level, slope), None

    scan(step, (sample("l0", dist.Normal(0.0, 1.0)), sample("s0", dist.Normal(0.0, 1.0))), y)


def wave(y: Array) -> None:
    """A trend and two harmonics of a season of twelve."""
    turn = lambda k: jnp.array([[jnp.cos(k), jnp.sin(k)], [-jnp.sin(k), jnp.cos(k)]])
    M = jnp.zeros((6, 6)).at[:2, :2].set(jnp.array([[1.0, 1.0], [0.0, 1.0]]))
    M = M.at[2:4, 2:4].set(turn(jnp.pi / 6)).at[4:, 4:].set(turn(jnp.pi / 3))

    def step(x: Array, y: Array) -> tuple[Array, None]:
        x = sample("x", dist.Normal(M @ x, 0.1).to_event(1))
        sample("y", dist.Normal(x[0] + x[2] + x[4], 0.3), obs=y)
        return x, None

    scan(step, sample("x0", dist.Normal(jnp.zeros(6), 1.0).to_event(1)), y)


def cycle(y: Array) -> None:
    """A level and a damped cycle."""
    def step(carry: tuple[Array, Array], y: Array) -> tuple[tuple[Array, Array], None]:
        level, c = carry
        level = sample("level", dist.Normal(level, 0.2))
        c = sample("c", dist.Normal(jnp.asarray(F) @ c, 0.2).to_event(1))
        sample("y", dist.Normal(level + c[0], 0.3), obs=y)
        return (level, c), None

    first = sample("l0", dist.Normal(0.0, 1.0)), \
        sample("c0", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
    scan(step, first, y)


def varying_coefficient(x: Array, y: Array) -> None:
    """A regression whose coefficients walk."""
    def step(w: Array, xy: tuple[Array, Array]) -> tuple[Array, None]:
        x, y = xy
        w = sample("w", dist.Normal(w, jnp.array([0.1, 0.2])).to_event(1))
        sample("y", dist.Normal(w[0] + w[1] * x, 0.3), obs=y)
        return w, None

    scan(step, sample("w0", dist.Normal(jnp.zeros(2), 2.0).to_event(1)), (x, y))


def constant_coefficient(x: Array, y: Array) -> None:
    """A regression taken datum by datum: a state that stays."""
    def step(w: Array, xy: tuple[Array, Array]) -> tuple[Array, None]:
        x, y = xy
        sample("y", dist.Normal(w[0] + w[1] * x, 0.3), obs=y)
        return w, None

    scan(step, sample("w", dist.Normal(jnp.zeros(2), 2.0).to_event(1)), (x, y))


def inputs(u: Array, y: Array) -> None:
    """Inputs in the transition and in what is seen."""
    def step(x: Array, uy: tuple[Array, Array]) -> tuple[Array, None]:
        u, y = uy
        x = sample("x", dist.MultivariateNormal(
            jnp.asarray(F) @ x + jnp.array([0.5, -1.0]) * u, covariance_matrix=0.04 * jnp.eye(2)))
        sample("y", dist.MultivariateNormal(
            jnp.asarray(C) @ x + 0.2 * u, covariance_matrix=0.09 * jnp.eye(3)), obs=y)
        return x, None

    scan(step, sample("x0", dist.MultivariateNormal(jnp.zeros(2), jnp.eye(2))), (u, y))


def plain(y: Array) -> None:
    def step(x: Array, y: Array) -> tuple[Array, None]:
        x = sample("x", dist.MultivariateNormal(jnp.asarray(F) @ x, scale_tril=jnp.asarray(ROOT)))
        sample("y", dist.Normal(x, 0.3).to_event(1), obs=y)
        return x, None

    scan(step, sample("x0", dist.Normal(jnp.zeros(2), 1.0).to_event(1)), y)


def varying(matrices: Array, y: Array) -> None:
    """Dynamics of their own at every step."""
    def step(x: Array, now: tuple[Array, Array]) -> tuple[Array, None]:
        M, y = now
        x = sample("x", dist.Normal(M @ x, 0.2).to_event(1))
        sample("y", dist.Normal(x, 0.3).to_event(1), obs=y)
        return x, None

    scan(step, sample("x0", dist.Normal(jnp.zeros(2), 1.0).to_event(1)), (matrices, y))


def regimes_known(regimes: Array, y: Array) -> None:
    """Switching dynamics whose switches are data."""
    both = jnp.stack([jnp.asarray(F), -0.5 * jnp.eye(2)])

    def step(x: Array, now: tuple[Array, Array]) -> tuple[Array, None]:
        k, y = now
        x = sample("x", dist.Normal(both[k] @ x, 0.2).to_event(1))
        sample("y", dist.Normal(x, 0.3).to_event(1), obs=y)
        return x, None

    scan(step, sample("x0", dist.Normal(jnp.zeros(2), 1.0).to_event(1)), (regimes, y))


def tracking(y: Array) -> None:
    """Positions and velocities in the plane, positions seen."""
    M = jnp.eye(4) + 0.1 * jnp.eye(4, k=2)
    Q = 0.1 * jnp.array([[1e-3 / 3, 0, 5e-3, 0], [0, 1e-3 / 3, 0, 5e-3],
                         [5e-3, 0, 0.1, 0], [0, 5e-3, 0, 0.1]])

    def step(x: Array, y: Array) -> tuple[Array, None]:
        x = sample("x", dist.MultivariateNormal(M @ x, covariance_matrix=Q))
        sample("y", dist.Normal(x[:2], 0.3).to_event(1), obs=y)
        return x, None

    scan(step, sample("x0", dist.Normal(jnp.zeros(4), 1.0).to_event(1)), y)


def matern(y: Array) -> None:
    """A Matern process of order 3/2 as a state space, the noise learnt."""
    lam, dt = 1.5, 0.3
    M = jnp.exp(-lam * dt) * jnp.array([[1 + lam * dt, dt], [-lam**2 * dt, 1 - lam * dt]])
    P = jnp.diag(jnp.array([1.0, lam**2]))
    tau = sample("tau", dist.Gamma(2.0, 0.2))

    def step(x: Array, y: Array) -> tuple[Array, None]:
        x = sample("x", dist.MultivariateNormal(M @ x, covariance_matrix=P - M @ P @ M.T))
        sample("y", dist.Normal(x[0], 1 / jnp.sqrt(tau)), obs=y)
        return x, None

    scan(step, sample("x0", dist.MultivariateNormal(jnp.zeros(2), P)), y)


def batch(y: Array) -> None:
    """Sequences abreast of one system."""
    with plate("n", y.shape[1]):
        first = sample("x0", dist.Normal(jnp.zeros(2), 1.0).to_event(1))

    def step(x: Array, y: Array) -> tuple[Array, None]:
        with plate("n", y.shape[0]):
            x = sample("x", dist.Normal(x @ F.T, 0.2).to_event(1))
            sample("y", dist.Normal(x, 0.3).to_event(1), obs=y)
        return x, None

    scan(step, first, y)


def masked_walks(y: Array) -> None:
    """Walks in a plate, some of what is seen masked by a handler."""
    def step(x: Array, y: Array) -> tuple[Array, None]:
        with plate("n", 2):
            x = sample("x", dist.Normal(x, 1.0))
            with mask(mask=jnp.array([True, False])):
                sample("y", dist.Normal(x, 0.5), obs=y)
        return x, None

    scan(step, jnp.zeros(2), y)


def vector_walk(y: Array) -> None:
    """Vectors from a constant first state."""
    def step(x: Array, y: Array) -> tuple[Array, None]:
        x = sample("x", dist.MultivariateNormal(x, scale_tril=jnp.asarray(ROOT)))
        sample("y", dist.MultivariateNormal(x, 0.1 * jnp.eye(2)), obs=y)
        return x, None

    scan(step, jnp.zeros(2), y)


def factor(y: Array) -> None:
    """One common autoregression behind three series, loadings known."""
    def step(f: Array, y: Array) -> tuple[Array, None]:
        f = sample("f", dist.Normal(0.8 * f, 0.5))
        sample("y", dist.Normal(jnp.array([1.0, 0.6, -0.5]) * f, 0.4).to_event(1), obs=y)
        return f, None

    scan(step, sample("f0", dist.Normal(0.0, 1.0)), y)
