"""Counts, coins and choices: conjugate pairs, logits, rates, cut points."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from numpyro import factor, plate, sample

RNG = np.random.default_rng(12)
COINS = (RNG.random(30) < 0.7).astype(float)
LITTERS = RNG.poisson(4.0, 25).astype(float)
BATS = np.full(12, 45.0)
HITS = RNG.binomial(45, RNG.beta(30, 70, 12)).astype(float)
DEPT = np.repeat(np.arange(6), 2)
MALE = np.tile([0.0, 1.0], 6)
APPLIED = RNG.integers(30, 120, 12).astype(float)
ADMITTED = RNG.binomial(APPLIED.astype(int), 1 / (1 + np.exp(-np.linspace(1, -1.5, 6)[DEPT]))
                        ).astype(float)
X = RNG.normal(size=(40, 3))
ETA = X @ np.array([1.2, -0.8, 0.0]) + 0.3
CLASS = (RNG.random(40) < 1 / (1 + np.exp(-ETA))).astype(float)
COUNTS = RNG.poisson(np.exp(0.5 * ETA + 0.5)).astype(float)
TRIALS = RNG.binomial(8, 1 / (1 + np.exp(-ETA))).astype(float)
AGE, AREA, YEAR = (RNG.integers(0, k, 48) for k in (4, 5, 3))
PEOPLE = RNG.integers(200, 900, 48).astype(float)
DEATHS = RNG.binomial(PEOPLE.astype(int), 1 / (1 + np.exp(
    4 - 0.5 * AGE - 0.3 * RNG.normal(size=5)[AREA]))).astype(float)
GRADES = np.digitize(1.5 * X[:, 0] + RNG.logistic(size=40), [-1.0, 0.5, 2.0])
LIFE = RNG.exponential(2.0, 30)
SEEN = LIFE < 3.0
STOPPED = np.minimum(LIFE, 3.0)
SHAPED = RNG.gamma(3.0, 0.5, 40)
ARMS, PULLS = RNG.integers(0, 3, 45), RNG.normal(size=(45, 2))
REWARD = (RNG.random(45) < 1 / (1 + np.exp(-(PULLS * np.array(
    [[1.0, 0], [0, 1], [-1, 1]])[ARMS]).sum(-1)))).astype(float)
LEFT, RIGHT = RNG.integers(0, 6, 40), RNG.integers(0, 6, 40)
WON = (RNG.random(40) < 1 / (1 + np.exp(-(np.linspace(-1, 1, 6)[LEFT]
                                           - np.linspace(-1, 1, 6)[RIGHT])))).astype(float)


def coin_toss(y: Array) -> None:
    theta = sample("theta", dist.Beta(4.0, 8.0))
    with plate("n", len(y)):
        sample("y", dist.Bernoulli(theta), obs=y)


def coin_binomial(y: Array) -> None:
    theta = sample("theta", dist.Beta(4.0, 8.0))
    sample("y", dist.Binomial(30, theta), obs=y)


def litter(y: Array) -> None:
    rate = sample("rate", dist.Gamma(2.0, 0.5))
    with plate("n", len(y)):
        sample("y", dist.Poisson(rate), obs=y)


def litter_unknown_shape(y: Array) -> None:
    """Rates by litter, the shape and rate of their Gamma unknown."""
    shape = sample("shape", dist.Gamma(2.0, 0.5))
    scale = sample("scale", dist.Gamma(2.0, 1.0))
    with plate("n", len(y)):
        rate = sample("rate", dist.Gamma(shape, scale))
        sample("y", dist.Poisson(rate), obs=y)


def fully_pooled(at_bats: Array, hits: Array) -> None:
    phi = sample("phi", dist.Uniform(0.0, 1.0))
    with plate("players", len(hits)):
        sample("hits", dist.Binomial(at_bats.astype(int), phi), obs=hits)


def not_pooled(at_bats: Array, hits: Array) -> None:
    with plate("players", len(hits)):
        phi = sample("phi", dist.Uniform(0.0, 1.0))
        sample("hits", dist.Binomial(at_bats.astype(int), phi), obs=hits)


def partially_pooled(at_bats: Array, hits: Array) -> None:
    """Beta abilities, their mean and concentration unknown."""
    m = sample("m", dist.Uniform(0.0, 1.0))
    kappa = sample("kappa", dist.Pareto(1.0, 1.5))
    with plate("players", len(hits)):
        phi = sample("phi", dist.Beta(m * kappa, (1 - m) * kappa))
        sample("hits", dist.Binomial(at_bats.astype(int), phi), obs=hits)


def pooled_logit(at_bats: Array, hits: Array) -> None:
    loc = sample("loc", dist.Normal(-1.0, 1.0))
    scale = sample("scale", dist.HalfCauchy(1.0))
    with plate("players", len(hits)):
        alpha = sample("alpha", dist.Normal(loc, scale))
        sample("hits", dist.Binomial(at_bats.astype(int), logits=alpha), obs=hits)


def ucbadmit(dept: Array, male: Array, applied: Array, admitted: Array) -> None:
    """Intercepts and slopes by department, correlated as an LKJ has it."""
    a, b = sample("a", dist.Normal(0.0, 1.0)), sample("b", dist.Normal(0.0, 1.0))
    sd = sample("sd", dist.HalfCauchy(jnp.ones(2)))
    root = sample("root", dist.LKJCholesky(2, 2.0))
    with plate("departments", 6):
        effect = sample("effect", dist.MultivariateNormal(
            jnp.stack([a, b]), scale_tril=sd[:, None] * root))
    logits = effect[dept, 0] + effect[dept, 1] * male
    with plate("n", len(admitted)):
        sample("y", dist.Binomial(applied.astype(int), logits=logits), obs=admitted)


def ucbadmit_independent(dept: Array, male: Array, applied: Array, admitted: Array) -> None:
    """The same without the correlation."""
    a, b = sample("a", dist.Normal(0.0, 1.0)), sample("b", dist.Normal(0.0, 1.0))
    sd = sample("sd", dist.HalfCauchy(1.0))
    with plate("departments", 6):
        effect = sample("effect", dist.Normal(a, sd))
    with plate("n", len(admitted)):
        sample("y", dist.Binomial(applied.astype(int), logits=effect[dept] + b * male),
               obs=admitted)


def mortality(age: Array, area: Array, year: Array, people: Array, deaths: Array) -> None:
    """Three effects that cross, each under a HalfNormal sd; walks over age."""
    base = sample("base", dist.Normal(-3.0, 2.0))
    sd_age = sample("sd_age", dist.HalfNormal(1.0))
    sd_area = sample("sd_area", dist.HalfNormal(1.0))
    slope = sample("slope", dist.Normal(0.0, 0.3))
    with plate("ages", 4):
        by_age = sample("by_age", dist.Normal(0.0, sd_age))
    with plate("areas", 5):
        by_area = sample("by_area", dist.Normal(0.0, sd_area))
    with plate("n", len(deaths)):
        logits = base + by_age[age] + by_area[area] + slope * year
        sample("y", dist.Binomial(people.astype(int), logits=logits), obs=deaths)


def logistic(x: Array, y: Array) -> None:
    w = sample("w", dist.Normal(jnp.zeros(x.shape[1]), 1.0))
    b = sample("b", dist.Normal(0.0, 1.0))
    with plate("n", len(y)):
        sample("y", dist.Bernoulli(logits=x @ w + b), obs=y)


def poisson_regression(x: Array, y: Array) -> None:
    w = sample("w", dist.Normal(jnp.zeros(x.shape[1]), 1.0))
    b = sample("b", dist.Normal(0.0, 1.0))
    with plate("n", len(y)):
        sample("y", dist.Poisson(jnp.exp(x @ w + b)), obs=y)


def binomial_regression(x: Array, y: Array) -> None:
    w = sample("w", dist.Normal(jnp.zeros(x.shape[1]), 1.0).to_event(1))
    with plate("n", len(y)):
        sample("y", dist.Binomial(8, logits=x @ w), obs=y)


def multinomial_regression(x: Array, y: Array) -> None:
    w = sample("w", dist.Normal(jnp.zeros((x.shape[1], 4)), 1.0).to_event(2))
    with plate("n", len(y)):
        sample("y", dist.Categorical(logits=x @ w), obs=y)


def bandit(arm: Array, context: Array, reward: Array) -> None:
    """Weights by arm, gathered by the arm that was pulled."""
    with plate("arms", 3):
        w = sample("w", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
    with plate("n", len(reward)):
        sample("y", dist.Bernoulli(logits=jnp.sum(w[arm] * context, -1)), obs=reward)


def skills(left: Array, right: Array, won: Array) -> None:
    """Who beats whom: probit of a difference of skills."""
    sd = sample("sd", dist.HalfNormal(1.0))
    with plate("players", 6):
        skill = sample("skill", dist.Normal(0.0, sd))
    with plate("n", len(won)):
        sample("y", dist.Bernoulli(logits=skill[left] - skill[right]), obs=won)


def ordinal(x: Array, y: Array) -> None:
    """Ordered cut points, given by an ordered vector."""
    b = sample("b", dist.Normal(0.0, 2.0))
    cuts = sample("cuts", dist.TransformedDistribution(
        dist.Normal(jnp.zeros(3), 2.0).to_event(1), dist.transforms.OrderedTransform()))
    with plate("n", len(y)):
        sample("y", dist.OrderedLogistic(b * x, cuts), obs=y)


def censored(time: Array, seen: Array) -> None:
    """Lifetimes cut off at a time: a density where seen, a tail where not."""
    rate = sample("rate", dist.Exponential(1.0))
    with plate("n", len(time)):
        factor("life", jnp.where(seen, jnp.log(rate), 0.0) - rate * time)


def gamma_shape(y: Array) -> None:
    shape = sample("shape", dist.Gamma(2.0, 0.5))
    rate = sample("rate", dist.Gamma(2.0, 0.5))
    with plate("n", len(y)):
        sample("y", dist.Gamma(shape, rate), obs=y)


def truncated(y: Array) -> None:
    """A location seen through a truncation."""
    mu = sample("mu", dist.Normal(0.0, 2.0))
    with plate("n", len(y)):
        sample("y", dist.TruncatedNormal(mu, 1.0, low=0.0), obs=y)
