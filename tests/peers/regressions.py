"""Regressions and hierarchies as people write them: priors on standard deviations, not on
precisions; several blocks; gathers."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from numpyro import deterministic, plate, sample

RNG = np.random.default_rng(11)
N = 40
X = RNG.normal(size=(N, 5))
A, M = X[:, 0], X[:, 1]
DIVORCE = 0.3 + 0.8 * A - 0.4 * M + 0.5 * RNG.normal(size=N)
SPREAD = RNG.uniform(0.2, 0.6, N)
MEASURED = DIVORCE + SPREAD * RNG.normal(size=N)
SPARSE = 2.0 * X[:, 0] - 1.5 * X[:, 2] + 0.4 * RNG.normal(size=N)
TAIL = 0.5 + 1.2 * A + 0.3 * RNG.standard_t(3, size=N)
PATIENT = np.repeat(np.arange(8), 6)
WEEK = np.tile(np.linspace(-1.0, 1.0, 6), 8)
SMOKES = RNG.integers(0, 3, 8)
LEVEL = np.array([0.0, 0.7, -0.8])[SMOKES]
FVC = ((LEVEL + 0.3 * RNG.normal(size=8))[PATIENT] + 0.3 * RNG.normal(size=48)
       + (-0.7 + 0.3 * RNG.normal(size=8))[PATIENT] * WEEK)
SCHOOLS = np.array([28.0, 8, -3, 7, -1, 1, 18, 12])
ERRORS = np.array([15.0, 10, 16, 11, 9, 11, 10, 18])
HOLES = np.where(RNG.random(N) < 0.2, np.nan, A)
BEFORE = RNG.normal(1.0, 1.0, (50, 1))
CUPED = np.concatenate([BEFORE, 0.5 + 0.8 * BEFORE + 0.4 * RNG.normal(size=(50, 1))], 1)
DECAY_X = np.linspace(0.0, 4.0, 40)
DECAY = 2.0 * np.exp(-0.8 * DECAY_X) + 0.5 + 0.1 * RNG.normal(size=40)
SQUARE = RNG.normal(size=(30, 2)) @ np.array([[1.0, 0.0], [0.6, 0.5]])


def minipyro(data: Array) -> None:
    """A location and a scale, both unknown, the data broadcast against one site."""
    loc = sample("loc", dist.Normal(0.0, 1.0))
    scale = sample("scale", dist.LogNormal(0.0, 1.0))
    sample("obs", dist.Normal(loc, scale), obs=data)


def minipyro_plated(data: Array) -> None:
    loc = sample("loc", dist.Normal(0.0, 1.0))
    scale = sample("scale", dist.LogNormal(0.0, 1.0))
    with plate("data", len(data)):
        sample("obs", dist.Normal(loc, scale), obs=data)


def divorce_age(age: Array, y: Array) -> None:
    """One regressor under an Exponential sd."""
    a = sample("a", dist.Normal(0.0, 0.2))
    b = sample("b", dist.Normal(0.0, 0.5))
    sigma = sample("sigma", dist.Exponential(1.0))
    with plate("n", len(y)):
        sample("y", dist.Normal(a + b * age, sigma), obs=y)


def divorce_both(age: Array, marriage: Array, y: Array) -> None:
    """Two regressors, and the mean kept as a deterministic site."""
    a = sample("a", dist.Normal(0.0, 0.2))
    b = sample("b", dist.Normal(0.0, 0.5))
    c = sample("c", dist.Normal(0.0, 0.5))
    sigma = sample("sigma", dist.Exponential(1.0))
    mu = deterministic("mu", a + b * age + c * marriage)
    with plate("n", len(y)):
        sample("y", dist.Normal(mu, sigma), obs=y)


def divorce_centred(y: Array) -> None:
    """The intercept alone."""
    a = sample("a", dist.Normal(0.0, 0.2))
    sigma = sample("sigma", dist.Exponential(1.0))
    with plate("n", len(y)):
        sample("y", dist.Normal(a, sigma), obs=y)


def measurement_error(age: Array, spread: Array, y: Array) -> None:
    """True rates are latent, seen with known errors."""
    a = sample("a", dist.Normal(0.0, 0.2))
    b = sample("b", dist.Normal(0.0, 0.5))
    sigma = sample("sigma", dist.Exponential(1.0))
    with plate("n", len(y)):
        true = sample("true", dist.Normal(a + b * age, sigma))
        sample("y", dist.Normal(true, spread), obs=y)


def hierarchical(patient: Array, week: Array, y: Array) -> None:
    """Intercepts and slopes by patient under HalfNormal sds."""
    mu_a = sample("mu_a", dist.Normal(0.0, 2.0))
    sd_a = sample("sd_a", dist.HalfNormal(2.0))
    mu_b = sample("mu_b", dist.Normal(0.0, 2.0))
    sd_b = sample("sd_b", dist.HalfNormal(2.0))
    sigma = sample("sigma", dist.HalfNormal(2.0))
    with plate("patients", 8):
        a = sample("a", dist.Normal(mu_a, sd_a))
        b = sample("b", dist.Normal(mu_b, sd_b))
    with plate("n", len(y)):
        sample("y", dist.Normal(a[patient] + b[patient] * week, sigma), obs=y)


def smoking(smokes: Array, patient: Array, week: Array, y: Array) -> None:
    """A hierarchy of three floors: levels over patients over visits."""
    top_mu = sample("top_mu", dist.Normal(0.0, 2.0))
    top_sd = sample("top_sd", dist.HalfNormal(2.0))
    slope = sample("slope", dist.Normal(0.0, 2.0))
    sd_a = sample("sd_a", dist.HalfNormal(2.0))
    sigma = sample("sigma", dist.HalfNormal(2.0))
    with plate("levels", 3):
        level = sample("level", dist.Normal(top_mu, top_sd))
    with plate("patients", 8):
        a = sample("a", dist.Normal(level[smokes], sd_a))
    with plate("n", len(y)):
        sample("y", dist.Normal(a[patient] + slope * week, sigma), obs=y)


def eight_schools(sigma: Array, y: Array) -> None:
    mu = sample("mu", dist.Normal(0.0, 5.0))
    tau = sample("tau", dist.HalfCauchy(5.0))
    with plate("schools", 8):
        theta = sample("theta", dist.Normal(mu, tau))
        sample("y", dist.Normal(theta, sigma), obs=y)


def eight_schools_noncentred(sigma: Array, y: Array) -> None:
    """The same, a product of latents in the mean."""
    mu = sample("mu", dist.Normal(0.0, 5.0))
    tau = sample("tau", dist.HalfCauchy(5.0))
    with plate("schools", 8):
        base = sample("base", dist.Normal(0.0, 1.0))
        sample("y", dist.Normal(mu + tau * base, sigma), obs=y)


def horseshoe(x: Array, y: Array) -> None:
    """Global and local HalfCauchy scales, as shipped."""
    local = sample("local", dist.HalfCauchy(jnp.ones(x.shape[1])))
    tau = sample("tau", dist.HalfCauchy(1.0))
    base = sample("base", dist.Normal(jnp.zeros(x.shape[1]), 1.0))
    prec = sample("prec", dist.Gamma(3.0, 1.0))
    beta = deterministic("beta", tau * local * base)
    with plate("n", len(y)):
        sample("y", dist.Normal(x @ beta, 1 / jnp.sqrt(prec)), obs=y)


def horseshoe_centred(x: Array, y: Array) -> None:
    local = sample("local", dist.HalfCauchy(jnp.ones(x.shape[1])))
    tau = sample("tau", dist.HalfCauchy(1.0))
    prec = sample("prec", dist.Gamma(3.0, 1.0))
    beta = sample("beta", dist.Normal(0.0, tau * local))
    with plate("n", len(y)):
        sample("y", dist.Normal(x @ beta, 1 / jnp.sqrt(prec)), obs=y)


def horseshoe_bernoulli(x: Array, y: Array) -> None:
    local = sample("local", dist.HalfCauchy(jnp.ones(x.shape[1])))
    tau = sample("tau", dist.HalfCauchy(1.0))
    beta = sample("beta", dist.Normal(0.0, tau * local))
    with plate("n", len(y)):
        sample("y", dist.Bernoulli(logits=x @ beta), obs=y)


def robust(x: Array, y: Array) -> None:
    """Student-t noise, its degrees of freedom and scale unknown."""
    a = sample("a", dist.Normal(0.0, 2.0))
    b = sample("b", dist.Normal(0.0, 2.0))
    nu = sample("nu", dist.Gamma(2.0, 0.1))
    s = sample("s", dist.HalfCauchy(1.0))
    with plate("n", len(y)):
        sample("y", dist.StudentT(nu, a + b * x, s), obs=y)


def heteroscedastic(x: Array, y: Array) -> None:
    """A log scale that is a line of its own."""
    a = sample("a", dist.Normal(0.0, 2.0))
    b = sample("b", dist.Normal(0.0, 2.0))
    c = sample("c", dist.Normal(0.0, 1.0))
    d = sample("d", dist.Normal(0.0, 1.0))
    with plate("n", len(y)):
        sample("y", dist.Normal(a + b * x, jnp.exp(c + d * x)), obs=y)


def cuped(data: Array) -> None:
    """Before and after by one bivariate Gaussian of LKJ correlation."""
    mu = sample("mu", dist.Normal(jnp.zeros(2), 2.0))
    sd = sample("sd", dist.HalfNormal(jnp.ones(2)))
    root = sample("root", dist.LKJCholesky(2, 1.0))
    with plate("n", len(data)):
        sample("y", dist.MultivariateNormal(mu, scale_tril=sd[:, None] * root), obs=data)


def cuped_factored(before: Array, after: Array) -> None:
    """The same by regressing after on before."""
    mu = sample("mu", dist.Normal(0.0, 2.0))
    sd = sample("sd", dist.HalfNormal(1.0))
    lift = sample("lift", dist.Normal(0.0, 1.0))
    slope = sample("slope", dist.Normal(0.0, 1.0))
    noise = sample("noise", dist.HalfNormal(1.0))
    with plate("n", len(before)):
        sample("before", dist.Normal(mu, sd), obs=before)
        sample("after", dist.Normal(mu + lift + slope * (before - mu), noise), obs=after)


def imputation(x: Array, y: Array) -> None:
    """Missing regressors are latents of their own, as `jp.condition` with NaN makes them."""
    mu = sample("mu", dist.Normal(0.0, 1.0))
    sd = sample("sd", dist.HalfNormal(1.0))
    a = sample("a", dist.Normal(0.0, 1.0))
    b = sample("b", dist.Normal(0.0, 1.0))
    sigma = sample("sigma", dist.Exponential(1.0))
    with plate("n", len(y)):
        x = sample("x", dist.Normal(mu, sd), obs=x)
        sample("y", dist.Normal(a + b * x, sigma), obs=y)


def imputation_in_place(x: Array, y: Array) -> None:
    """What is missing of a regressor drawn and put in its place, the whole observed: as shipped."""
    gone = np.flatnonzero(np.isnan(x))
    mu = sample("mu", dist.Normal(0.0, 1.0))
    sd = sample("sd", dist.HalfNormal(1.0))
    a = sample("a", dist.Normal(0.0, 1.0))
    b = sample("b", dist.Normal(0.0, 1.0))
    sigma = sample("sigma", dist.Exponential(1.0))
    drawn = sample("drawn", dist.Normal(mu, sd).expand([len(gone)]).mask(False))
    x = jnp.asarray(x).at[gone].set(drawn)
    sample("x", dist.Normal(mu, sd).expand([len(y)]), obs=x)
    sample("y", dist.Normal(a + b * x, sigma), obs=y)


def consensus(x: Array, y: Array) -> None:
    """A curve of three parameters, nonlinear in one."""
    a = sample("a", dist.Normal(0.0, 3.0))
    r = sample("r", dist.HalfNormal(2.0))
    o = sample("o", dist.Normal(0.0, 1.0))
    s = sample("s", dist.HalfNormal(0.5))
    with plate("n", len(y)):
        sample("y", dist.Normal(a * jnp.exp(-r * x) + o, s), obs=y)


def inverse_wishart(y: Array) -> None:
    """A covariance's own prior, as RxInfer has it."""
    mu = sample("mu", dist.Normal(jnp.zeros(2), 3.0).to_event(1))
    cov = sample("cov", dist.InverseWishart(4.0, scale_matrix=jnp.eye(2)))
    with plate("n", len(y)):
        sample("y", dist.MultivariateNormal(mu, covariance_matrix=cov), obs=y)


def inverse_gamma(y: Array) -> None:
    """Its univariate kind, on each of two variances."""
    with plate("d", 2):
        mu = sample("mu", dist.Normal(0.0, 3.0))
        v = sample("v", dist.InverseGamma(2.0, 1.0))
        with plate("n", len(y)):
            sample("y", dist.Normal(mu, jnp.sqrt(v)), obs=y)


def effects(x: Array, y: Array) -> None:
    """Group effects under one HalfNormal sd, by plates and a vectorised regression."""
    w = sample("w", dist.Normal(0.0, 1.0).expand([x.shape[1]]).to_event(1))
    s = sample("s", dist.HalfNormal(1.0))
    with plate("n", len(y)):
        sample("y", dist.Normal(jnp.sum(x * w, -1), s), obs=y)
