"""Chains of discrete latents: hidden Markov models by kind of emission, several chains abreast."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from numpyro import plate, sample
from numpyro.contrib.control_flow import scan

RNG = np.random.default_rng(16)
T = 24
MOVE = np.array([[0.9, 0.1], [0.2, 0.8]])
STICKY = jnp.array([[8.0, 1.0], [1.0, 8.0]])
STATES = (np.arange(T) // 6) % 2
REALS = np.array([-1.0, 1.5])[STATES] + 0.5 * RNG.normal(size=T)
PAIRS = np.array([[-1.0, 0.5], [1.5, -0.5]])[STATES] + 0.5 * RNG.normal(size=(T, 2))
BITS = (RNG.random((T, 2)) < np.array([[0.9, 0.2], [0.2, 0.7]])[STATES]).astype(float)
WORDS = np.array([RNG.choice(3, p=[[0.7, 0.2, 0.1], [0.1, 0.2, 0.7]][s]) for s in STATES])
EVENTS = RNG.poisson(np.array([2.0, 8.0])[STATES]).astype(float)
WAITS = RNG.gamma(2.0, np.array([0.5, 2.0])[STATES])
BAGS = np.array([RNG.multinomial(5, [[0.7, 0.2, 0.1], [0.1, 0.2, 0.7]][s])
                 for s in STATES]).astype(float)
DRIVE = RNG.normal(size=T)
DRIVEN = np.array([1.5, -1.0])[STATES] * DRIVE + 0.3 * RNG.normal(size=T)
CHOICES = (RNG.random(T) < 1 / (1 + np.exp(-np.array([3.0, -3.0])[STATES] * DRIVE))).astype(float)
SUMS = np.array([0.0, 2.0])[STATES] + np.array([0.0, 0.7])[np.arange(T) % 2] \
    + 0.3 * RNG.normal(size=T)
TONES = (RNG.random((8, 3, 2)) < 0.5).astype(float)       # time, sequences, tones


def gaussian(y: Array) -> None:
    """Means and precisions by state, rows of the transitions Dirichlet."""
    with plate("states", 2):
        move = sample("move", dist.Dirichlet(STICKY))
        mu = sample("mu", dist.Normal(jnp.array([-1.0, 1.0]), 1.0))
        tau = sample("tau", dist.Gamma(2.0, 1.0))

    def step(z: Array, y: Array) -> tuple[Array, None]:
        z = sample("z", dist.Categorical(move[z]))
        sample("y", dist.Normal(mu[z], 1 / jnp.sqrt(tau[z])), obs=y)
        return z, None

    scan(step, sample("z0", dist.Categorical(jnp.ones(2) / 2)), y)


def gaussian_known(y: Array) -> None:
    """All parameters known: what a filter and a smoother are tested on."""
    def step(z: Array, y: Array) -> tuple[Array, None]:
        z = sample("z", dist.Categorical(jnp.asarray(MOVE)[z]))
        sample("y", dist.Normal(jnp.array([-1.0, 1.5])[z], 0.5), obs=y)
        return z, None

    scan(step, 0, y)


def gaussian_full(y: Array) -> None:
    """Vectors with a Wishart precision by state."""
    with plate("states", 2):
        move = sample("move", dist.Dirichlet(STICKY))
        mu = sample("mu", dist.Normal(jnp.zeros(2), 2.0).to_event(1))
        W = sample("W", dist.Wishart(4.0, rate_matrix=jnp.eye(2)))

    def step(z: Array, y: Array) -> tuple[Array, None]:
        z = sample("z", dist.Categorical(move[z]))
        sample("y", dist.MultivariateNormal(mu[z], precision_matrix=W[z]), obs=y)
        return z, None

    scan(step, 0, y)


def gaussian_shared(y: Array) -> None:
    """Vectors with one precision for all states."""
    move = sample("move", dist.Dirichlet(STICKY))
    mu = sample("mu", dist.Normal(jnp.zeros((2, 2)), 2.0).to_event(1))
    W = sample("W", dist.Wishart(4.0, rate_matrix=jnp.eye(2)))

    def step(z: Array, y: Array) -> tuple[Array, None]:
        z = sample("z", dist.Categorical(move[z]))
        sample("y", dist.MultivariateNormal(mu[z], precision_matrix=W), obs=y)
        return z, None

    scan(step, 0, y)


def gaussian_diagonal(y: Array) -> None:
    """Vectors with HalfNormal sds by state and coordinate."""
    with plate("states", 2):
        move = sample("move", dist.Dirichlet(STICKY))
        mu = sample("mu", dist.Normal(jnp.zeros(2), 2.0).to_event(1))
        sd = sample("sd", dist.HalfNormal(jnp.ones(2)).to_event(1))

    def step(z: Array, y: Array) -> tuple[Array, None]:
        z = sample("z", dist.Categorical(move[z]))
        sample("y", dist.Normal(mu[z], sd[z]).to_event(1), obs=y)
        return z, None

    scan(step, 0, y)


def bernoulli(y: Array) -> None:
    with plate("states", 2):
        move = sample("move", dist.Dirichlet(STICKY))
        p = sample("p", dist.Beta(jnp.ones(2), 1.0).to_event(1))

    def step(z: Array, y: Array) -> tuple[Array, None]:
        z = sample("z", dist.Categorical(move[z]))
        sample("y", dist.Bernoulli(p[z]).to_event(1), obs=y)
        return z, None

    scan(step, 0, y)


def categorical(y: Array) -> None:
    with plate("states", 2):
        move = sample("move", dist.Dirichlet(STICKY))
        emit = sample("emit", dist.Dirichlet(jnp.ones(3)))

    def step(z: Array, y: Array) -> tuple[Array, None]:
        z = sample("z", dist.Categorical(move[z]))
        sample("y", dist.Categorical(emit[z]), obs=y)
        return z, None

    scan(step, 0, y)


def multinomial(y: Array) -> None:
    with plate("states", 2):
        move = sample("move", dist.Dirichlet(STICKY))
        emit = sample("emit", dist.Dirichlet(jnp.ones(3)))

    def step(z: Array, y: Array) -> tuple[Array, None]:
        z = sample("z", dist.Categorical(move[z]))
        sample("y", dist.Multinomial(5, emit[z]), obs=y)
        return z, None

    scan(step, 0, y)


def poisson(y: Array) -> None:
    with plate("states", 2):
        move = sample("move", dist.Dirichlet(STICKY))
        rate = sample("rate", dist.Gamma(jnp.array([2.0, 8.0]), 1.0))

    def step(z: Array, y: Array) -> tuple[Array, None]:
        z = sample("z", dist.Categorical(move[z]))
        sample("y", dist.Poisson(rate[z]), obs=y)
        return z, None

    scan(step, 0, y)


def gamma(y: Array) -> None:
    """Positive values, shapes and rates by state."""
    with plate("states", 2):
        move = sample("move", dist.Dirichlet(STICKY))
        shape = sample("shape", dist.Gamma(4.0, 2.0))
        rate = sample("rate", dist.Gamma(jnp.array([4.0, 2.0]), 2.0))

    def step(z: Array, y: Array) -> tuple[Array, None]:
        z = sample("z", dist.Categorical(move[z]))
        sample("y", dist.Gamma(shape[z], rate[z]), obs=y)
        return z, None

    scan(step, 0, y)


def autoregressive(y: Array) -> None:
    """Each state has its own autoregression of what was seen."""
    with plate("states", 2):
        move = sample("move", dist.Dirichlet(STICKY))
        a = sample("a", dist.Normal(jnp.array([0.9, -0.5]), 0.5))
        tau = sample("tau", dist.Gamma(2.0, 0.2))

    def step(carry: tuple[Array, Array], y: Array) -> tuple[tuple[Array, Array], None]:
        z, last = carry
        z = sample("z", dist.Categorical(move[z]))
        sample("y", dist.Normal(a[z] * last, 1 / jnp.sqrt(tau[z])), obs=y)
        return (z, y), None

    scan(step, (0, y[0]), y[1:])


def linear_regression(x: Array, y: Array) -> None:
    with plate("states", 2):
        move = sample("move", dist.Dirichlet(STICKY))
        w = sample("w", dist.Normal(jnp.array([1.0, -1.0]), 1.0))
        tau = sample("tau", dist.Gamma(2.0, 0.5))

    def step(z: Array, xy: tuple[Array, Array]) -> tuple[Array, None]:
        x, y = xy
        z = sample("z", dist.Categorical(move[z]))
        sample("y", dist.Normal(w[z] * x, 1 / jnp.sqrt(tau[z])), obs=y)
        return z, None

    scan(step, 0, (x, y))


def logistic_regression(x: Array, y: Array) -> None:
    with plate("states", 2):
        move = sample("move", dist.Dirichlet(STICKY))
        w = sample("w", dist.Normal(jnp.array([2.0, -2.0]), 1.0))

    def step(z: Array, xy: tuple[Array, Array]) -> tuple[Array, None]:
        x, y = xy
        z = sample("z", dist.Categorical(move[z]))
        sample("y", dist.Bernoulli(logits=w[z] * x), obs=y)
        return z, None

    scan(step, 0, (x, y))


def mixture_emissions(y: Array) -> None:
    """Each state emits a mixture: a second discrete latent within the step."""
    with plate("states", 2):
        move = sample("move", dist.Dirichlet(STICKY))
        share = sample("share", dist.Dirichlet(jnp.ones(2)))
        mu = sample("mu", dist.Normal(jnp.array([[-1.0, 0.0], [1.0, 2.0]]), 0.5).to_event(1))

    def step(z: Array, y: Array) -> tuple[Array, None]:
        z = sample("z", dist.Categorical(move[z]))
        c = sample("c", dist.Categorical(share[z]))
        sample("y", dist.Normal(mu[z, c], 0.5), obs=y)
        return z, None

    scan(step, 0, y)


def semi_supervised(states: Array, words: Array, more: Array) -> None:
    """States known for one text, hidden for another of the same tables."""
    with plate("states", 2):
        move = sample("move", dist.Dirichlet(jnp.ones(2)))
        emit = sample("emit", dist.Dirichlet(jnp.ones(3)))
    with plate("moves", len(states) - 1):
        sample("s", dist.Categorical(move[states[:-1]]), obs=states[1:])
    with plate("words", len(words)):
        sample("w", dist.Categorical(emit[states]), obs=words)

    def step(z: Array, y: Array) -> tuple[Array, None]:
        z = sample("z", dist.Categorical(move[z]))
        sample("y", dist.Categorical(emit[z]), obs=y)
        return z, None

    scan(step, 0, more)


def tones(y: Array) -> None:
    """Sequences side by side, several Bernoulli tones of each."""
    with plate("states", 2):
        move = sample("move", dist.Dirichlet(STICKY))
        p = sample("p", dist.Beta(jnp.array([1.0, 2.0]), 1.0).to_event(1))

    def step(z: Array, y: Array) -> tuple[Array, None]:
        with plate("sequences", y.shape[0]):
            z = sample("z", dist.Categorical(move[z]))
            sample("y", dist.Bernoulli(p[z]).to_event(1), obs=y)
        return z, None

    scan(step, jnp.zeros(y.shape[1], int), y)


def tones_again(y: Array) -> None:
    """A tone that depends on the one before it as well, data both."""
    with plate("states", 2):
        move = sample("move", dist.Dirichlet(STICKY))
        p = sample("p", dist.Beta(jnp.ones(2), jnp.array([1.0, 2.0])).to_event(1))

    def step(carry: tuple[Array, Array], y: Array) -> tuple[tuple[Array, Array], None]:
        z, last = carry
        z = sample("z", dist.Categorical(move[z]))
        sample("y", dist.Bernoulli(p[z, last.astype(int)]), obs=y)
        return (z, y), None

    scan(step, (0, y[0]), y[1:])


def factorial(y: Array) -> None:
    """Two chains of their own, the tone's probability looked up by both."""
    with plate("states", 2):
        move = sample("move", dist.Dirichlet(STICKY))
        swap = sample("swap", dist.Dirichlet(STICKY))
        p = sample("p", dist.Beta(jnp.array([1.0, 3.0]), 2.0).to_event(1))

    def step(carry: tuple[Array, Array], y: Array) -> tuple[tuple[Array, Array], None]:
        w, z = carry
        w = sample("w", dist.Categorical(swap[w]))
        z = sample("z", dist.Categorical(move[z]))
        sample("y", dist.Bernoulli(p[w, z]), obs=y)
        return (w, z), None

    scan(step, (0, 0), y)


def coupled(y: Array) -> None:
    """The moves of the second chain depend on where the first one is."""
    with plate("states", 2):
        swap = sample("swap", dist.Dirichlet(STICKY))
        move = sample("move", dist.Dirichlet(jnp.stack([STICKY, STICKY])).to_event(1))
        p = sample("p", dist.Beta(jnp.array([1.0, 3.0]), 2.0).to_event(1))

    def step(carry: tuple[Array, Array], y: Array) -> tuple[tuple[Array, Array], None]:
        w, z = carry
        w = sample("w", dist.Categorical(swap[w]))
        z = sample("z", dist.Categorical(move[w, z]))
        sample("y", dist.Bernoulli(p[w, z]), obs=y)
        return (w, z), None

    scan(step, (0, 0), y)


def second_order(y: Array) -> None:
    """A state that depends on the last two."""
    move = sample("move", dist.Dirichlet(jnp.ones((2, 2, 2)) + 3 * jnp.eye(2)))
    p = sample("p", dist.Beta(jnp.array([1.0, 3.0]), jnp.array([3.0, 1.0])))

    def step(carry: tuple[Array, Array], y: Array) -> tuple[tuple[Array, Array], None]:
        old, z = carry
        new = sample("z", dist.Categorical(move[old, z]))
        sample("y", dist.Bernoulli(p[new]), obs=y)
        return (z, new), None

    scan(step, (0, 0), y)


def additive(y: Array) -> None:
    """Two chains whose levels add up."""
    mu = sample("mu", dist.Normal(jnp.array([0.0, 2.0]), 0.5))
    nu = sample("nu", dist.Normal(jnp.array([0.0, 0.7]), 0.3))

    def step(carry: tuple[Array, Array], y: Array) -> tuple[tuple[Array, Array], None]:
        w, z = carry
        w = sample("w", dist.Categorical(jnp.array([[0.3, 0.7], [0.7, 0.3]])[w]))
        z = sample("z", dist.Categorical(jnp.asarray(MOVE)[z]))
        sample("y", dist.Normal(mu[z] + nu[w], 0.3), obs=y)
        return (w, z), None

    scan(step, (0, 0), y)
