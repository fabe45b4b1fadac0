"""Arrays of any byte order, options of any type, beliefs about sites that are only predicted."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import jopa_ppl as jp

Y = np.array([0.5, -0.2, 1.5])


def level(y=None, n=3):
    m = jp.latent("m", dist.Normal(0.0, 2.0))
    with jp.plate("n", n):
        jp.observe("y", dist.Normal(m, 1.0), y)


# -- arrays --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [">f8", ">f4", np.longdouble, ">i4", np.float16, bool])
def test_arrays_of_any_byte_order_and_width_are_data(kind):
    given = (Y * 2).astype(kind)
    plain = np.asarray(given, np.float64)
    wanted = 4 * plain.sum() / (1 + 4 * 3)
    foreign = np.ones(1, given.dtype)

    def closed(y):
        jp.latent("z", dist.Normal(0.0, 1.0))
        level(given)

    runs = [jp.VMP(level, progress=False).run(given), jp.VMP(closed, progress=False).run(foreign)]
    if kind is not bool:
        runs.append(jp.VMP(jp.condition(level, {"y": given}), progress=False).run())
        runs.append(jp.VMP(level, progress=False).run(
            jp.sparse(3, {i: v for i, v in enumerate(given)})))
    for posterior in runs:
        np.testing.assert_allclose(posterior.mean("m"), wanted, rtol=1e-6)


@pytest.mark.parametrize("array", [np.ones(3, complex), np.array(["a", "b", "c"]),
                                   np.array([1, None, 2], object), np.zeros(3, "f4,i4"),
                                   np.array(["2020-01-01"] * 3, "M8[D]")])
def test_arrays_that_are_no_real_numbers_are_refused(array):
    for call in (lambda: jp.VMP(level).run(array),
                 lambda: jp.VMP(jp.condition(level, {"y": array})).run()):
        with pytest.raises(jp.ShapeError, match="dtype"):
            call()


# -- options -------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [
    {"tol": np.nan}, {"tol": np.inf}, {"tol": "1e-6"}, {"tol": None}, {"tol": -1.0},
    {"max_iters": 2.5}, {"max_iters": "10"}, {"max_iters": True}, {"max_iters": 0},
    {"max_iters": np.nan}, {"damping": "a"}, {"damping": 1.0}, {"damping": np.nan},
    {"damping": [0.5]}, {"damping": True}, {"chain": None}, {"chain": ["auto"]},
    {"progress": "no"}, {"messages": ["y"]}, {"messages": {"y": 3}}, {"blocks": 5},
    {"blocks": "m"}, {"decide": 3}, {"decide": ("m", 3)}])
def test_options_of_the_wrong_type_or_out_of_range_are_named(options):
    with pytest.raises(jp.JopaError, match=next(iter(options))):
        jp.VMP(level, **options)


@pytest.fixture(scope="module")
def posterior():
    return jp.VMP(level, progress=False).run(Y)


@pytest.mark.parametrize("call", [
    lambda p: jp.VMP(level).run(Y, rng_key=2**80), lambda p: p.sample(2**80),
    lambda p: p.sample(-2**63 - 1), lambda p: p.sample(1.5), lambda p: p.sample("0"),
    lambda p: p.predict(rng_key=2**80), lambda p: p.sample(0, -1), lambda p: p.sample(0, 2.5),
    lambda p: p.sample(0, "a"), lambda p: p.predict(num_samples=0),
    lambda p: p.predict(num_samples=2.5), lambda p: jp.correct(p, 0), lambda p: jp.correct(
        p, temper=np.nan), lambda p: jp.correct(p, temper="a")])
def test_keys_and_counts_that_are_none_are_named(posterior, call):
    with pytest.raises(jp.JopaError, match="expected"):
        call(posterior)


def walk(y):
    def step(x, y):
        jp.observe("y", dist.Normal(x, 1.0), y)
        return jp.latent("x", dist.Normal(x, 1.0)), None

    jp.scan(step, jp.latent("x0", dist.Normal(0.0, 1.0)), y)


@pytest.mark.parametrize("call", [
    lambda p: p.at("x", 2.5), lambda p: p.at("x", "a"), lambda p: p.at("x", True),
    lambda p: p.state_at(1.5), lambda p: p.state_at("a"), lambda p: jp.sparse(4.0, {0: 1.0}),
    lambda p: jp.sparse(4, [1, 2]), lambda p: jp.VMP(walk).run_batch(np.zeros((2, 3)), over=3),
    lambda p: jp.condition(3, {}), lambda p: jp.given(3, p), lambda p: jp.compare(3, Y),
    lambda p: jp.given(walk, p, update="yes"), lambda p: jp.marginalised(None),
    lambda p: jp.compare(walk, Y, engines=("vmp",), num_draws=0),
    lambda p: jp.compare(walk, Y, engines=("vmp",), budget=np.nan),
    lambda p: jp.compare(walk, Y, engines=("vmp",), budget={"vmp": "a"})])
def test_steps_programs_and_budgets_that_are_none_are_named(call):
    with pytest.raises(jp.JopaError, match="expected"):
        call(jp.VMP(walk, progress=False).run(Y))


@pytest.mark.parametrize("kind", [int, np.int64, np.array, jnp.array])
def test_whole_numbers_of_any_kind_are_steps(kind):
    p = jp.VMP(walk, progress=False).run(Y)
    assert p.at("x", kind(1)).mean == p.at("x", -2).mean
    assert p.state_at(kind(1)).mean == p.state_at(-2).mean
    assert jp.sparse(kind(3), {0: 1.0}).shape == (3,) and jp.sparse(3, [(0, 1.0)]).shape == (3,)
    runs = jp.VMP(level, progress=False).run_batch(np.stack([Y, Y]), over={"y"})
    assert runs.mean("m").shape == (2,)


def test_no_draws_are_no_error(posterior):
    assert posterior.sample(0, 0)["m"].shape == (0,)
    assert posterior.sample(0, (2, 0))["m"].shape == (2, 0)


def test_seeds_of_64_bits_are_keys(posterior):
    for seed in (2**63 - 1, -2**63, np.int64(5), np.uint8(3)):
        assert posterior.sample(seed)["m"].shape == ()


# -- sites that are only predicted -----------------------------------------------------------------


def ahead(y):
    m = jp.latent("m", dist.Normal(0.0, 2.0))
    a = jp.latent("a", dist.Normal(1.0, 0.5))
    with jp.plate("n", 3):
        jp.observe("y", dist.Normal(m, 1.0), y)
        jp.observe("twin", dist.Normal(m, 1.0))
    jp.observe("next", dist.Normal(a * m + 1.0, 0.5))
    jp.latent("later", dist.MultivariateNormal(m * jnp.array([1.0, 2.0]), jnp.eye(2)))
    jp.observe("sign", dist.Bernoulli(logits=m))
    jp.observe("count", dist.Poisson(jnp.exp(m)))
    numpyro.sample("heavy", dist.Cauchy(m, 1.0))


def test_a_site_that_is_only_predicted_has_the_moments_of_its_prediction():
    """Closed forms where they exist; E[sigmoid(m)], E[exp(m)] by quadrature and exactly."""
    posterior = jp.VMP(ahead, progress=False).run(Y)
    mean, var = 4 * Y.sum() / 13, 4 / 13
    np.testing.assert_allclose(posterior.mean("twin"), [mean] * 3, rtol=1e-6)
    np.testing.assert_allclose(posterior.variance("twin"), [var + 1] * 3, rtol=1e-6)
    np.testing.assert_allclose(posterior.mean("next"), mean + 1, rtol=1e-6)
    np.testing.assert_allclose(posterior.variance("next"),
                               0.25 + var + 0.25 * (mean**2 + var), rtol=1e-6)
    assert isinstance(posterior["next"], dist.Normal)
    np.testing.assert_allclose(posterior["later"].mean, [mean, 2 * mean], rtol=1e-6)
    np.testing.assert_allclose(posterior["later"].covariance_matrix,
                               np.eye(2) + var * np.array([[1, 2], [2, 4]]), rtol=1e-6)
    x, w = np.polynomial.hermite_e.hermegauss(60)
    share = (w / w.sum()) @ (1 / (1 + np.exp(-(mean + var**0.5 * x))))
    assert abs(float(posterior.mean("sign")) - share) < 0.01
    assert abs(float(posterior["sign"].probs) - share) < 0.01
    assert abs(float(posterior.variance("sign")) - share * (1 - share)) < 0.01
    count = np.exp(mean + var / 2)
    assert abs(float(posterior.mean("count")) / count - 1) < 0.06
    spread = count + (np.exp(var) - 1) * count**2
    assert abs(float(posterior.variance("count")) / spread - 1) < 0.2
    with pytest.raises(jp.SiteError, match=r"mixture(.|\n)*predict"):
        posterior["count"]
    with pytest.raises(jp.SiteError, match="data"):
        posterior.mean("y")


def test_a_series_that_is_only_predicted():
    def drift(y):
        def step(x, y):
            x = jp.latent("x", dist.Normal(0.9 * x, 0.5))
            jp.observe("y", dist.Normal(x, 1.0), y)
            jp.observe("speed", dist.Normal(2 * x, 0.1))
            return x, None

        jp.scan(step, jp.latent("x0", dist.Normal(0.0, 1.0)), y)

    posterior = jp.VMP(drift, progress=False).run(np.append(Y, np.nan))
    np.testing.assert_allclose(posterior.mean("speed"), 2 * posterior.mean("x"), rtol=1e-5)
    np.testing.assert_allclose(posterior.variance("speed"), 4 * posterior.variance("x") + 0.01,
                               rtol=1e-5)
    assert posterior.at("speed", -1).mean == pytest.approx(float(2 * posterior.mean("x")[-1]), 1e-5)
    assert jax.tree.leaves(posterior.mean("speed"))[0].shape == (4,)


def test_a_site_whose_data_are_all_missing_is_predicted():
    def program(y):
        a = jp.latent("a", dist.Normal(1.0, 2.0))
        jp.observe("y", dist.Normal(2 * a, 0.5), y)

    missing = jp.VMP(program).run(np.array(np.nan))
    np.testing.assert_allclose(missing.mean("y"), 2.0, rtol=1e-6)
    np.testing.assert_allclose(missing.variance("y"), 16.25, rtol=1e-6)
    assert isinstance(missing["y"], dist.Normal)
    with pytest.raises(jp.SiteError, match="data"):
        jp.VMP(program).run(np.array(1.0)).mean("y")
