"""Importance correction against quadrature over the parameters, with a Kalman filter in NumPy."""

from __future__ import annotations

import jax
import numpy as np
import numpyro.distributions as dist
import programs
import pytest
from scipy.stats import gamma, norm

import jopa_ppl as jp
from jopa_ppl.infer.importance import correct, psis

Y = ((programs.NILE[:20] - 900) / 150).astype(np.float32)


def log_evidence(level: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """log p(y | level, noise) of the local level model, elementwise."""
    mean, var, total = np.zeros_like(level), 9 * np.ones_like(level), np.zeros_like(level)
    for y in Y.astype(float):
        spread = var + 1 / noise
        total -= 0.5 * ((y - mean)**2 / spread + np.log(2 * np.pi * spread))
        gain = var / spread
        mean, var = mean + gain * (y - mean), var * (1 - gain) + 1 / level
    return total


@pytest.fixture(scope="module")
def exact():
    """Means and sds of (level, noise), and log p(y), by a sum over a fine grid."""
    at = np.linspace(0.01, 14, 700)
    level, noise = np.meshgrid(at, at, indexing="ij")
    log_p = log_evidence(level, noise) + sum(gamma.logpdf(x, 2, scale=0.5) for x in (level, noise))
    p = np.exp(log_p - log_p.max())
    w = p / p.sum()
    means = [np.sum(w * x) for x in (level, noise)]
    sds = [np.sqrt(np.sum(w * (x - m)**2)) for x, m in zip((level, noise), means)]
    return means, sds, float(log_p.max() + np.log(p.sum() * (at[1] - at[0])**2))


@pytest.fixture(scope="module")
def posterior():
    return jp.VMP(programs.local_level, tol=1e-9).run(Y, T=20)


def test_correction_restores_what_mean_field_loses(exact, posterior):
    means, sds, evidence = exact
    found = correct(posterior, 4000, temper=0.5)
    assert found.pareto_k < 0.7 and found.ess > 500
    assert abs(found.log_evidence - evidence) < 0.05
    assert -posterior.free_energy[-1] < evidence - 0.2          # mean field: a strict bound
    narrow = []
    for name, mean, sd in zip(("level", "noise"), means, sds):
        x = np.asarray(found.draws[name])
        m = np.sum(found.weights * x)
        assert abs(m - mean) < 0.1 * sd
        assert abs(np.sqrt(np.sum(found.weights * (x - m)**2)) / sd - 1) < 0.1
        narrow.append(float(posterior.variance(name))**0.5 / sd)
    assert min(narrow) < 0.8                                    # and beliefs that are too narrow


def test_draws_of_equal_weight(posterior):
    found = correct(posterior, 4000)
    draws = found.resample(jax.random.key(1), 2000)
    assert draws["x"].shape == (2000, 20)
    mean = np.sum(found.weights * np.asarray(found.draws["level"]))
    assert abs(np.mean(draws["level"]) - mean) < 0.1
    np.testing.assert_allclose(found.weights.sum(), 1)


def test_weights_that_cannot_be_trusted_are_told():
    rng = np.random.default_rng(0)
    assert psis(rng.normal(size=2000) * 0.1)[1] < 0.5
    assert psis(2 * rng.exponential(size=2000))[1] > 0.7        # a Pareto tail of index 1/2


@pytest.mark.parametrize("count", [1, 2, 8, 24, 25, 60, 1000])
def test_few_weights_and_equal_ones_come_back_as_they_are(count):
    alike, k = psis(np.full(count, -3.0))
    np.testing.assert_allclose(alike, 1 / count)
    assert k == (np.inf if count < 25 else 0.0)
    log = np.random.default_rng(1).normal(size=count)
    weights, k = psis(log)
    assert abs(weights.sum() - 1) < 1e-12 and (k == np.inf) == (count < 25)
    if count < 25:
        np.testing.assert_allclose(weights, np.exp(log) / np.exp(log).sum())


@pytest.mark.slow
def test_programs_that_it_does_not_fit():
    case = programs.cases()["hierarchy"]
    posterior = jp.VMP(case.model).run(*case.args, **case.kwargs)
    case = programs.cases()["factor analysis"]
    with pytest.raises(jp.StructureError, match=r"corrected exactly(.|\n)*way out"):
        correct(jp.VMP(case.model).run(*case.args, **case.kwargs))
    assert correct(posterior, 200).pareto_k < 1                 # one tree instead of one chain


SEEN = np.array([0.9, 1.4, 0.2, 0.7, 1.9])


def drifting(y, z):
    """Levels around a[0]; a[1] is to be data; nothing tells of c but the walk's own precision."""
    a = jp.latent("a", dist.MultivariateNormal(np.zeros(2), np.array([[1.0, 0.6], [0.6, 1.0]])))
    tau = jp.latent("tau", dist.Gamma(6.0, 3.0))
    c = jp.latent("c", dist.Normal(0.0, tau**-0.5))
    jp.observe("z", dist.Normal(c, 1.0), z)

    def step(x, y):
        jp.observe("y", dist.Normal(x + a[0], 0.5), y)
        return jp.latent("x", dist.Normal(x, tau**-0.5)), None

    jp.scan(step, jp.latent("x0", dist.Normal(0.0, 0.3)), y)


def test_parameters_that_are_data_in_part_or_that_nothing_reaches():
    known, mean, var = 0.5, 0.3, 0.64                    # a[0] given a[1] ~ N(mean, var)
    at = np.linspace(0.02, 12, 600)
    steps = np.minimum.outer(np.arange(5), np.arange(5))
    spread = 0.09 + steps / at[:, None, None] + 0.25 * np.eye(5)
    whole, gap = spread + var, SEEN - mean
    log_p = (gamma.logpdf(at, 6, scale=1 / 3) - 0.5 * np.linalg.slogdet(2 * np.pi * whole)[1]
             - 0.5 * np.einsum("i,nij,j->n", gap, np.linalg.inv(whole), gap))
    p = np.exp(log_p)
    evidence = np.log(p.sum() * (at[1] - at[0])) + norm.logpdf(known)
    p /= p.sum()
    level = p @ (mean + var * (np.linalg.inv(whole) @ gap).sum(-1))

    model = jp.condition(drifting, {"a": np.array([np.nan, known])})
    posterior = jp.VMP(model, tol=1e-9, progress=False).run(SEEN, np.nan * np.ones(()))
    found = correct(posterior, 4000, temper=0.2)
    expect = lambda x: np.sum(found.weights * np.asarray(x))
    assert found.pareto_k < 0.7 and found.ess > 1000
    np.testing.assert_allclose(found.draws["a"][:, 1], known, rtol=1e-6)
    assert abs(found.log_evidence - evidence) < 0.03
    assert abs(expect(found.draws["a"][:, 0]) - level) < 0.05
    assert abs(expect(found.draws["tau"]) - p @ at) < 0.05
    assert abs(expect(found.draws["c"])) < 0.05
    assert abs(expect(found.draws["c"]**2) / (p @ (1 / at)) - 1) < 0.1
