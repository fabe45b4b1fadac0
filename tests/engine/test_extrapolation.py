"""Sweeps that start ahead: they arrive sooner, where plain ones do, and F never rises."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import jopa_ppl as jp
from jopa_ppl.linalg.extrapolation import WINDOW, Trail

SWEEPS = 100


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def loading(y, d):
    """States that are seen by a loading which is unknown as well: any R of R x and C / R will do,
    but for the priors."""
    N, n = y.shape[1:]
    A = jp.latent("A", dist.Normal(jnp.eye(d), 1.0).to_event(2))
    C = jp.latent("C", dist.Normal(jnp.zeros((n, d)), 1.0).to_event(2))
    W = jp.latent("W", dist.Wishart(d + 2.0, rate_matrix=0.1 * jnp.eye(d)))
    tau = jp.latent("tau", dist.Gamma(1.0, 0.1))
    with numpyro.plate("trials", N):
        x0 = jp.latent("x0", dist.MultivariateNormal(jnp.zeros(d), jnp.eye(d)))

    def step(x, y):
        with numpyro.plate("trials", N):
            jp.observe("y", dist.Normal(x @ C.T, 1 / jnp.sqrt(tau)).to_event(1), y)
            return jp.latent("x", dist.MultivariateNormal(x @ A.T, precision_matrix=W)), None

    jp.scan(step, x0, y)


def factors(y, d):
    """The same without time: two matrices whose product is seen, each column as wide as told by a
    precision of its own."""
    N, n = y.shape
    alpha = jp.latent("alpha", dist.Gamma(1e-2, 1e-2).expand([d]).to_event(1))
    C = jp.latent("C", dist.Normal(jnp.zeros((n, d)), 1 / jnp.sqrt(alpha)).to_event(2))
    tau = jp.latent("tau", dist.Gamma(1e-2, 1e-2))
    with numpyro.plate("rows", N):
        z = jp.latent("z", dist.Normal(jnp.zeros(d), 1.0).to_event(1))
        jp.observe("y", dist.Normal(z @ C.T, 1 / jnp.sqrt(tau)).to_event(1), y)


def trials(T=30, N=4, d=2, n=4):
    rng = np.random.default_rng(0)
    A, C = 0.97 * np.linalg.qr(rng.normal(size=(d, d)))[0], rng.normal(size=(n, d))
    x, found = rng.normal(size=(N, d)), []
    for _ in range(T):
        found.append(x @ C.T + 0.3 * rng.normal(size=(N, n)))
        x = x @ A.T + 0.2 * rng.normal(size=(N, d))
    return np.array(found)


def rows(N=60, d=3, n=8):
    rng = np.random.default_rng(1)
    return rng.normal(size=(N, d)) @ rng.normal(size=(d, n)) + 0.5 * rng.normal(size=(N, n))


def runs(model, *args, sweeps, **options):
    """With extrapolation for a few sweeps, and without it for these and for many."""
    fit = lambda most, extrapolate: jp.VMP(model, progress=False, max_iters=most, tol=0.0,
                                           extrapolate=extrapolate, **options).run(*args)
    return fit(SWEEPS, True), fit(sweeps, False)


@pytest.mark.filterwarnings("ignore::jopa_ppl.errors.ConvergenceWarning")
def test_an_unknown_loading_arrives():
    ahead, plain = runs(loading, trials(), 2, sweeps=1500)
    F, slow = np.asarray(ahead.free_energy), np.asarray(plain.free_energy)
    assert np.diff(F).max() <= 1e-12 * abs(F[-1])           # rounding
    assert abs(F[-1] - slow[-1]) < 0.1 < slow[SWEEPS - 1] - slow[-1]
    # The same but for the basis of the states.
    seen = lambda p: np.einsum("tni,yi->tny", p.mean("x"), p.mean("C"))
    assert_allclose(seen(ahead), seen(plain), atol=0.02)
    spectrum = lambda p: np.sort_complex(np.linalg.eigvals(p.mean("A")))
    assert_allclose(spectrum(ahead), spectrum(plain), atol=5e-3)
    assert_allclose(ahead.mean("tau"), plain.mean("tau"), rtol=5e-3)


@pytest.mark.filterwarnings("ignore::jopa_ppl.errors.ConvergenceWarning")
def test_factors_of_a_matrix_arrive():
    ahead, plain = runs(factors, rows(), 4, sweeps=2000)
    F, slow = np.asarray(ahead.free_energy), np.asarray(plain.free_energy)
    assert np.diff(F).max() <= 1e-12 * abs(F[-1])           # rounding
    assert F[-1] - slow[-1] < 0.1 < slow[SWEEPS - 1] - slow[-1]
    seen = lambda p: p.mean("z") @ p.mean("C").T
    assert_allclose(seen(ahead), seen(plain), atol=0.05)


@pytest.mark.filterwarnings("ignore::jopa_ppl.errors.ConvergenceWarning")
def test_runs_repeat():
    first, second = (jp.VMP(loading, progress=False, max_iters=40).run(trials(), 2)
                     for _ in range(2))
    assert_array_equal(first.free_energy, second.free_energy)
    assert_array_equal(first.mean("C"), second.mean("C"))


def test_what_may_start_ahead():
    def level(y):
        m = jp.latent("m", dist.Normal(0.0, 1.0))
        with numpyro.plate("n", len(y)):
            jp.observe("y", dist.Normal(m, 1.0), y)

    def scale(y):
        s = jp.latent("s", dist.HalfNormal(1.0))
        m = jp.latent("m", dist.Normal(0.0, 1.0))
        with numpyro.plate("n", len(y)):
            jp.observe("y", dist.Normal(m, s), y)

    y = np.arange(5.0)
    both = rows(), 2
    assert [b.name for b in jp.VMP(factors).compile(*both).followed] == ["C", "alpha", "tau"]
    for vmp, args in ((jp.VMP(level), (y,)), (jp.VMP(scale), (y,)),
                      (jp.VMP(factors, damping=0.3), both),
                      (jp.VMP(factors, extrapolate=False), both)):
        assert vmp.compile(*args).followed == ()


def iterates(curvature, start, count):
    """Steps of x -> x - a (x - 1) from a start, the last ones remembered."""
    trail, x = Trail.of(len(curvature)), start
    for _ in range(count):
        trail, x = trail.after(x, x - curvature * (x - 1)), x - curvature * (x - 1)
    return x, trail


def test_a_quadratic_is_solved_by_as_many_steps_as_it_has_rates():
    curvature = jnp.array([0.9, 0.5, 0.1, 0.01])
    x, trail = iterates(curvature, jnp.array([3.0, -2.0, 5.0, 4.0]), 6)
    assert_allclose(x + trail.ahead(jnp.array([1.0, 2.0, 1.0, 0.5])), 1.0, atol=1e-5)
    assert len(trail.moves) == WINDOW


def test_a_saddle_is_left():
    x, trail = iterates(jnp.array([0.5, -0.2]), jnp.array([3.0, 1.001]), 4)
    ahead = trail.ahead(jnp.ones(2))
    assert_allclose((x + ahead)[0], 1.0, atol=1e-6)
    assert ahead[1] > 0.9 * (x - 1)[1]


def test_nothing_is_told_by_one_step():
    _, trail = iterates(jnp.array([0.5]), jnp.array([3.0]), 1)
    assert_array_equal(trail.ahead(jnp.ones(1)), 0.0)
