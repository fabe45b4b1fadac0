"""Chains of discrete latents that others hang on: survival and recapture, switching dynamics."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from numpyro import plate, sample
from numpyro.contrib.control_flow import scan

from .hidden import MOVE, STATES, STICKY, T

RNG = np.random.default_rng(17)
ALIVE = np.cumprod(RNG.random((6, 15)) < 0.8, 0)
CAUGHT = (ALIVE * (RNG.random((6, 15)) < 0.6)).astype(float)
SWINGS = [1.0]
for _t in range(T - 1):
    SWINGS.append((0.95 if STATES[_t] == 0 else -0.7) * SWINGS[-1] + 0.2 * RNG.normal())
SWINGS = np.array(SWINGS)
BLURRED = SWINGS + 0.1 * RNG.normal(size=T)
TURNS = np.stack([BLURRED, np.roll(BLURRED, 1)], -1)
SEX = np.arange(15) % 2


def survival(caught: Array) -> None:
    """One rate of survival, one of recapture."""
    phi = sample("phi", dist.Uniform(0.0, 1.0))
    rho = sample("rho", dist.Uniform(0.0, 1.0))
    count = caught.shape[1]

    def step(z: Array, y: Array) -> tuple[Array, None]:
        with plate("animals", count):
            z = sample("z", dist.Bernoulli(phi * z))
            sample("y", dist.Bernoulli(rho * z), obs=y)
        return z, None

    scan(step, jnp.ones(count, int), caught)


def survival_where(caught: Array) -> None:
    """The same by a table of probabilities: dead stay dead and are not seen."""
    phi = sample("phi", dist.Beta(1.0, 1.0))
    rho = sample("rho", dist.Beta(1.0, 1.0))
    count = caught.shape[1]

    def step(z: Array, y: Array) -> tuple[Array, None]:
        with plate("animals", count):
            z = sample("z", dist.Bernoulli(jnp.where(z == 1, phi, 1e-6)))
            sample("y", dist.Bernoulli(jnp.where(z == 1, rho, 1e-6)), obs=y)
        return z, None

    scan(step, jnp.ones(count, int), caught)


def survival_by_time(caught: Array) -> None:
    """Survival of its own at every step."""
    phi = sample("phi", dist.Uniform(0.0, 1.0).expand([len(caught)]).to_event(1))
    rho = sample("rho", dist.Uniform(0.0, 1.0))
    count = caught.shape[1]

    def step(z: Array, now: tuple[Array, Array]) -> tuple[Array, None]:
        phi, y = now
        with plate("animals", count):
            z = sample("z", dist.Bernoulli(phi * z))
            sample("y", dist.Bernoulli(rho * z), obs=y)
        return z, None

    scan(step, jnp.ones(count, int), (phi, caught))


def survival_random(caught: Array) -> None:
    """Logits of survival drawn at each step around a common mean."""
    mean = sample("mean", dist.Normal(1.0, 1.0))
    sd = sample("sd", dist.HalfNormal(1.0))
    rho = sample("rho", dist.Uniform(0.0, 1.0))
    count = caught.shape[1]

    def step(z: Array, y: Array) -> tuple[Array, None]:
        logit = sample("logit", dist.Normal(mean, sd))
        with plate("animals", count):
            z = sample("z", dist.Bernoulli(jax.nn.sigmoid(logit) * z))
            sample("y", dist.Bernoulli(rho * z), obs=y)
        return z, None

    scan(step, jnp.ones(count, int), caught)


def survival_by_animal(caught: Array) -> None:
    """Logits of survival drawn for each animal."""
    mean = sample("mean", dist.Normal(1.0, 1.0))
    sd = sample("sd", dist.HalfNormal(1.0))
    rho = sample("rho", dist.Uniform(0.0, 1.0))
    count = caught.shape[1]
    with plate("animals", count):
        logit = sample("logit", dist.Normal(mean, sd))

    def step(z: Array, y: Array) -> tuple[Array, None]:
        with plate("animals", count):
            z = sample("z", dist.Bernoulli(jax.nn.sigmoid(logit) * z))
            sample("y", dist.Bernoulli(rho * z), obs=y)
        return z, None

    scan(step, jnp.ones(count, int), caught)


def survival_by_group(group: Array, caught: Array) -> None:
    """Survival by sex, and by step."""
    phi = sample("phi", dist.Uniform(0.0, 1.0).expand([2]).to_event(1))
    rho = sample("rho", dist.Uniform(0.0, 1.0))
    count = caught.shape[1]

    def step(z: Array, y: Array) -> tuple[Array, None]:
        with plate("animals", count):
            z = sample("z", dist.Bernoulli(phi[group] * z))
            sample("y", dist.Bernoulli(rho * z), obs=y)
        return z, None

    scan(step, jnp.ones(count, int), caught)


def switching(y: Array) -> None:
    """Linear dynamics chosen by a Markov chain, the state seen with noise."""
    with plate("states", 2):
        move = sample("move", dist.Dirichlet(STICKY))
        a = sample("a", dist.Normal(jnp.array([0.9, -0.5]), 0.5))
    tau = sample("tau", dist.Gamma(2.0, 0.1))

    def step(carry: tuple[Array, Array], y: Array) -> tuple[tuple[Array, Array], None]:
        z, x = carry
        z = sample("z", dist.Categorical(move[z]))
        x = sample("x", dist.Normal(a[z] * x, 1 / jnp.sqrt(tau)))
        sample("y", dist.Normal(x, 0.1), obs=y)
        return (z, x), None

    first = sample("z0", dist.Categorical(jnp.ones(2) / 2)), sample("x0", dist.Normal(0.0, 1.0))
    scan(step, first, y)


def switching_known(y: Array) -> None:
    """Its parameters known."""
    def step(carry: tuple[Array, Array], y: Array) -> tuple[tuple[Array, Array], None]:
        z, x = carry
        z = sample("z", dist.Categorical(jnp.asarray(MOVE)[z]))
        x = sample("x", dist.Normal(jnp.array([0.95, -0.7])[z] * x, 0.2))
        sample("y", dist.Normal(x, 0.1), obs=y)
        return (z, x), None

    scan(step, (0, sample("x0", dist.Normal(0.0, 1.0))), y)


def switching_vectors(y: Array) -> None:
    """A matrix of dynamics for each state, loadings unknown."""
    with plate("states", 2):
        move = sample("move", dist.Dirichlet(STICKY))
        A = sample("A", dist.Normal(jnp.stack([0.9 * jnp.eye(2), -0.5 * jnp.eye(2)]), 0.3
                                    ).to_event(2))
    C = sample("C", dist.Normal(jnp.eye(2), 0.5).to_event(2))
    tau = sample("tau", dist.Gamma(jnp.full(2, 4.0), 0.5).to_event(1))

    def step(carry: tuple[Array, Array], y: Array) -> tuple[tuple[Array, Array], None]:
        z, x = carry
        z = sample("z", dist.Categorical(move[z]))
        x = sample("x", dist.Normal(A[z] @ x, 0.3).to_event(1))
        sample("y", dist.Normal(C @ x, 1 / jnp.sqrt(tau)).to_event(1), obs=y)
        return (z, x), None

    scan(step, (0, sample("x0", dist.Normal(jnp.zeros(2), 1.0).to_event(1))), y)


def recurrent(y: Array) -> None:
    """The next regime depends on where the state is."""
    w = sample("w", dist.Normal(2.0, 1.0))

    def step(carry: tuple[Array, Array], y: Array) -> tuple[tuple[Array, Array], None]:
        z, x = carry
        z = sample("z", dist.Bernoulli(logits=w * x))
        x = sample("x", dist.Normal(jnp.array([0.9, -0.7])[z] * x, 0.2))
        sample("y", dist.Normal(x, 0.1), obs=y)
        return (z, x), None

    scan(step, (0, sample("x0", dist.Normal(0.0, 1.0))), y)


def acted(action: Array, y: Array) -> None:
    """Rooms that lead to each other as the action says; what is seen hints at the room."""
    lead = jnp.array([[[0.9, 0.1, 0.0], [0.1, 0.9, 0.0], [0.0, 0.1, 0.9]],
                      [[0.1, 0.9, 0.0], [0.0, 0.1, 0.9], [0.0, 0.0, 1.0]]])

    def step(z: Array, now: tuple[Array, Array]) -> tuple[Array, None]:
        a, y = now
        z = sample("z", dist.Categorical(lead[a, z]))
        sample("y", dist.Categorical(jnp.array([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1],
                                                [0.2, 0.2, 0.6]])[z]), obs=y)
        return z, None

    scan(step, 0, (action, y))


def maze(cue: Array) -> None:
    """Two moves in a maze of four places, actions latent, the reward's side hinted at."""
    side = sample("side", dist.Bernoulli(0.5))
    sample("cue", dist.Bernoulli(0.1 + 0.8 * side), obs=cue)
    lead = jnp.asarray(np.stack([np.roll(np.eye(4), k, 1) for k in range(3)]) * 0.94 + 0.015)

    def step(z: Array, _: None) -> tuple[Array, None]:
        a = sample("a", dist.Categorical(jnp.ones(3) / 3))
        z = sample("z", dist.Categorical(lead[a, z]))
        sample("reward", dist.Bernoulli(jnp.array([0.1, 0.2, 0.2, 0.2])[z]
                                        + 0.7 * side * (z == 3)), obs=1)
        return z, None

    scan(step, 0, None, length=3)
