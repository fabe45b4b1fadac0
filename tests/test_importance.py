"""Importance correction against quadrature over the parameters, with a Kalman filter in NumPy."""

from __future__ import annotations

import jax
import numpy as np
import programs
import pytest
from scipy.stats import gamma

import jopa_ppl as jp
from jopa_ppl.importance import correct, psis

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


@pytest.mark.slow
def test_programs_that_it_does_not_fit():
    case = programs.cases()["hierarchy"]
    posterior = jp.VMP(case.model).run(*case.args, **case.kwargs)
    case = programs.cases()["factor analysis"]
    with pytest.raises(jp.StructureError, match=r"corrected exactly(.|\n)*way out"):
        correct(jp.VMP(case.model).run(*case.args, **case.kwargs))
    assert correct(posterior, 200).pareto_k < 1                 # one tree instead of one chain
