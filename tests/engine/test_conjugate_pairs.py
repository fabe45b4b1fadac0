"""Probabilities and rates whose posterior is known: Beta with counts of successes, Gamma with
Poisson counts; and the same latents where no conjugate update serves."""

from __future__ import annotations

import warnings

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy import stats
from scipy.special import betaln, digamma, gammaln, logsumexp

import jopa_ppl as jp

COUNTS, TRIES = np.array([3.0, 0.0, 5.0, 2.0]), np.array([7.0, 2.0, 5.0, 4.0])


def fitted(model, *args):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return jp.VMP(model, progress=False).run(*args)


# By name: the likelihood, and of counts y, successes, failures and what is left of log p(y).
TALLIES = {
    "bernoulli": (lambda p: dist.Bernoulli(p), lambda y: (y, 1 - y, 0.0 * y)),
    "binomial": (lambda p: dist.Binomial(TRIES, p), lambda y: (
        y, TRIES - y, gammaln(TRIES + 1) - gammaln(y + 1) - gammaln(TRIES - y + 1))),
    "geometric": (lambda p: dist.Geometric(p), lambda y: (1 + 0 * y, y, 0.0 * y)),
    "negative binomial": (lambda p: dist.NegativeBinomialProbs(4.5, p), lambda y: (
        y, 4.5 + 0 * y, gammaln(y + 4.5) - gammaln(y + 1) - gammaln(4.5))),
}


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("name", TALLIES)
def test_counts_of_a_beta_are_exact(name, missing):
    likelihood, tally = TALLIES[name]

    def model(y):
        p = jp.latent("p", dist.Beta(0.5, 0.7))
        with numpyro.plate("n", 4):
            jp.observe("y", likelihood(p), y)

    y = np.minimum(COUNTS, 1) if name == "bernoulli" else COUNTS.copy()
    y[1] = np.nan if missing else y[1]
    yes, no, rest = (np.nansum(x) for x in tally(y))
    a, b = 0.5 + yes, 0.7 + no
    posterior = fitted(model, y)
    assert isinstance(posterior["p"], dist.Beta)
    assert posterior.num_iters == 1
    np.testing.assert_allclose(posterior.free_energy[-1], betaln(0.5, 0.7) - betaln(a, b) - rest,
                               atol=1e-12)
    np.testing.assert_allclose(posterior.mean("p"), a / (a + b), rtol=1e-6)
    np.testing.assert_allclose(posterior.variance("p"), stats.beta(a, b).var(), rtol=1e-6)


@pytest.mark.parametrize("y", [COUNTS, np.zeros(4), np.array([1.0, 0.0, 2.0, np.nan])])
@pytest.mark.parametrize("exposure", [np.array([1.0, 2.0, 0.5, 1.0]), np.ones(4)])
def test_counts_of_a_gamma_are_exact(y, exposure):
    def model(y):
        rate = jp.latent("rate", dist.Gamma(0.5, 0.3))
        with numpyro.plate("n", 4):
            jp.observe("y", dist.Poisson(rate * exposure), y)

    seen = ~np.isnan(y)
    a, b = 0.5 + y[seen].sum(), 0.3 + exposure[seen].sum()
    logs = np.log(np.where(exposure > 0, exposure, 1.0))
    evidence = (0.5 * np.log(0.3) - gammaln(0.5) + gammaln(a) - a * np.log(b)
                + (y * logs - gammaln(y + 1))[seen].sum())
    posterior = fitted(model, y)
    assert isinstance(posterior["rate"], dist.Gamma)
    np.testing.assert_allclose(posterior.free_energy[-1], -evidence, atol=1e-12)
    np.testing.assert_allclose(posterior.mean("rate"), a / b, rtol=1e-6)
    np.testing.assert_allclose(posterior.variance("rate"), a / b**2, rtol=1e-6)


def test_groups_and_their_gathers_are_exact():
    group, y = np.arange(12) % 3, (np.arange(12) % 5 < 2).astype(float)

    def model(y):
        with numpyro.plate("k", 3):
            p = jp.latent("p", dist.Beta(jnp.array([1.0, 2.0, 3.0]), 2.0))
        with numpyro.plate("n", 12):
            jp.observe("y", dist.Bernoulli(p[group]), y)

    a = np.array([1.0, 2.0, 3.0]) + np.bincount(group, y)
    b = 2.0 + np.bincount(group, 1 - y)
    posterior = fitted(model, y)
    np.testing.assert_allclose(posterior.mean("p"), a / (a + b), rtol=1e-6)
    np.testing.assert_allclose(posterior.free_energy[-1],
                               (betaln([1, 2, 3], 2) - betaln(a, b)).sum(), atol=1e-12)


def test_steps_of_a_scan_share_a_rate():
    """A hidden Markov chain with Poisson counts: F, by the chain enumerated at the belief."""
    y = np.array([0.0, 1.0, 7.0, 9.0, 6.0, 1.0, 0.0])
    P = np.array([[0.8, 0.2], [0.3, 0.7]])

    def model(y):
        with numpyro.plate("k", 2):
            rate = jp.latent("rate", dist.Gamma(jnp.array([2.0, 12.0]), 2.0))
        z0 = jp.latent("z0", dist.Categorical(jnp.array([0.5, 0.5])))

        def step(z, y):
            z = jp.latent("z", dist.Categorical(jnp.asarray(P)[z]))
            jp.observe("y", dist.Poisson(rate[z]), y)
            return z, None

        jp.scan(step, z0, y)

    posterior = fitted(model, y)
    belief = posterior["rate"]
    assert isinstance(belief, dist.Gamma)
    a, b = np.asarray(belief.concentration, float), np.asarray(belief.rate, float)
    log_rate = digamma(a) - np.log(b)
    score = y[:, None] * log_rate - a / b - gammaln(y + 1)[:, None]
    forward = np.log([0.5, 0.5])
    for row in score:
        forward = logsumexp(forward[:, None] + np.log(P), 0) + row
    prior = np.array([2.0, 12.0])
    kl = (a - prior) * log_rate - (b - 2.0) * a / b + a * np.log(b) - gammaln(a) - (
        prior * np.log(2.0) - gammaln(prior))
    np.testing.assert_allclose(posterior.free_energy[-1], kl.sum() - logsumexp(forward), atol=1e-5)


def test_mixtures_of_binomials_have_conjugate_parts():
    y = np.array([0.0, 1.0, 5.0, 4.0, 5.0, 1.0])

    def model(y):
        w = jp.latent("w", dist.Beta(2.0, 2.0))
        with numpyro.plate("k", 2):
            p = jp.latent("p", dist.Beta(jnp.array([1.0, 4.0]), jnp.array([4.0, 1.0])))
        with numpyro.plate("n", len(y)):
            z = jp.latent("z", dist.Bernoulli(w))
            jp.observe("y", dist.Binomial(5, p[z]), y)

    posterior = fitted(model, y)
    q = np.asarray(posterior["z"].probs, float)
    shares = np.stack([1 - q, q])
    for name, own, prior in (("w", (q.sum(), (1 - q).sum()), (2.0, 2.0)),
                             ("p", (shares @ y, shares @ (5 - y)),
                              (np.array([1.0, 4.0]), np.array([4.0, 1.0])))):
        belief = posterior[name]
        np.testing.assert_allclose(belief.concentration1, prior[0] + own[0], rtol=1e-3)
        np.testing.assert_allclose(belief.concentration0, prior[1] + own[1], rtol=1e-3)


def moments(grid, log_density):
    weight = np.exp(log_density - log_density.max())
    weight /= weight.sum()
    mean = (grid * weight).sum()
    return mean, np.sqrt(((grid - mean)**2 * weight).sum())


def test_a_beta_that_is_changed_is_read_in_unconstrained_space():
    y = (np.arange(20) % 3 > 0).astype(float)

    def model(y):
        p = jp.latent("p", dist.Beta(2.0, 3.0))
        with numpyro.plate("n", 20):
            jp.observe("y", dist.Bernoulli(0.9 * p), y)

    grid = np.linspace(0, 1, 20001)[1:-1]
    mean, sd = moments(grid, stats.beta(2, 3).logpdf(grid) + y.sum() * np.log(0.9 * grid)
                       + (1 - y).sum() * np.log(1 - 0.9 * grid))
    posterior = fitted(model, y)
    np.testing.assert_allclose(posterior.mean("p"), mean, atol=0.05 * sd)
    np.testing.assert_allclose(posterior.variance("p")**0.5, sd, rtol=0.05)


def test_probabilities_of_a_simplex_may_be_logits():
    y = np.array([0, 1, 1, 2, 1, 1, 0])

    def logits(y):
        p = jp.latent("p", dist.Dirichlet(2.0 * jnp.ones(3)))
        with numpyro.plate("n", len(y)):
            jp.observe("y", dist.Categorical(logits=jnp.log(p)), y)

    exact = dist.Dirichlet(2.0 + jnp.bincount(y, length=3).astype(float))
    posterior = fitted(logits, y)
    np.testing.assert_allclose(posterior.mean("p"), exact.mean, atol=0.005)
    np.testing.assert_allclose(posterior.variance("p"), exact.variance, rtol=0.1)


@pytest.mark.slow
def test_probabilities_of_a_simplex_may_be_in_a_mean():
    y = np.array([0, 1, 1, 2, 1, 1, 0])

    def mean(y):
        p = jp.latent("p", dist.Dirichlet(jnp.array([2.0, 3.0])))
        with numpyro.plate("n", len(y)):
            jp.observe("y", dist.Normal(p @ jnp.array([1.0, 4.0]), 1.0), y)

    grid = np.linspace(0, 1, 20001)[1:-1]
    at = stats.beta(2, 3).logpdf(grid) - 0.5 * ((y[:, None] - 4 + 3 * grid)**2).sum(0)
    found, sd = moments(grid, at)
    posterior = fitted(mean, y.astype(float))
    np.testing.assert_allclose(posterior.mean("p")[0], found, atol=0.05 * sd)


def test_a_beta_is_saved_given_and_learnt_on(tmp_path):
    def model(y):
        p = jp.latent("p", dist.Beta(0.5, 0.7))
        with numpyro.plate("n", 4):
            jp.observe("y", dist.Bernoulli(p), y)

    y = np.minimum(COUNTS, 1)
    first = fitted(model, y)
    first.save(tmp_path / "p")
    loaded = jp.load_posterior(tmp_path / "p")
    assert isinstance(loaded["p"], dist.Beta)
    both = fitted(jp.given(model, loaded, update=True), y)
    np.testing.assert_allclose(both["p"].concentration1, 0.5 + 2 * y.sum(), rtol=1e-6)
    held = fitted(jp.given(model, first), y)
    np.testing.assert_allclose(held["p"].concentration1, 0.5 + y.sum(), rtol=1e-6)
    draws = np.asarray(first.sample(0, 4000)["p"])
    assert abs(draws.mean() - first.mean("p")) < 4 * first.variance("p")**0.5 / 4000**0.5


@pytest.mark.parametrize("likelihood", [
    lambda p: dist.Bernoulli(p), lambda p: dist.Binomial(4, p),
    lambda p: dist.BernoulliLogits(p)])
def test_data_outside_of_a_support_are_refused(likelihood):
    def model(y):
        p = jp.latent("p", dist.Beta(2.0, 2.0))
        with numpyro.plate("n", 3):
            jp.observe("y", likelihood(p), y)

    with pytest.raises(jp.DataError, match=r"site 'y': its data are none(.|\n)*1 values outside"):
        jp.VMP(model, progress=False).run(np.array([1.0, -1.0, 0.0]))


@pytest.mark.parametrize("value", [-1, 3])
@pytest.mark.parametrize("likelihood", [lambda p: dist.Categorical(p),
                                        lambda p: dist.Categorical(logits=jnp.log(p))])
def test_categories_that_do_not_exist_are_refused(likelihood, value):
    def model(y):
        p = jp.latent("p", dist.Dirichlet(jnp.ones(3)))
        with numpyro.plate("n", 3):
            jp.observe("y", likelihood(p), y)

    with pytest.raises(jp.DataError, match=r"site 'y': its data are none(.|\n)*1 values outside"):
        jp.VMP(model, progress=False).run(np.array([1, value, 0]))
