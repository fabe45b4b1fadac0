"""The same model functions, unmodified, under VMP, SVI, NUTS and Predictive."""

import functools

import jax
import numpy as np
import numpyro
import programs
import pytest
from numpyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO
from numpyro.infer.autoguide import AutoMultivariateNormal

import jopa_ppl as jp

NILE = ((programs.NILE[:20] - 900) / 150).astype(np.float32)
Y, U = (a.astype(np.float32) for a in programs.simulate(5, seed=3))
C = np.array([[1.0, 0.5], [0.0, 1.0]], np.float32)
PROGRAMS = {
    "local level": (programs.local_level, (NILE,), {"T": 20}),
    "lds": (jp.condition(programs.lds, {"u": U}), (Y,), {"T": 5, "C": C})}
COMPARED = {"local level": ("x",), "lds": ("x0", "x", "A", "B")}


@functools.cache
def vmp(name):
    model, args, kwargs = PROGRAMS[name]
    return jp.VMP(model, progress=False).run(*args, **kwargs)


@functools.cache
def nuts(name):
    model, args, kwargs = PROGRAMS[name]
    mcmc = MCMC(NUTS(model, max_tree_depth=7), num_warmup=150, num_samples=300, progress_bar=False)
    mcmc.run(jax.random.key(0), *args, **kwargs)
    return mcmc.get_samples()


@functools.cache
def svi(name):
    model, args, kwargs = PROGRAMS[name]
    guide = AutoMultivariateNormal(model)
    engine = SVI(model, guide, numpyro.optim.Adam(0.02), Trace_ELBO(4))
    found = engine.run(jax.random.key(1), 1200, *args, progress_bar=False, **kwargs)
    return guide.sample_posterior(jax.random.key(2), found.params, sample_shape=(300,))


@pytest.mark.parametrize("engine", [nuts, svi])
@pytest.mark.parametrize("name", ["local level", pytest.param("lds", marks=pytest.mark.slow)])
def test_posterior_means_agree(name, engine):
    """Within half a posterior standard deviation on average, one and a half at most: mean field,
    guides and finite samples differ by that much."""
    draws, posterior = engine(name), vmp(name)
    for site in COMPARED[name]:
        mean, sd = np.mean(draws[site], 0), np.std(draws[site], 0)
        gap = np.abs(posterior.mean(site) - mean) / sd
        assert gap.mean() < 0.5 and gap.max() < 1.5, (site, gap)


@pytest.mark.parametrize("name", ["local level", pytest.param("lds", marks=pytest.mark.slow)])
def test_predictive(name):
    model, args, kwargs = PROGRAMS[name]
    samples = nuts(name)
    keep = {k: v for k, v in samples.items() if k not in ("x", "x0")}
    (old,), blank = args, None
    prior = Predictive(model, num_samples=50)(jax.random.key(3), blank, **kwargs)
    assert prior["y"].shape == (50, *old.shape) and np.isfinite(prior["y"]).all()
    later = Predictive(model, posterior_samples=keep)(jax.random.key(3), blank, **kwargs)
    assert later["y"].shape == (300, *old.shape)
    # VMP's own predictive draws against the states that NUTS found, through the same program.
    states = np.concatenate([samples["x0"][:, None], samples["x"][:, :-1]], 1)
    expected = states @ C.T if name == "lds" else states
    mine = vmp(name).predict(rng_key=jax.random.key(4), num_samples=300)["y"]
    gap = np.abs(np.mean(mine, 0) - expected.mean(0)) / np.std(mine, 0)
    assert mine.shape == (300, *old.shape) and gap.max() < 1.0
