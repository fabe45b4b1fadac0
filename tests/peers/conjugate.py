"""Models without time that are conjugate as shipped: regressions, precisions, factors, kernels."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from numpyro import plate, sample
from numpyro.handlers import reparam
from numpyro.infer.reparam import LocScaleReparam

import jopa_ppl as jp

from .regressions import A, X

RNG = np.random.default_rng(19)
LINE = 0.5 + 1.2 * A + 0.4 * RNG.normal(size=40)
TWO = X[:, :3] @ RNG.normal(size=(3, 2)) + 0.3 * RNG.normal(size=(40, 2))
POINTS = np.linspace(-2.0, 2.0, 30)
WAVE = np.sin(2 * POINTS) + 0.2 * RNG.normal(size=30)
LOADED = RNG.normal(size=(20, 2)) @ RNG.normal(size=(2, 4)) + 0.3 * RNG.normal(size=(20, 4))
LOADED[3, 2] = LOADED[7, 0] = np.nan
SYSTEM = RNG.normal(size=(4, 4)) + 3 * np.eye(4)
RIGHT = SYSTEM @ np.array([1.0, -1.0, 0.5, 2.0])
GAPPED = np.where(RNG.random(40) < 0.2, np.nan, LINE)


def quickstart(y: Array) -> None:
    mu = sample("mu", dist.Normal(0.0, 1000.0))
    tau = sample("tau", dist.Gamma(1e-2, 1e-2))
    with plate("n", len(y)):
        sample("y", dist.Normal(mu, 1 / jnp.sqrt(tau)), obs=y)


def regression(x: Array, y: Array) -> None:
    w = sample("w", dist.Normal(jnp.zeros(2), 10.0).to_event(1))
    tau = sample("tau", dist.Gamma(1e-2, 1e-2))
    with plate("n", len(y)):
        sample("y", dist.Normal(w[0] + w[1] * x, tau**-0.5), obs=y)


def outputs(x: Array, y: Array) -> None:
    """Several outputs under one Wishart precision."""
    w = sample("w", dist.Normal(jnp.zeros((3, 2)), 2.0).to_event(2))
    W = sample("W", dist.Wishart(4.0, rate_matrix=jnp.eye(2)))
    with plate("n", len(y)):
        sample("y", dist.MultivariateNormal(x @ w, precision_matrix=W), obs=y)


def weights_known_noise(x: Array, y: Array) -> None:
    """The noise known: one Gaussian."""
    w = sample("w", dist.MultivariateNormal(jnp.zeros(3), 4.0 * jnp.eye(3)))
    with plate("n", len(y)):
        sample("y", dist.Normal(x @ w, 0.3), obs=y)


def scale_mixture(x: Array, y: Array) -> None:
    """Student-t noise as a Gamma weight of each datum."""
    w = sample("w", dist.Normal(jnp.zeros(2), 3.0).to_event(1))
    tau = sample("tau", dist.Gamma(2.0, 0.5))
    with plate("n", len(y)):
        weight = sample("weight", dist.Gamma(2.0, 2.0))
        sample("y", dist.Normal(w[0] + w[1] * x, 1 / jnp.sqrt(tau * weight)), obs=y)


def gaussian_wishart(y: Array) -> None:
    mu = sample("mu", dist.MultivariateNormal(jnp.zeros(2), 10.0 * jnp.eye(2)))
    W = sample("W", dist.Wishart(3.0, rate_matrix=jnp.eye(2)))
    with plate("n", len(y)):
        sample("y", dist.MultivariateNormal(mu, precision_matrix=W), obs=y)


def gamma_gamma(y: Array) -> None:
    """A Gamma rate under a Gamma precision."""
    rate = sample("rate", dist.Gamma(2.0, 1.0))
    tau = sample("tau", dist.Gamma(3.0, rate))
    with plate("n", len(y)):
        sample("y", dist.Normal(0.0, 1 / jnp.sqrt(tau)), obs=y)


def components(y: Array) -> None:
    """Principal components: loadings under a precision each, entries missing."""
    p = y.shape[1]
    with plate("k", 2):
        alpha = sample("alpha", dist.Gamma(1.0, 1.0))
        L = sample("L", dist.Normal(jnp.zeros(p), (1 / jnp.sqrt(alpha))[..., None]).to_event(1))
    tau = sample("tau", dist.Gamma(2.0, 1.0))
    with plate("n", len(y)):
        z = sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
        jp.observe("y", dist.Normal(z @ L, 1 / jnp.sqrt(tau)).to_event(1), y)


def kernel_known(x: Array, y: Array) -> None:
    """A function of a known kernel, the noise learnt."""
    K = jnp.exp(-0.5 * ((x[:, None] - x) / 0.6)**2) + 1e-3 * jnp.eye(len(x))
    f = sample("f", dist.MultivariateNormal(0.0, K))
    tau = sample("tau", dist.Gamma(2.0, 0.1))
    sample("y", dist.Normal(f, 1 / jnp.sqrt(tau)).to_event(1), obs=y)


def functions_known(x: Array, y: Array) -> None:
    """Eight functions of a Hilbert-space process, their spectrum known."""
    rate = jnp.arange(1, 9) * jnp.pi / 6
    basis = jnp.sin((x[:, None] + 3) * rate) / jnp.sqrt(3.0)
    with plate("m", 8):
        beta = sample("beta", dist.Normal(0.0, 1.0))
    tau = sample("tau", dist.Gamma(2.0, 0.1))
    with plate("n", len(y)):
        sample("y", dist.Normal(basis @ (jnp.exp(-0.1 * rate**2) * beta), tau**-0.5), obs=y)


@reparam(config={"theta": LocScaleReparam(0)})
def schools(sigma: Array, y: Array) -> None:
    """The scale between schools known, decentred by NumPyro's own handler."""
    mu = sample("mu", dist.Normal(0.0, 5.0))
    with plate("schools", 8):
        theta = sample("theta", dist.Normal(mu, 6.0))
        sample("y", dist.Normal(theta, sigma), obs=y)


def two_vectors(y: Array) -> None:
    """Two vectors that data see added up only: their posterior is a ridge."""
    a = sample("a", dist.MultivariateNormal(jnp.zeros(2), 10.0 * jnp.eye(2)))
    b = sample("b", dist.MultivariateNormal(jnp.ones(2), jnp.array([[1.0, 0.9], [0.9, 1.0]])))
    with plate("n", len(y)):
        sample("y", dist.MultivariateNormal(a + b, 0.25 * jnp.eye(2)), obs=y)


def linear_system(right: Array) -> None:
    """The solution of a linear system, seen through it almost without noise."""
    x = sample("x", dist.Normal(jnp.zeros(4), 10.0).to_event(1))
    sample("right", dist.Normal(jnp.asarray(SYSTEM) @ x, 1e-3).to_event(1), obs=right)


def gaps(x: Array, y: Array) -> None:
    """Data that are missing in part."""
    w = sample("w", dist.Normal(jnp.zeros(2), 3.0).to_event(1))
    tau = sample("tau", dist.Gamma(2.0, 0.5))
    with plate("n", len(y)):
        jp.observe("y", dist.Normal(w[0] + w[1] * x, 1 / jnp.sqrt(tau)), y)


