"""Time series: scales of any prior, log-variances, seasons, shift registers, recursions."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from numpyro import sample
from numpyro.contrib.control_flow import scan

RNG = np.random.default_rng(13)
T = 40
LEVEL = np.cumsum(0.3 * RNG.normal(size=T))
SERIES = LEVEL + 0.4 * RNG.normal(size=T)
SEASON = np.tile([1.0, -0.5, 0.3, -0.8], 10) + 0.3 * SERIES
LOGVAR = np.cumsum(0.3 * RNG.normal(size=T)) - 1.0
RETURNS = np.exp(LOGVAR / 2) * RNG.normal(size=T)


def _autoregression() -> np.ndarray:
    y = [0.3, 0.5]
    for _ in range(T):
        y.append(0.6 * y[-1] - 0.3 * y[-2] + 0.2 + 0.5 * RNG.normal())
    return np.array(y)


AR = _autoregression()
VAR = np.zeros((T, 2))
for _t in range(1, T):
    VAR[_t] = np.array([[0.6, 0.2], [-0.2, 0.5]]) @ VAR[_t - 1] + 0.4 * RNG.normal(size=2)
COINS = (RNG.random(T) < 1 / (1 + np.exp(-2 * LEVEL))).astype(float)
COUNTS = RNG.poisson(np.exp(0.5 * LEVEL + 1.0)).astype(float)
REGRESSOR = np.sin(np.arange(T))
PARTS = np.cumsum(0.2 + 0.2 * RNG.normal(size=(T, 2)), 0) + 0.3 * RNG.normal(size=(T, 2))


def ar2_scan(y: Array) -> None:
    """The last two values are the carry, all of them data."""
    const = sample("const", dist.Normal(0.0, 1.0))
    a = sample("a", dist.Normal(0.0, 1.0))
    b = sample("b", dist.Normal(0.0, 1.0))
    sigma = sample("sigma", dist.HalfNormal(1.0))

    def step(carry: tuple[Array, Array], y: Array) -> tuple[tuple[Array, Array], None]:
        before, last = carry
        now = sample("y", dist.Normal(const + a * last + b * before, sigma), obs=y)
        return (last, now), None

    scan(step, (y[0], y[1]), y[2:])


def ar2_loop(y: Array) -> None:
    """The same by a loop of Python over twelve values."""
    const = sample("const", dist.Normal(0.0, 1.0))
    a = sample("a", dist.Normal(0.0, 1.0))
    b = sample("b", dist.Normal(0.0, 1.0))
    sigma = sample("sigma", dist.HalfNormal(1.0))
    for t in range(2, 12):
        sample(f"y{t}", dist.Normal(const + a * y[t - 1] + b * y[t - 2], sigma), obs=y[t])


def var_lkj(y: Array) -> None:
    """A vector autoregression whose noise has HalfNormal sds and an LKJ correlation."""
    c = sample("c", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
    phi = sample("phi", dist.Normal(jnp.zeros((2, 2)), 1.0).to_event(2))
    sd = sample("sd", dist.HalfNormal(jnp.ones(2)))
    root = sample("root", dist.LKJCholesky(2, 1.0))

    def step(last: Array, y: Array) -> tuple[Array, None]:
        return sample("y", dist.MultivariateNormal(
            c + phi @ last, scale_tril=sd[:, None] * root), obs=y), None

    scan(step, y[0], y[1:])


def local_level(y: Array) -> None:
    q, r = sample("q", dist.HalfNormal(1.0)), sample("r", dist.Exponential(1.0))

    def step(x: Array, y: Array) -> tuple[Array, None]:
        x = sample("x", dist.Normal(x, q))
        sample("y", dist.Normal(x, r), obs=y)
        return x, None

    scan(step, sample("x0", dist.Normal(0.0, 3.0)), y)


def volatility(y: Array) -> None:
    """A random walk of log variances under Student-t returns."""
    sigma = sample("sigma", dist.Exponential(5.0))
    nu = sample("nu", dist.Exponential(0.1))
    s = sample("s", dist.GaussianRandomWalk(sigma, num_steps=len(y)))
    sample("y", dist.StudentT(nu, 0.0, jnp.exp(s)).to_event(1), obs=y)


def volatility_scan(y: Array) -> None:
    sigma = sample("sigma", dist.Exponential(5.0))
    nu = sample("nu", dist.Exponential(0.1))

    def step(s: Array, y: Array) -> tuple[Array, None]:
        s = sample("s", dist.Normal(s, sigma))
        sample("y", dist.StudentT(nu, 0.0, jnp.exp(s)), obs=y)
        return s, None

    scan(step, sample("s0", dist.Normal(0.0, 1.0)), y)


def volatility_ar(y: Array) -> None:
    """A mean-reverting log variance, Gaussian returns."""
    mu = sample("mu", dist.Normal(0.0, 1.0))
    phi = sample("phi", dist.Normal(0.8, 0.2))
    sigma = sample("sigma", dist.HalfNormal(0.5))

    def step(h: Array, y: Array) -> tuple[Array, None]:
        h = sample("h", dist.Normal(phi * h, sigma))
        sample("y", dist.Normal(0.0, jnp.exp((mu + h) / 2)), obs=y)
        return h, None

    scan(step, sample("h0", dist.Normal(0.0, 1.0)), y)


def hgf(y: Array) -> None:
    """Two floors: a walk whose log variance is a walk, seen with unknown noise."""
    k = sample("k", dist.HalfNormal(0.5))
    noise = sample("noise", dist.HalfNormal(0.5))

    def step(carry: tuple[Array, Array], y: Array) -> tuple[tuple[Array, Array], None]:
        z, x = carry
        z = sample("z", dist.Normal(z, k))
        x = sample("x", dist.Normal(x, jnp.exp(z / 2)))
        sample("y", dist.Normal(x, noise), obs=y)
        return (z, x), None

    scan(step, (sample("z0", dist.Normal(-2.0, 1.0)), sample("x0", dist.Normal(0.0, 1.0))), y)


def bernoulli_series(y: Array) -> None:
    def step(x: Array, y: Array) -> tuple[Array, None]:
        x = sample("x", dist.Normal(0.95 * x, 0.4))
        sample("y", dist.Bernoulli(logits=2 * x), obs=y)
        return x, None

    scan(step, sample("x0", dist.Normal(0.0, 1.0)), y)


def probit_series(y: Array) -> None:
    drift = sample("drift", dist.Normal(0.0, 0.2))

    def step(x: Array, y: Array) -> tuple[Array, None]:
        x = sample("x", dist.Normal(x + drift, 0.4))
        sample("y", dist.Bernoulli(probs=jax.scipy.stats.norm.cdf(x)), obs=y)
        return x, None

    scan(step, sample("x0", dist.Normal(0.0, 1.0)), y)


def poisson_series(y: Array) -> None:
    sd = sample("sd", dist.HalfNormal(0.5))

    def step(x: Array, y: Array) -> tuple[Array, None]:
        x = sample("x", dist.Normal(x, sd))
        sample("y", dist.Poisson(jnp.exp(x)), obs=y)
        return x, None

    scan(step, sample("x0", dist.Normal(0.0, 1.0)), y)


def robust_level(y: Array) -> None:
    """A Gamma scale for each step, drawn inside the scan."""
    q = sample("q", dist.HalfNormal(1.0))

    def step(x: Array, y: Array) -> tuple[Array, None]:
        x = sample("x", dist.Normal(x, q))
        w = sample("w", dist.Gamma(2.0, 2.0))
        sample("y", dist.Normal(x, 0.4 / jnp.sqrt(w)), obs=y)
        return x, None

    scan(step, sample("x0", dist.Normal(0.0, 3.0)), y)


def robust_t_level(y: Array) -> None:
    """The same with the scales integrated out."""
    q, r = sample("q", dist.HalfNormal(1.0)), sample("r", dist.HalfNormal(1.0))

    def step(x: Array, y: Array) -> tuple[Array, None]:
        x = sample("x", dist.Normal(x, q))
        sample("y", dist.StudentT(4.0, x, r), obs=y)
        return x, None

    scan(step, sample("x0", dist.Normal(0.0, 3.0)), y)


def holt_winters(y: Array) -> None:
    """A level and a trend that follow the data: no noise of their own."""
    a, b = sample("a", dist.Beta(2.0, 2.0)), sample("b", dist.Beta(2.0, 2.0))
    sigma = sample("sigma", dist.HalfNormal(1.0))
    level, trend = sample("level", dist.Normal(0.0, 1.0)), sample("trend", dist.Normal(0.0, 1.0))

    def step(carry: tuple[Array, Array], y: Array) -> tuple[tuple[Array, Array], None]:
        level, trend = carry
        sample("y", dist.Normal(level + trend, sigma), obs=y)
        new = a * y + (1 - a) * (level + trend)
        return (new, b * (new - level) + (1 - b) * trend), None

    scan(step, (level, trend), y)


def holt_winters_fixed(y: Array) -> None:
    sigma = sample("sigma", dist.HalfNormal(1.0))
    level, trend = sample("level", dist.Normal(0.0, 1.0)), sample("trend", dist.Normal(0.0, 1.0))

    def step(carry: tuple[Array, Array], y: Array) -> tuple[tuple[Array, Array], None]:
        level, trend = carry
        sample("y", dist.Normal(level + trend, sigma), obs=y)
        new = 0.4 * y + 0.6 * (level + trend)
        return (new, 0.2 * (new - level) + 0.8 * trend), None

    scan(step, (level, trend), y)


def deterministic_drift(y: Array) -> None:
    """A line: a carry that adds a constant at every step."""
    start = sample("start", dist.Normal(0.0, 1.0))
    s = sample("s", dist.HalfNormal(1.0))

    def step(x: Array, y: Array) -> tuple[Array, None]:
        sample("y", dist.Normal(x, s), obs=y)
        return x + 0.1, None

    scan(step, start, y)


def smooth_trend(y: Array) -> None:
    """Noise in the slope alone."""
    q, r = sample("q", dist.HalfNormal(0.5)), sample("r", dist.HalfNormal(1.0))

    def step(carry: tuple[Array, Array], y: Array) -> tuple[tuple[Array, Array], None]:
        level, slope = carry
        level = level + slope
        slope = sample("slope", dist.Normal(slope, q))
        sample("y", dist.Normal(level, r), obs=y)
        return (level, slope), None

    scan(step, (sample("l0", dist.Normal(0.0, 1.0)), sample("s0", dist.Normal(0.0, 1.0))), y)


def seasonal(y: Array, period: int) -> None:
    """A dummy season: the new one is minus the sum of the last, in a shift register."""
    q, r = sample("q", dist.HalfNormal(0.5)), sample("r", dist.HalfNormal(1.0))
    first = sample("first", dist.Normal(jnp.zeros(period - 1), 1.0).to_event(1))

    def step(past: Array, y: Array) -> tuple[Array, None]:
        season = sample("season", dist.Normal(-past.sum(), q))
        sample("y", dist.Normal(season, r), obs=y)
        return jnp.concatenate([season[None], past[:-1]]), None

    scan(step, first, y)


def seasonal_scalars(y: Array) -> None:
    """The same of period 4, the register three scalars."""
    q, r = sample("q", dist.HalfNormal(0.5)), sample("r", dist.HalfNormal(1.0))
    first = tuple(sample(f"s{i}", dist.Normal(0.0, 1.0)) for i in range(3))

    def step(past: tuple[Array, ...], y: Array) -> tuple[tuple[Array, ...], None]:
        a, b, c = past
        season = sample("season", dist.Normal(-a - b - c, q))
        sample("y", dist.Normal(season, r), obs=y)
        return (season, a, b), None

    scan(step, first, y)


def ar_register(y: Array, order: int) -> None:
    """A latent autoregression whose past is one array."""
    phi = sample("phi", dist.Normal(jnp.zeros(order), 0.5).to_event(1))
    q, r = sample("q", dist.HalfNormal(1.0)), sample("r", dist.HalfNormal(1.0))
    first = sample("first", dist.Normal(jnp.zeros(order), 1.0).to_event(1))

    def step(past: Array, y: Array) -> tuple[Array, None]:
        x = sample("x", dist.Normal(phi @ past, q))
        sample("y", dist.Normal(x, r), obs=y)
        return jnp.concatenate([x[None], past[:-1]]), None

    scan(step, first, y)
