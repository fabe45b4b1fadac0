"""Missing values that other sites are made of: never zeros in silence."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from faults import refused
from fitting import run
from numpy.testing import assert_allclose

import jopa_ppl as jp
from jopa_ppl.errors import DataError

rng = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def autoregression(y=None, *, T=20, sample=jp.observe):
    a = numpyro.sample("a", dist.Normal(0.0, 1.0))
    tau = numpyro.sample("tau", dist.Gamma(2.0, 1.0))

    def step(before, y):
        y = sample("y", dist.Normal(a * before, 1 / jnp.sqrt(tau)), y)
        return y, None

    jp.scan(step, 1.0, y, length=T)


def plain(name, fn, obs):
    return numpyro.sample(name, fn, obs=obs)


def regression(x, y):
    b = numpyro.sample("b", dist.Normal(0.0, 1.0))
    with numpyro.plate("n", len(y)):
        x = jp.observe("x", dist.Normal(0.0, 1.0), x)
        jp.observe("y", dist.Normal(b * x, 0.5), y)


Y, X = rng.normal(size=20).cumsum(), rng.normal(size=20)
GAP = np.where(np.arange(20) == 7, np.nan, 1.0)


@pytest.mark.parametrize("sample", [jp.observe, plain])
def test_a_gap_that_the_next_step_needs_is_refused(sample):
    refused(DataError, autoregression, Y * GAP, run={"sample": sample}, site="y",
            says=("jp.condition",))


@pytest.mark.parametrize("sample", [jp.observe, plain])
def test_a_gap_that_nothing_needs_says_nothing(sample):
    """A series that ends early is the shorter series."""
    late = np.where(np.arange(20) < 15, Y, np.nan)
    whole, short = (run(autoregression, y, T=len(y), sample=sample) for y in (late, Y[:15]))
    assert_allclose(whole.free_energy[-1], short.free_energy[-1], rtol=1e-12)
    for site in ("a", "tau"):
        assert_allclose(whole.mean(site), short.mean(site), rtol=1e-12)


def test_conditioned_data_have_their_gaps_inferred():
    """Against the joint with a and tau given: y_7 is Gaussian between its neighbours."""
    a, tau = 0.8, 2.0
    model = jp.condition(autoregression, {"y": Y * GAP, "a": np.array(a), "tau": np.array(tau)})
    posterior = run(model)
    precision = tau * (1 + a**2)
    assert_allclose(posterior.mean("y")[7], tau * a * (Y[6] + Y[8]) / precision, rtol=1e-8)
    assert_allclose(posterior.variance("y")[7], 1 / precision, rtol=1e-8)


def test_gaps_in_the_inputs_of_a_plate():
    refused(DataError, regression, X * GAP, Y, site="y", says=("1 NaN",))
    both = run(regression, X * GAP, Y * GAP)
    seen = ~np.isnan(GAP)
    exact = 4 * X[seen] @ Y[seen] / (1 + 4 * X[seen] @ X[seen])
    assert_allclose(both.mean("b"), exact, rtol=1e-10)


def test_conditioned_likelihoods_have_no_latent_values():
    """Images and counts are only seen through their messages, conditioned on or observed."""
    C = rng.normal(size=(5, 2))

    def seen(x, y, kind):
        fn = dist.Normal(x @ C.T, 0.3).to_event(1)
        if kind == "amortised":
            fn = jp.Amortized(fn, on=x, message=lambda y: dist.Normal(
                y @ np.linalg.pinv(C).T, 0.2).to_event(1))
        else:
            fn = dist.Poisson(jnp.exp(x @ C.T)).to_event(1)
        return jp.observe("y", fn, y)

    def program(y=None, *, T=5, kind):
        def step(x, y):
            seen(x, y, kind)
            return jp.latent("x", dist.Normal(0.9 * x, 0.3).to_event(1)), None

        jp.scan(step, jp.latent("x0", dist.Normal(jnp.zeros(2), 1.0).to_event(1)), y, length=T)

    for kind, y in (("amortised", rng.normal(size=(4, 5))),
                    ("counts", rng.poisson(1.0, (4, 5)).astype(float))):
        y[1] = np.nan
        messages = {} if kind == "amortised" else {"y": "linearise"}
        fit = lambda model, *a, m=messages, k=kind: jp.VMP(model, messages=m, progress=False).run(
            *a, kind=k)
        padded = np.concatenate([y, np.full((1, 5), np.nan)])
        want, found = fit(program, padded), fit(jp.condition(program, {"y": y}))
        assert found.sites == want.sites == ("x0", "x")
        assert_allclose(found.mean("x"), want.mean("x"), rtol=1e-9)


# -- gaps under the caller's own masks -------------------------------------------------------------


def _pair(a):
    return dist.Normal(a * jnp.ones(2), 0.5).to_event(1)


def _in_a_plate(a, y, m):
    with numpyro.plate("n", 3), numpyro.handlers.mask(mask=m):
        numpyro.sample("y", _pair(a), obs=y)


def _around_a_plate(a, y, m):
    with numpyro.handlers.mask(mask=m), numpyro.plate("n", 3):
        numpyro.sample("y", _pair(a), obs=y)


def _masked_then_expanded(a, y, m):
    with numpyro.plate("n", 3):
        numpyro.sample("y", _pair(a).mask(m[0]), obs=y)


def _of_one_event(a, y, m):
    numpyro.sample("y", _pair(a).mask(m[0]).expand([3]).to_event(1), obs=y)


def _observed(a, y, m):
    with numpyro.plate("n", 3):
        jp.observe("y", _pair(a).mask(m[0]), y)


def _masked_inside(a, y, m):
    with numpyro.plate("n", 3):
        numpyro.sample("y", dist.Normal(a, 0.5).expand([2]).mask(m[0]).to_event(1), obs=y)


@pytest.mark.parametrize("mask", [(1, 1, 1), (1, 1, 0), (0, 1, 1)])
@pytest.mark.parametrize("write", [_in_a_plate, _around_a_plate, _masked_then_expanded,
                                   _of_one_event, _observed, _masked_inside])
def test_elements_are_missing_alone_under_any_mask(write, mask):
    """y_ij ~ N(a, 1/4) where seen and not masked: the posterior precision of a is 1 + 4 k."""
    mask, y = np.array(mask, bool), np.array([[1.0, np.nan], [np.nan, np.nan], [0.5, 2.0]])
    rows = mask if write in (_in_a_plate, _around_a_plate) else np.repeat(mask[:1], 3)
    seen = rows[:, None] & ~np.isnan(y)

    def program(y, m):
        write(jp.latent("a", dist.Normal(0.0, 1.0)), y, m)

    posterior = jp.VMP(program, progress=False).run(y, mask)
    precision = 1 + 4 * seen.sum()
    np.testing.assert_allclose(posterior.mean("a"), 4 * y[seen].sum() / precision, rtol=1e-6)
    np.testing.assert_allclose(posterior.variance("a"), 1 / precision, rtol=1e-6)


@pytest.mark.parametrize("masked", [False, True])
def test_vectors_of_a_plate_are_missing_as_a_whole(masked):
    """y_i ~ N(a, I / 4) for the rows without NaN; one in part is told of."""
    y = np.array([[1.0, np.nan], [0.5, 2.0], [np.nan, np.nan]])

    def program(y, m):
        a = jp.latent("a", dist.Normal(0.0, 1.0))
        fn = dist.MultivariateNormal(a * jnp.ones(2), 0.25 * jnp.eye(2))
        with numpyro.plate("n", 3):
            jp.observe("y", fn.mask(m) if masked else fn, y)

    with pytest.warns(jp.DataWarning):
        posterior = jp.VMP(program, progress=False).run(y, np.array(True))
    np.testing.assert_allclose(posterior.mean("a"), 4 * 2.5 / 9, rtol=1e-6)
    np.testing.assert_allclose(posterior.variance("a"), 1 / 9, rtol=1e-6)


@pytest.mark.parametrize("gap", [None, np.nan, np.ma.masked])
def test_a_list_is_data_and_what_is_none_in_it_is_missing(gap):
    def model(y):
        x = jp.latent("x", dist.Normal(0.0, 1.0))
        with jp.plate("n", 3):
            jp.observe("y", dist.Normal(x, 1.0), y)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = [jp.VMP(model, progress=False).run(y) for y in (
            [1.0, 2.0, 6.0], [1.0, gap, 6.0], (1, gap, 6))]
    np.testing.assert_allclose([p.mean("x") for p in found], [9 / 4, 7 / 3, 7 / 3], rtol=1e-6)


def test_masked_arrays_in_a_list_keep_their_masks():
    def model():
        x = jp.latent("x", dist.Normal(0.0, 1.0))
        with jp.plate("n", 2), jp.plate("k", 2):
            jp.observe("y", dist.Normal(x, 1.0), [np.ma.array([1.0, 7.0], mask=[0, 1]),
                                                  np.ma.array([2.0, 3.0])])

    assert_allclose(jp.VMP(model, progress=False).run().mean("x"), 6 / 4, rtol=1e-6)


@pytest.mark.parametrize("kind", [np.int16, np.int32, np.int64, np.uint8, ">i4"])
def test_masked_counts_of_any_width_keep_their_masks(kind):
    """NumPyro's own sample statement, counts held by the program."""
    seen, masked = np.array([3, 4]), np.ma.array([3, 90, 4], mask=[0, 1, 0]).astype(kind)

    def model(counts):
        x = jp.latent("x", dist.Normal(1.0, 1.0))
        with numpyro.plate("n", len(counts)):
            numpyro.sample("y", dist.Poisson(jnp.exp(x)), obs=counts)

    found, alone = (jp.VMP(lambda y=y: model(y), progress=False).run() for y in (masked, seen))
    assert_allclose(found.mean("x"), alone.mean("x"), rtol=1e-5)
    assert_allclose(found.free_energy[-1], alone.free_energy[-1], rtol=1e-5)
