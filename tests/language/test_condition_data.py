"""Data of jp.condition take the place of obs=, and masked entries of NumPy's arrays are missing."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from fitting import run
from numpy.testing import assert_allclose
from numpyro.infer.util import log_density

import jopa_ppl as jp

Y = np.array([0.3, -1.0, 2.0])
GAP, HOLE = np.array([0.3, np.nan, 2.0]), np.array([[0.0, 1.0], [np.nan, 3.0], [4.0, 5.0]])
COV = np.array([[1.0, 0.5], [0.5, 2.0]])


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def plain(name, fn, obs):
    return numpyro.sample(name, fn, obs=obs)


def plate(y=None, *, sample=jp.observe):
    m = jp.latent("m", dist.Normal(0.0, 2.0))
    weighed = numpyro.handlers.mask(mask=np.array([True, True, False]))
    with jp.plate("n", 3), numpyro.handlers.scale(scale=2.0), weighed:
        sample("y", dist.Normal(m, 1.0), y)


def rows(y=None, *, sample=jp.observe):
    m = jp.latent("m", dist.Normal(jnp.zeros(2), 2.0).to_event(1))
    with jp.plate("n", 3):
        sample("y", dist.MultivariateNormal(m, COV), y)


def walk(y=None, *, T=3, sample=jp.observe):
    def step(x, y):
        x = jp.latent("x", dist.Normal(0.9 * x, 0.5))
        sample("y", dist.Normal(x, 1.0), y)
        return x, None

    jp.scan(step, jp.latent("x0", dist.Normal(0.0, 1.0)), y, length=T)


def counts(y=None, *, sample=jp.observe):
    m = jp.latent("m", dist.Normal(0.0, 1.0))
    with jp.plate("n", 3):
        sample("y", dist.Poisson(jnp.exp(m)), y)


def agree(found, wanted):
    assert found.sites == wanted.sites
    assert_allclose(found.free_energy[-1], wanted.free_energy[-1], rtol=1e-10)
    for site in wanted.sites:
        assert_allclose(found.mean(site), wanted.mean(site), rtol=1e-9, atol=1e-12)
        assert_allclose(found.variance(site), wanted.variance(site), rtol=1e-9, atol=1e-12)


CASES = {"plate": (plate, Y), "rows, gap": (rows, HOLE), "scan, gap": (walk, GAP),
         "scan, short": (walk, Y[:2])}


@pytest.mark.parametrize("sample", [jp.observe, plain], ids=["observe", "sample"])
@pytest.mark.parametrize("case", CASES)
def test_what_obs_holds_counts_no_more(case, sample):
    """As if obs= were left out: by VMP, and in the densities that SVI and NUTS go by."""
    model, data = CASES[case]
    data = {"y": data}
    other = np.where(np.arange(3) == 0, np.nan, 1.0) * np.ones((*data["y"].shape[1:], 3))
    other = other.T                                             # the first row is missing
    conditioned = jp.condition(model, data)
    agree(run(conditioned, other, sample=sample), run(conditioned, sample=sample))
    values = {"m": np.array([0.1, 0.2]) if model is rows else np.array(0.1)}
    if model is walk:
        values = {"x0": np.array(0.1), "x": np.array([0.2, -0.1, 0.4])}
    values = jax.tree.map(jnp.asarray, values)

    def density(at, *args):
        seeded = numpyro.handlers.seed(conditioned, 0)
        return log_density(seeded, args, {"sample": sample}, at)[0]

    if case != "scan, short":       # NumPyro draws the rest of a series that is too short
        found = jax.value_and_grad(density)(values, other)
        wanted = jax.value_and_grad(density)(values)
        jax.tree.map(lambda x, y: assert_allclose(x, y, rtol=1e-12), found, wanted)
        assert np.isfinite(found[0])


def test_evidence_of_the_data_that_win():
    """y = 1, 1, 100 by jp.condition and zeros by obs=: the mean is that of the former."""
    y = np.array([1.0, 1.0, 100.0])

    def mean(y=None):
        m = jp.latent("m", dist.Normal(0.0, 10.0))
        with jp.plate("n", 3):
            jp.observe("y", dist.Normal(m, 1.0), y)

    for model in (jp.condition(mean, {"y": y}), numpyro.handlers.condition(mean, {"y": y})):
        assert_allclose(run(model, np.zeros(3)).mean("m"), 102 / 3.01, rtol=1e-10)
    # What observe masks stays masked under NumPyro's own handler, for every engine.
    theirs = numpyro.handlers.condition(mean, {"y": y})
    part = np.array([0.0, 0.0, np.nan])
    found = run(theirs, part)
    assert_allclose(found.mean("m"), 2 / 2.01, rtol=1e-10)
    at = jnp.asarray(0.3)
    want = (dist.Normal(0.0, 10.0).log_prob(at) + dist.Normal(at, 1.0).log_prob(y[:2]).sum())
    assert_allclose(log_density(theirs, (part,), {}, {"m": at})[0], want, rtol=1e-12)


def test_a_condition_inside_fills_the_gaps_and_obs_does_not():
    for model in (walk, plate):
        nested = jp.condition(jp.condition(model, {"y": Y}), {"y": GAP})
        found, wanted = run(nested, np.ones(3)), run(jp.condition(model, {"y": Y}))
        for site in wanted.sites:
            assert_allclose(found.mean(site), wanted.mean(site), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("data", [Y, GAP], ids=["full", "gap"])
def test_predictions_keep_the_data_that_win(data):
    drawn = run(jp.condition(walk, {"y": data}), np.ones(3)).predict(rng_key=0, num_samples=4)
    seen = ~np.isnan(data)
    assert_allclose(drawn["y"][:, seen], np.tile(data[seen], (4, 1)), rtol=1e-6)
    new = run(jp.condition(walk, {"y": data}), np.ones(3)).predict(np.zeros(3), rng_key=0)
    assert_allclose(new["y"][:, seen], np.tile(data[seen], (100, 1)), rtol=1e-6)


def test_engines_of_numpyro_take_gaps_in_conditioned_data_for_missing():
    """Under NUTS and SVI a gap is masked: the mean of two data."""
    def mean(y=None):
        m = jp.latent("m", dist.Normal(0.0, 10.0))
        with jp.plate("n", 3):
            jp.observe("y", dist.Normal(m, 1.0), y)

    model = jp.condition(mean, {"y": GAP})
    mcmc = numpyro.infer.MCMC(numpyro.infer.NUTS(model), num_warmup=300, num_samples=1000,
                              progress_bar=False)
    mcmc.run(jax.random.key(0), np.zeros(3))
    assert_allclose(mcmc.get_samples()["m"].mean(), 2.3 / 2.01, atol=0.1)
    guide = numpyro.infer.autoguide.AutoNormal(model)
    svi = numpyro.infer.SVI(model, guide, numpyro.optim.Adam(0.05), numpyro.infer.Trace_ELBO(8))
    fit = svi.run(jax.random.key(0), 1500, np.zeros(3), progress_bar=False)
    assert_allclose(fit.params["m_auto_loc"], 2.3 / 2.01, atol=0.1)


# -- masked arrays ---------------------------------------------------------------------------------


def masked(array, *at):
    mask = np.zeros(np.shape(array), bool)
    mask[at] = True
    return np.ma.masked_array(array, mask)


@pytest.mark.parametrize("sample", [jp.observe, plain], ids=["observe", "sample"])
@pytest.mark.parametrize("model", [plate, walk])
def test_masked_entries_are_missing_wherever_they_enter(model, sample):
    y, wanted = masked(Y, 1), run(model, GAP, sample=sample)
    for _ in range(2):                                           # when compiled as well
        agree(run(model, y, sample=sample), wanted)
    agree(run(lambda sample: model(y, sample=sample), sample=sample), wanted)       # closed over
    agree(run(jp.condition(model, {"y": y}), sample=sample),
          run(jp.condition(model, {"y": GAP}), sample=sample))
    fitted = run(model, GAP, sample=sample)
    drawn = fitted.predict(y, sample=sample, rng_key=0)["y"]
    assert_allclose(drawn[:, 0], 0.3, rtol=1e-6)
    assert drawn[:, 1].std() > 0.1
    density = log_density(numpyro.handlers.seed(model, 0), (y,), {"sample": jp.observe}, {
        "m": jnp.asarray(0.1), "x0": jnp.asarray(0.1), "x": jnp.zeros(3)})[0]
    wanted = log_density(numpyro.handlers.seed(model, 0), (GAP,), {"sample": jp.observe}, {
        "m": jnp.asarray(0.1), "x0": jnp.asarray(0.1), "x": jnp.zeros(3)})[0]
    assert_allclose(density, wanted, rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.int64, np.int32, bool])
def test_masked_whole_numbers_and_booleans_are_missing(dtype):
    y = np.array([1, 0, 1]).astype(dtype)
    gap = np.array([1.0, np.nan, 1.0])
    agree(run(plate, masked(y, 1)), run(plate, gap))
    agree(run(plate, masked(y, ())), run(plate, y))              # nothing is masked
    fit = jp.VMP(counts, messages={"y": "linearise"}, progress=False, tol=1e-16)
    agree(fit.run(masked(y, 1)), fit.run(gap))


def test_masked_values_of_sparse():
    found = jp.sparse(3, {0: masked([1.0, 2.0], 1), 2: np.ma.masked_array([3, 4])})
    assert_allclose(found, [[1.0, np.nan], [np.nan, np.nan], [3.0, 4.0]])


def test_masked_infinities_are_no_data_and_others_are_refused():
    y = np.ma.masked_array([0.3, np.inf, 2.0], [False, True, False])
    agree(run(jp.condition(plate, {"y": y})), run(jp.condition(plate, {"y": GAP})))
    with pytest.raises(jp.DataError, match="infinities"):
        jp.condition(plate, {"y": np.ma.masked_array([0.3, np.inf, 2.0])})
