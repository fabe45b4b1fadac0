"""Further models: handlers, kernels of products, small networks, robots, singular noise."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from numpyro import handlers, plate, sample
from numpyro.contrib.control_flow import scan

import jopa_ppl as jp

from .curved import simulate
from .judges import Model
from .kalman import F

RNG = np.random.default_rng(21)
SQUARES = RNG.normal(size=(25, 3))
PRODUCT = SQUARES[:, 0] + 0.8 * SQUARES[:, 0] * SQUARES[:, 1] + 0.3 * RNG.normal(size=25)
POINTS = RNG.uniform(-2.0, 2.0, 12)
VALUES = np.sin(2 * POINTS) + 0.1 * RNG.normal(size=12)
RING = np.sin(2 * np.pi * np.arange(16) / 16) + 0.3 * RNG.normal(size=16)
NOTES = (RNG.random((15, 3)) < 0.4).astype(float)
IN, OUT, EMIT = (0.7 * RNG.normal(size=s) for s in ((4, 2), (2, 4), (3, 2)))


def hunt(z):
    """Lotka and Volterra's step of several pairs, in logs: (.., 2)."""
    rates = jnp.stack([0.6 - 0.8 * jnp.exp(z[..., 1]), -0.6 + 0.7 * jnp.exp(z[..., 0])], -1)
    return z + 0.1 * rates


def reach(q):
    """Where the end of an arm of two links is."""
    return jnp.stack([jnp.cos(q[0]) + 0.7 * jnp.cos(q[0] + q[1]),
                      jnp.sin(q[0]) + 0.7 * jnp.sin(q[0] + q[1])])


def hover(x):
    """A drone in the plane, its thrust constant: place, velocity, tilt."""
    return x + 0.1 * jnp.stack([x[2], x[3], jnp.sin(x[4]), jnp.cos(x[4]) - 1.0, -0.5 * x[4]])


PAIRS = simulate(hunt, np.array([[0.0, 0.0], [0.5, -0.3]]), 0.03)
ARM = simulate(lambda q: q + np.array([0.05, 0.03]), [0.3, 0.5], 0.02, reach, 0.05)
DRONE = simulate(hover, [0.0, 0.0, 0.3, 0.0, 0.2], 0.02, lambda x: x[:2], 0.05)


def divorce_marriage(marriage: Array, y: Array) -> None:
    a = sample("a", dist.Normal(0.0, 0.2))
    b = sample("b", dist.Normal(0.0, 0.5))
    sigma = sample("sigma", dist.Exponential(1.0))
    with plate("n", len(y)):
        sample("y", dist.Normal(a + b * marriage, sigma), obs=y)


def _line(x: Array, y: Array) -> None:
    a = sample("a", dist.Normal(0.0, 1.0))
    b = sample("b", dist.Normal(0.0, 1.0))
    s = sample("s", dist.HalfNormal(1.0))
    with plate("n", len(y)):
        sample("y", dist.Normal(a + b * x, s), obs=y)


def scoped(x: Array, y: Array) -> None:
    """One program twice in another, its sites renamed."""
    with handlers.scope(prefix="left"):
        _line(x, y)
    with handlers.scope(prefix="right"):
        _line(-x, y)


def scaled(x: Array, y: Array) -> None:
    """Data counted for half."""
    a = sample("a", dist.Normal(0.0, 1.0))
    s = sample("s", dist.HalfNormal(1.0))
    with plate("n", len(y)), handlers.scale(scale=0.5):
        sample("y", dist.Normal(a * x, s), obs=y)


def _chained(x: Array, y: Array) -> None:
    a = sample("a", dist.Normal(0.0, 1.0))
    b = sample("b", dist.Normal(a, 1.0))
    s = sample("s", dist.HalfNormal(1.0))
    with plate("n", len(y)):
        sample("y", dist.Normal(a + b * x, s), obs=y)


intervened = handlers.do(_chained, data={"b": 0.8})


def sparse(x: Array, y: Array) -> None:
    """A kernel of all pairwise products, its scales by coordinate under HalfCauchy priors."""
    local = sample("local", dist.HalfCauchy(jnp.ones(x.shape[1])))
    tau = sample("tau", dist.HalfNormal(1.0))
    pair = sample("pair", dist.HalfNormal(1.0))
    noise = sample("noise", dist.HalfNormal(1.0))
    k = tau * local * x
    gram = k @ k.T
    K = 0.5 * pair**2 * (1 + gram)**2 + gram + noise**2 * jnp.eye(len(y))
    sample("y", dist.MultivariateNormal(0.0, K), obs=y)


def bnn_subsampled(x: Array, y: Array) -> None:
    """A network's weights under one precision, the data a subsample's plate of all of them."""
    prec = sample("prec", dist.Gamma(3.0, 1.0))
    with plate("hidden", 3):
        w = sample("w", dist.Normal(0.0, 1 / jnp.sqrt(prec)))
        b = sample("b", dist.Normal(0.0, 1 / jnp.sqrt(prec)))
        v = sample("v", dist.Normal(0.0, 1 / jnp.sqrt(prec)))
    noise = sample("noise", dist.Gamma(3.0, 0.3))
    with plate("n", len(y), subsample_size=len(y)):
        sample("y", dist.Normal(jax.nn.relu(x[:, None] * w + b) @ v, 1 / jnp.sqrt(noise)), obs=y)


def optimised(x: Array, y: Array) -> None:
    """A function whose maximum is sought: a Matern kernel of unknown parameters."""
    k = sample("k", dist.LogNormal(0.0, 1.0))
    length = sample("length", dist.LogNormal(0.0, 0.5))
    noise = sample("noise", dist.LogNormal(-3.0, 1.0))
    r = jnp.sqrt(5.0) * jnp.sqrt((x[:, None] - x)**2 + 1e-12) / length
    K = k * (1 + r + r**2 / 3) * jnp.exp(-r) + noise * jnp.eye(len(x))
    sample("y", dist.MultivariateNormal(0.0, K), obs=y)


def circulant(y: Array) -> None:
    """A process on a ring."""
    d = jnp.minimum(jnp.arange(16), 16 - jnp.arange(16))
    f = sample("f", dist.CirculantNormal(jnp.zeros(16), jnp.exp(-0.5 * (d / 2.0)**2)
                                         + 1e-2 * (d == 0)))
    sample("y", dist.Normal(f, 0.3).to_event(1), obs=y)


def notes(y: Array) -> None:
    """A deep Markov model whose networks are known: gated transitions, Bernoulli notes."""
    def step(x: Array, y: Array) -> tuple[Array, None]:
        gate = jax.nn.sigmoid(IN[:2] @ x)
        new = gate * (OUT @ jnp.tanh(IN @ x)) + (1 - gate) * x
        x = sample("x", dist.Normal(new, 0.3).to_event(1))
        sample("y", dist.Bernoulli(logits=EMIT @ x).to_event(1), obs=y)
        return x, None

    scan(step, sample("x0", dist.Normal(jnp.zeros(2), 1.0).to_event(1)), y)


def hunters(y: Array) -> None:
    """Several pairs of prey and predator abreast."""
    def step(z: Array, y: Array) -> tuple[Array, None]:
        with plate("pairs", 2):
            z = sample("z", dist.Normal(hunt(z), 0.05).to_event(1))
            sample("y", dist.Normal(z, 0.1).to_event(1), obs=y)
        return z, None

    with plate("pairs", 2):
        first = sample("z0", dist.Normal(jnp.zeros(2), 0.5).to_event(1))
    scan(step, first, y)


def arm(y: Array) -> None:
    """Angles of an arm from where its end is."""
    def step(q: Array, y: Array) -> tuple[Array, None]:
        q = sample("q", dist.Normal(q + jnp.array([0.05, 0.03]), 0.05).to_event(1))
        sample("y", dist.Normal(reach(q), 0.05).to_event(1), obs=y)
        return q, None

    scan(step, sample("q0", dist.Normal(jnp.array([0.3, 0.5]), 0.2).to_event(1)), y)


def drone(y: Array) -> None:
    def step(x: Array, y: Array) -> tuple[Array, None]:
        x = sample("x", dist.Normal(hover(x), 0.02).to_event(1))
        sample("y", dist.Normal(x[:2], 0.05).to_event(1), obs=y)
        return x, None

    scan(step, sample("x0", dist.Normal(jnp.array([0.0, 0.0, 0.3, 0.0, 0.2]), 0.1).to_event(1)),
         y)


def agents(goal: Array) -> None:
    """Two agents that go to each other's place, and keep apart on the way: a penalty each step."""
    def step(x: Array, goal: Array) -> tuple[Array, None]:
        x = sample("x", dist.Normal(x, 0.3).to_event(1))
        gap = jnp.sqrt(jnp.sum((x[:2] - x[2:])**2) + 0.01)
        sample("apart", dist.Bernoulli(logits=6.0 * (gap - 0.5)), obs=1)
        jp.observe("y", dist.Normal(x, 0.05).to_event(1), goal)
        return x, None

    scan(step, sample("x0", dist.Normal(jnp.array([-1.0, 0.1, 1.0, -0.1]), 0.05).to_event(1)), goal)


MEET = np.full((8, 4), np.nan)
MEET[-1] = [1.0, 0.0, -1.0, 0.0]


def singular(y: Array) -> None:
    """Noise in the second of two states alone: a scale of zero."""
    def step(x: Array, y: Array) -> tuple[Array, None]:
        x = sample("x", dist.Normal(jnp.asarray(F) @ x, jnp.array([0.0, 0.3])).to_event(1))
        sample("y", dist.Normal(x[0], 0.3), obs=y)
        return x, None

    scan(step, sample("x0", dist.Normal(jnp.zeros(2), 1.0).to_event(1)), y)


def singular_exact(found: jp.Posterior, _: Model, args: tuple[jax.Array, ...]) -> None:
    """By the shocks: x = L e is linear in what is Gaussian, y = H x + noise."""
    y = np.asarray(args[0])
    rows, G = [], np.concatenate([np.eye(2), np.zeros((2, len(y)))], 1)
    for t in range(len(y)):
        G = F @ G
        G[1, 2 + t] = 0.3
        rows.append(G)
    x = np.array(rows)                                    # states in e, (T, 2, 2 + T)
    H = x[:, 0]
    spread = H @ H.T + 0.09 * np.eye(len(y))
    gain = np.linalg.solve(spread, H).T
    mean = x @ gain @ y
    cov = np.eye(G.shape[1]) - gain @ H
    evidence = -0.5 * (y @ np.linalg.solve(spread, y) + np.linalg.slogdet(2 * np.pi * spread)[1])
    np.testing.assert_allclose(found.free_energy[-1], -evidence, rtol=1e-8)
    np.testing.assert_allclose(found.mean("x"), mean, atol=1e-7)
    np.testing.assert_allclose(found.variance("x"), np.einsum("tij,jk,tik->ti", x, cov, x),
                               rtol=1e-6)


def forgetting(x: Array, y: Array) -> None:
    """Older data count for less, by a power each."""
    w = sample("w", dist.Normal(jnp.zeros(2), 3.0).to_event(1))
    weight = 0.95**jnp.arange(len(y))[::-1]
    with plate("n", len(y)), handlers.scale(scale=weight):
        sample("y", dist.Normal(w[0] + w[1] * x, 0.5), obs=y)


def constrained(wind: Array) -> None:
    """Actions that keep a height above a floor with a probability, as a cheap goal at each step."""
    def step(x: Array, wind: Array) -> tuple[Array, None]:
        u = sample("u", dist.Normal(0.0, 0.5))
        x = sample("x", dist.Normal(x + u + wind, 0.1))
        above = jax.scipy.stats.norm.cdf((x - 1.0) / 0.2)
        sample("above", dist.Bernoulli(probs=above), obs=1)
        return x, None

    scan(step, sample("x0", dist.Normal(0.0, 0.1)), wind)


def student(answers: Array) -> None:
    """Three skills, questions that need one or another of two, or both."""
    a, b, c = (sample(n, dist.Bernoulli(0.5)) for n in "abc")
    needs = (a, b, a * b, 1 - (1 - b) * (1 - c), a * c)
    for i, able in enumerate(needs):
        sample(f"q{i}", dist.Bernoulli(jnp.where(able == 1, 0.9, 0.2)), obs=answers[i])
