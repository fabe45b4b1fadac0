"""Structural models and forecasts: noise of low rank, moving averages, regressions beside states,
panels; and two programs of several products."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from numpyro import plate, sample
from numpyro.contrib.control_flow import scan

RNG = np.random.default_rng(15)
T = 40
INPUT = np.sin(0.7 * np.arange(T))
LEVEL = np.cumsum(0.2 * RNG.normal(size=T))
REGRESSED = LEVEL + 0.8 * INPUT + 0.3 * RNG.normal(size=T)
SHOCKS = 0.5 * RNG.normal(size=T + 1)
ARMA = np.zeros(T)
for _t in range(T):
    ARMA[_t] = 0.6 * ARMA[_t - 1] * (_t > 0) + SHOCKS[_t + 1] + 0.4 * SHOCKS[_t]
SALES = np.exp(0.02 * np.arange(T)) * 3.0 + 0.2 * RNG.standard_t(5, size=T)
PANEL = np.cumsum(0.1 + 0.2 * RNG.normal(size=(T, 3)), 0) + 0.2 * RNG.normal(size=(T, 3))
FORCE = np.sin(0.5 * np.arange(T))
WORDS = RNG.poisson(np.exp(0.5 + RNG.normal(size=(6, 1)) * RNG.normal(size=8) * 0.5)).astype(float)
MODELS = RNG.normal(size=(30, 2)) * 0.3 - 1.0
PLACES = RNG.normal(size=30)
F = np.array([[1.0, 0.1], [-0.3, 0.95]])
OSCILLATION = np.zeros((T, 2))
for _t in range(1, T):
    OSCILLATION[_t] = F @ OSCILLATION[_t - 1] + np.array([0.0, 0.1]) * (
        FORCE[_t] + RNG.normal())
HEIGHTS = OSCILLATION[:, 0] + 0.05 * RNG.normal(size=T)


def level_regression(x: Array, y: Array) -> None:
    """A coefficient outside the scan, the level inside."""
    beta = sample("beta", dist.Normal(0.0, 1.0))
    q, r = sample("q", dist.HalfNormal(0.5)), sample("r", dist.HalfNormal(0.5))

    def step(level: Array, xy: tuple[Array, Array]) -> tuple[Array, None]:
        x, y = xy
        level = sample("level", dist.Normal(level, q))
        sample("y", dist.Normal(level + beta * x, r), obs=y)
        return level, None

    scan(step, sample("l0", dist.Normal(0.0, 1.0)), (x, y))


def arma(y: Array, noise: float) -> None:
    """A moving average of latent shocks, what is seen almost exact."""
    phi, theta = sample("phi", dist.Normal(0.0, 0.5)), sample("theta", dist.Normal(0.0, 0.5))
    s = sample("s", dist.HalfNormal(1.0))

    def step(carry: tuple[Array, Array], y: Array) -> tuple[tuple[Array, Array], None]:
        last, shock = carry
        new = sample("e", dist.Normal(0.0, s))
        sample("y", dist.Normal(phi * last + theta * shock + new, noise), obs=y)
        return (y, new), None

    scan(step, (y[0], sample("e0", dist.Normal(0.0, 1.0))), y[1:])


def arma_exact(y: Array) -> None:
    """The likelihood that a filter of the exact model finds: a Gaussian of its autocovariances."""
    phi, theta = sample("phi", dist.Uniform(-1.0, 1.0)), sample("theta", dist.Normal(0.0, 0.5))
    s = sample("s", dist.HalfNormal(1.0))
    lag = jnp.abs(jnp.arange(len(y))[:, None] - jnp.arange(len(y)))
    far = (phi + theta) * (1 + phi * theta) / (1 - phi**2)
    own = (1 + 2 * phi * theta + theta**2) / (1 - phi**2)
    power = jnp.cumprod(jnp.concatenate([jnp.ones(1), jnp.full(len(y) - 1, phi)]))
    K = jnp.where(lag == 0, own, far * power[jnp.maximum(lag - 1, 0)])
    sample("y", dist.MultivariateNormal(0.0, s**2 * K), obs=y)


def arma_innovations(y: Array) -> None:
    """Shocks are what the data leave: no latent of their own."""
    phi, theta = sample("phi", dist.Normal(0.0, 0.5)), sample("theta", dist.Normal(0.0, 0.5))
    s = sample("s", dist.HalfNormal(1.0))

    def step(carry: tuple[Array, Array], y: Array) -> tuple[tuple[Array, Array], None]:
        last, shock = carry
        mean = phi * last + theta * shock
        sample("y", dist.Normal(mean, s), obs=y)
        return (y, y - mean), None

    scan(step, (y[0], 0.0), y[1:])


def global_trend(y: Array) -> None:
    """A nonlinear growth of an exponentially smoothed level, Student-t noise."""
    power = sample("power", dist.Beta(2.0, 2.0))
    coef = sample("coef", dist.Normal(0.0, 0.3))
    smooth = sample("smooth", dist.Beta(2.0, 2.0))
    s = sample("s", dist.HalfCauchy(0.5))

    def step(level: Array, y: Array) -> tuple[Array, None]:
        mean = level + coef * level**power
        sample("y", dist.StudentT(5.0, mean, s), obs=y)
        return smooth * y + (1 - smooth) * level, None

    scan(step, y[0], y[1:])


def panel(y: Array) -> None:
    """Levels by series whose drifts are drawn, LogNormal scales."""
    scale = sample("scale", dist.LogNormal(-1.0, 1.0))
    noise = sample("noise", dist.LogNormal(-1.0, 1.0))

    def step(level: Array, y: Array) -> tuple[Array, None]:
        with plate("series", 3):
            drift = sample("drift", dist.Normal(0.1, scale))
            level = level + drift
            sample("y", dist.Normal(level, noise), obs=y)
        return level, None

    scan(step, jnp.zeros(3), y)


def panel_levels(y: Array) -> None:
    """The same with the level drawn."""
    scale = sample("scale", dist.LogNormal(-1.0, 1.0))
    noise = sample("noise", dist.LogNormal(-1.0, 1.0))

    def step(level: Array, y: Array) -> tuple[Array, None]:
        with plate("series", 3):
            level = sample("level", dist.Normal(level + 0.1, scale))
            sample("y", dist.Normal(level, noise), obs=y)
        return level, None

    with plate("series", 3):
        first = sample("first", dist.Normal(0.0, 1.0))
    scan(step, first, y)


def singular(force: Array, y: Array) -> None:
    """An oscillator pushed by one force: noise of rank one."""
    q, r = sample("q", dist.HalfNormal(1.0)), sample("r", dist.HalfNormal(0.5))

    def step(x: Array, fy: tuple[Array, Array]) -> tuple[Array, None]:
        f, y = fy
        push = sample("push", dist.Normal(f, q))
        x = F @ x + jnp.array([0.0, 0.1]) * push
        sample("y", dist.Normal(x[0], r), obs=y)
        return x, None

    scan(step, sample("x0", dist.Normal(jnp.zeros(2), 0.5).to_event(1)), (force, y))


def jittered(force: Array, y: Array) -> None:
    """The same with a little noise in both."""
    r = sample("r", dist.HalfNormal(0.5))

    def step(x: Array, fy: tuple[Array, Array]) -> tuple[Array, None]:
        f, y = fy
        x = sample("x", dist.Normal(F @ x + jnp.array([0.0, 0.1]) * f,
                                    jnp.array([1e-3, 0.1])).to_event(1))
        sample("y", dist.Normal(x[0], r), obs=y)
        return x, None

    scan(step, sample("x0", dist.Normal(jnp.zeros(2), 0.5).to_event(1)), (force, y))


def ideal_points(words: Array) -> None:
    """Counts of words by author: a position times a polarity in a log rate."""
    with plate("authors", 6):
        position = sample("position", dist.Normal(0.0, 1.0))
    polarity = sample("polarity", dist.Normal(jnp.zeros(8), 1.0).to_event(1))
    base = sample("base", dist.Normal(jnp.zeros(8), 1.0).to_event(1))
    rate = jnp.exp(base + position[:, None] * polarity)
    sample("y", dist.Poisson(rate).to_event(2), obs=words)


def stacking(place: Array, scores: Array) -> None:
    """Weights of two models that change from place to place, scored by a factor."""
    a, b = sample("a", dist.Normal(0.0, 1.0)), sample("b", dist.Normal(0.0, 1.0))
    f = a + b * place
    weights = jnp.stack([jax.nn.log_sigmoid(f), jax.nn.log_sigmoid(-f)], -1)
    with plate("n", len(place)):
        sample("y", dist.Unit(jax.nn.logsumexp(scores + weights, -1)), obs=jnp.zeros((30, 0)))


def matrix_normal(y: Array) -> None:
    """Coefficients whose prior is scaled by the noise of the data."""
    W = sample("W", dist.Wishart(4.0, rate_matrix=jnp.eye(2)))
    with plate("inputs", 2):
        A = sample("A", dist.MultivariateNormal(jnp.zeros(2), precision_matrix=W))
    sample("y", dist.MultivariateNormal(y[:-1] @ A, precision_matrix=W).to_event(1), obs=y[1:])
