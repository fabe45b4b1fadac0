"""What bends: nonlinear transitions and observations, log-variances, kernels, networks."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from numpyro import factor, plate, sample
from numpyro.contrib.control_flow import cond, scan

RNG = np.random.default_rng(14)
T = 30


def simulate(step, first, noise: float, observe=lambda x: x, seen: float = 0.1) -> np.ndarray:
    """Noisy observations of a noisy path."""
    x, out = np.asarray(first, float), []
    for _ in range(T):
        x = np.asarray(step(x)) + noise * RNG.normal(size=x.shape)
        out.append(observe(x))
    out = np.array(out)
    return out + seen * RNG.normal(size=out.shape)


def swing(x):
    return jnp.stack([x[0] + 0.1 * x[1], x[1] - 0.98 * jnp.sin(x[0])])


def turn(x):
    """A spiral: rotation at a speed that falls with the radius."""
    w = 0.3 / jnp.sqrt(1.0 + x @ x)
    return 0.98 * jnp.stack([x[0] * jnp.cos(w) - x[1] * jnp.sin(w),
                             x[0] * jnp.sin(w) + x[1] * jnp.cos(w)])


def lorenz_step(x):
    return x + 0.02 * jnp.stack([10.0 * (x[1] - x[0]), x[0] * (28.0 - x[2]) - x[1],
                                 x[0] * x[1] - 8 / 3 * x[2]])


def eat(z):
    """Lotka and Volterra's, in logs, so that both stay positive."""
    return z + 0.1 * jnp.stack([0.6 - 0.8 * jnp.exp(z[1]), -0.6 + 0.7 * jnp.exp(z[0])])


def hill(x):
    """The valley and hill of a mountain car: position and velocity."""
    v = x[1] + 0.02 * jnp.cos(3 * x[0])
    return jnp.stack([x[0] + v, v])


ANGLES = simulate(swing, [0.8, 0.0], 0.02, lambda x: np.sin(x[0]))
SPIRAL = simulate(turn, [1.0, 0.0], 0.03)
LORENZ = simulate(lorenz_step, [1.0, 1.0, 20.0], 0.05, seen=0.5)
PREY = simulate(eat, [0.0, 0.0], 0.03)
CAR = simulate(hill, [-0.6, 0.0], 0.01, lambda x: x[:1], seen=0.05)
BEACONS = np.array([[0.0, 3.0], [3.0, 0.0], [-2.0, -2.0]])
RANGES = simulate(lambda x: 0.95 * x + np.array([0.05, 0.0]), [0.0, 0.0], 0.1,
                  lambda x: np.sqrt(((x - BEACONS)**2).sum(-1)), seen=0.1)
BENDS = simulate(lambda x: 0.9 * x, 1.0, 0.4, lambda x: np.exp(0.5 * x), seen=0.2)
CURVE = np.linspace(-2.0, 2.0, 40)
WIGGLE = np.sin(2 * CURVE) + 0.2 * RNG.normal(size=40)
LABELS = (RNG.random(40) < 1 / (1 + np.exp(-3 * np.sin(2 * CURVE)))).astype(float)
IN = np.tanh(RNG.normal(size=(4, 2)))
OUT = RNG.normal(size=(2, 4)) * 0.3


def pendulum_ekf(y: Array) -> None:
    """The angle seen through its sine."""
    def step(x: Array, y: Array) -> tuple[Array, None]:
        x = sample("x", dist.Normal(swing(x), jnp.array([0.02, 0.05])).to_event(1))
        sample("y", dist.Normal(jnp.sin(x[0]), 0.1), obs=y)
        return x, None

    first = sample("x0", dist.Normal(jnp.array([0.8, 0.0]), 0.2).to_event(1))
    scan(step, first, y)


def spiral(y: Array) -> None:
    def step(x: Array, y: Array) -> tuple[Array, None]:
        x = sample("x", dist.Normal(turn(x), 0.03).to_event(1))
        sample("y", dist.Normal(x, 0.1).to_event(1), obs=y)
        return x, None

    scan(step, sample("x0", dist.Normal(jnp.array([1.0, 0.0]), 0.3).to_event(1)), y)


def network_transition(y: Array) -> None:
    """Dynamics by a small network of constant weights."""
    def step(x: Array, y: Array) -> tuple[Array, None]:
        x = sample("x", dist.Normal(0.9 * x + OUT @ jnp.tanh(IN @ x), 0.1).to_event(1))
        sample("y", dist.Normal(x, 0.1).to_event(1), obs=y)
        return x, None

    scan(step, sample("x0", dist.Normal(jnp.zeros(2), 1.0).to_event(1)), y)


def lorenz(y: Array) -> None:
    s = sample("s", dist.HalfNormal(1.0))

    def step(x: Array, y: Array) -> tuple[Array, None]:
        x = sample("x", dist.Normal(lorenz_step(x), 0.1).to_event(1))
        sample("y", dist.Normal(x, s).to_event(1), obs=y)
        return x, None

    scan(step, sample("x0", dist.Normal(jnp.array([1.0, 1.0, 20.0]), 1.0).to_event(1)), y)


def lotka_volterra(y: Array) -> None:
    """Rates known, both noises learnt."""
    q, r = sample("q", dist.LogNormal(-3.0, 0.5)), sample("r", dist.LogNormal(-2.0, 0.5))

    def step(z: Array, y: Array) -> tuple[Array, None]:
        z = sample("z", dist.Normal(eat(z), q).to_event(1))
        sample("y", dist.Normal(z, r).to_event(1), obs=y)
        return z, None

    scan(step, sample("z0", dist.Normal(jnp.zeros(2), 0.5).to_event(1)), y)


def lotka_volterra_rates(y: Array) -> None:
    """Rates latent as well, positive."""
    a, b = sample("a", dist.LogNormal(-0.5, 0.5)), sample("b", dist.LogNormal(-0.5, 0.5))
    r = sample("r", dist.LogNormal(-2.0, 0.5))

    def step(z: Array, y: Array) -> tuple[Array, None]:
        rate = jnp.stack([a - 0.8 * jnp.exp(z[1]), -b + 0.7 * jnp.exp(z[0])])
        z = sample("z", dist.Normal(z + 0.1 * rate, 0.05).to_event(1))
        sample("y", dist.Normal(z, r).to_event(1), obs=y)
        return z, None

    scan(step, sample("z0", dist.Normal(jnp.zeros(2), 0.5).to_event(1)), y)


def mountain_car(y: Array) -> None:
    def step(x: Array, y: Array) -> tuple[Array, None]:
        x = sample("x", dist.Normal(hill(x), 0.01).to_event(1))
        sample("y", dist.Normal(x[:1], 0.05).to_event(1), obs=y)
        return x, None

    scan(step, sample("x0", dist.Normal(jnp.array([-0.6, 0.0]), 0.1).to_event(1)), y)


def sensor_fusion(y: Array) -> None:
    """Distances to three beacons, their noise unknown."""
    s = sample("s", dist.HalfNormal(0.5))

    def step(x: Array, y: Array) -> tuple[Array, None]:
        x = sample("x", dist.Normal(x, 0.15).to_event(1))
        distance = jnp.sqrt(jnp.sum((x - BEACONS)**2, -1))
        sample("y", dist.Normal(distance, s).to_event(1), obs=y)
        return x, None

    scan(step, sample("x0", dist.Normal(jnp.zeros(2), 0.5).to_event(1)), y)


def cvi(y: Array, learnt: bool) -> None:
    """An exponential of the state is what is seen."""
    s = sample("s", dist.HalfNormal(0.5)) if learnt else 0.2

    def step(x: Array, y: Array) -> tuple[Array, None]:
        x = sample("x", dist.Normal(0.9 * x, 0.4))
        sample("y", dist.Normal(jnp.exp(0.5 * x), s), obs=y)
        return x, None

    scan(step, sample("x0", dist.Normal(0.0, 1.0)), y)


def running_mean(y: Array) -> None:
    """A carry that is no latent: the mean of what was drawn so far."""
    def step(carry: tuple[Array, Array], y: Array) -> tuple[tuple[Array, Array], None]:
        mean, n = carry
        x = sample("x", dist.Normal(mean, 1.0))
        sample("y", dist.Normal(x, 0.3), obs=y)
        return (mean + (x - mean) / (n + 1), n + 1), None

    scan(step, (jnp.zeros(()), jnp.ones(())), y)


def lognormal_states(y: Array) -> None:
    """States that are LogNormal, each of the one before."""
    def step(x: Array, y: Array) -> tuple[Array, None]:
        x = sample("x", dist.LogNormal(jnp.log(x), 0.2))
        sample("y", dist.Normal(x, 0.2), obs=y)
        return x, None

    scan(step, sample("x0", dist.LogNormal(0.0, 0.5)), y)


def promoted(length: int) -> None:
    """Each step sees the same number."""
    def step(x: Array, _: None) -> tuple[Array, None]:
        x = sample("x", dist.Normal(x, 1.0))
        sample("y", dist.Normal(x, 1.0), obs=1.0)
        return x, None

    scan(step, 0.0, None, length=length)


def conditional(y: Array) -> None:
    """A branch chosen by a latent coin's side."""
    z = sample("z", dist.Normal(0.0, 1.0))
    cond(y[0] > 0, lambda _: sample("x", dist.Normal(z, 1.0)),
         lambda _: sample("x", dist.Normal(-z, 1.0)), None)
    sample("y", dist.Normal(z, 1.0).expand([len(y)]).to_event(1), obs=y)


def funnel() -> None:
    """The log variance of nine, no data at all."""
    y = sample("y", dist.Normal(0.0, 3.0))
    sample("x", dist.Normal(jnp.zeros(9), jnp.exp(y / 2)).to_event(1))


def small_funnel() -> None:
    """A funnel that a mean field can hold."""
    y = sample("y", dist.Normal(0.0, 0.7))
    sample("x", dist.Normal(0.0, jnp.exp(y / 2)))


def banana() -> None:
    """An arbitrary density, given by a factor."""
    x = sample("x", dist.Normal(0.0, 1.0))
    z = sample("z", dist.Normal(0.0, 3.0))
    factor("bent", -2.0 * (z - x**2)**2)


def bnn(x: Array, y: Array) -> None:
    """One hidden layer of three, the noise's precision unknown."""
    w = sample("w", dist.Normal(jnp.zeros(3), 1.0).to_event(1))
    b = sample("b", dist.Normal(jnp.zeros(3), 1.0).to_event(1))
    v = sample("v", dist.Normal(jnp.zeros(3), 1.0).to_event(1))
    prec = sample("prec", dist.Gamma(3.0, 1.0))
    with plate("n", len(y)):
        sample("y", dist.Normal(jnp.tanh(x[:, None] * w + b) @ v, 1 / jnp.sqrt(prec)), obs=y)


def bnn_classes(x: Array, y: Array) -> None:
    w = sample("w", dist.Normal(jnp.zeros(3), 1.0).to_event(1))
    b = sample("b", dist.Normal(jnp.zeros(3), 1.0).to_event(1))
    v = sample("v", dist.Normal(jnp.zeros(3), 1.0).to_event(1))
    with plate("n", len(y)):
        sample("y", dist.Bernoulli(logits=jnp.tanh(x[:, None] * w + b) @ v), obs=y)


def kernel(x: Array, amplitude: Array | float, length: Array | float, jitter: Array | float):
    return (amplitude * jnp.exp(-0.5 * ((x[:, None] - x) / length)**2)
            + jitter * jnp.eye(len(x)))


def gp(x: Array, y: Array) -> None:
    """All of a kernel's parameters unknown, the function integrated out."""
    k = sample("k", dist.LogNormal(0.0, 1.0))
    length = sample("length", dist.LogNormal(0.0, 1.0))
    noise = sample("noise", dist.LogNormal(-2.0, 1.0))
    sample("y", dist.MultivariateNormal(0.0, kernel(x, k, length, noise)), obs=y)


def gp_amplitude(x: Array, y: Array) -> None:
    """The amplitude alone, the function latent."""
    k = sample("k", dist.Gamma(2.0, 2.0))
    f = sample("f", dist.MultivariateNormal(0.0, kernel(x, 1.0, 0.6, 1e-4)))
    sample("y", dist.Normal(jnp.sqrt(k) * f, 0.2).to_event(1), obs=y)


def gp_classes(x: Array, y: Array) -> None:
    f = sample("f", dist.MultivariateNormal(0.0, kernel(x, 2.0, 0.6, 1e-3)))
    with plate("n", len(y)):
        sample("y", dist.Bernoulli(logits=f), obs=y)


def hsgp(x: Array, y: Array) -> None:
    """A Hilbert-space Gaussian process of eight functions, its kernel's parameters unknown."""
    k, length = sample("k", dist.HalfNormal(1.0)), sample("length", dist.LogNormal(-0.5, 0.3))
    noise = sample("noise", dist.HalfNormal(0.5))
    rate = jnp.arange(1, 9) * jnp.pi / 6
    basis = jnp.sin((x[:, None] + 3) * rate) / jnp.sqrt(3.0)
    beta = sample("beta", dist.Normal(jnp.zeros(8), 1.0).to_event(1))
    spectrum = k * jnp.sqrt(length) * jnp.exp(-0.25 * (length * rate)**2) * (2 * jnp.pi)**0.25
    with plate("n", len(y)):
        sample("y", dist.Normal(basis @ (spectrum * beta), noise), obs=y)
