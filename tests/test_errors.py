"""Bad input ends in one clear error: the site, what was found, what was expected, a way out."""

from __future__ import annotations

import inspect
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from scipy.linalg import cho_solve_banded, cholesky_banded

import jopa_ppl as jp
from jopa_ppl.errors import (
    ConvergenceWarning,
    DataError,
    JopaError,
    NumericalError,
    PriorError,
    ShapeError,
    SiteError,
    StructureError,
)

N, T = 3, 4
Y = np.array([0.3, -0.2, 0.9])
FRAMES = np.array([[0.1, 0.4], [0.3, 0.2], [-0.4, 0.5], [0.2, 0.1]])
ACTIONS = np.ones((T, 1))


# -- programs, shared so that they compile once --------------------------------------------------


def mean_only(y=None):
    m = jp.latent("m", dist.Normal(0.0, 1.0))
    with jp.plate("n", N):
        jp.observe("y", dist.Normal(m, 1.0), y)


def priors(y, cov, rate, dof, scale, shape, inverse_scale, weight):
    """Every prior and weight is an argument, so that all faults meet one compiled program."""
    m = jp.latent("m", dist.MultivariateNormal(jnp.zeros(2), covariance_matrix=cov))
    a = jp.latent("a", dist.Normal(0.0, scale))
    W = jp.latent("W", dist.Wishart(dof, rate_matrix=rate))
    tau = jp.latent("tau", dist.Gamma(shape, inverse_scale))
    with jp.plate("n", N):
        jp.observe("y", dist.MultivariateNormal(m, precision_matrix=W), y)
        with numpyro.handlers.scale(scale=weight):
            jp.observe("z", dist.Normal(a, 1.0 / jnp.sqrt(tau)), y[:, 0])


def act(y=None, *, T=T):
    """Two-dimensional states with known dynamics, moved by actions."""
    x0 = jp.latent("x0", dist.Normal(jnp.zeros(2), 1.0).to_event(1))

    def step(x, y):
        jp.observe("y", dist.Normal(x, 0.1).to_event(1), y)
        u = jp.latent("u", dist.Normal(jnp.zeros(1), 1.0).to_event(1))
        return jp.latent("x", dist.Normal(x + jnp.ones((2, 1)) @ u, 0.1).to_event(1)), None

    jp.scan(step, x0, y, length=T)


def drift(y, offset, scale):
    """A line's noisy return to `offset`: slope and noise unknown, everything in units of scale."""
    A = jp.latent("A", dist.Normal(0.5, 0.5))
    tau = jp.latent("tau", dist.Gamma(2.0, scale**2))
    x0 = jp.latent("x0", dist.Normal(offset, scale))

    def step(x, y):
        jp.observe("y", dist.Normal(x, 0.1 * scale), y)
        x = jp.latent("x", dist.Normal(offset + A * (x - offset), 1.0 / jnp.sqrt(tau)))
        return x, None

    jp.scan(step, x0, y)


def walk(y):
    def step(x, y):
        jp.observe("y", dist.Normal(x, 1e-4), y)
        return jp.latent("x", dist.Normal(x, 1.0)), None

    jp.scan(step, jp.latent("x0", dist.Normal(0.0, 1.0)), y)


def observed(fn, y=0.5):
    """A program whose one observed site 'y' follows fn(a, tau, W, V): a is Normal."""
    def program(y=y):
        a = jp.latent("a", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
        tau = jp.latent("tau", dist.Gamma(2.0, 1.0))
        W = jp.latent("W", dist.Wishart(3.0, rate_matrix=jnp.eye(2)))
        V = jp.latent("V", dist.Wishart(3.0, rate_matrix=jnp.eye(2)))
        jp.observe("y", fn(a, tau, W, V), y)

    return program


# -- the form of every message -------------------------------------------------------------------


def message(error: type | tuple, call, *says: str, site: str | None = None) -> JopaError:
    """The error that `call()` raises, whose message must have every part."""
    with pytest.raises(error) as caught:
        call()
    text = str(caught.value)
    for part in ("found:", "expected:", "way out:", *says):
        assert part in text, text
    if site is not None:
        assert caught.value.site == site and f"'{site}'" in text, text
    return caught.value


def refused(error: type, model, *args, says: tuple = (), site: str | None = None,
            run: dict | None = None, **options):
    """`VMP(model, **options).run(*args, **run)` ends in `error`."""
    vmp = jp.VMP(model, progress=False, **options)
    return message(error, lambda: vmp.run(*args, **run or {}), *says, site=site)


# -- structure -----------------------------------------------------------------------------------


def test_a_nonlinear_mean_is_blamed_on_its_operation_and_line():
    def program():
        a = jp.latent("a", dist.Normal(0.0, 1.0))
        bent = jnp.sin(a)                                       # two lines below `def`
        jp.observe("y", dist.Normal(bent, 1.0), 0.5)

    line = inspect.getsourcelines(program)[1] + 2
    refused(StructureError, program, site="y",
            says=("'a'", "'sin'", f"test_errors.py:{line}", "affine"))


STRUCTURE = {
    "power of a latent": (lambda a, tau, W, V: dist.Normal(a[0] ** 2, 1.0), "affine in 'a'"),
    "Gamma in a mean": (lambda a, tau, W, V: dist.Normal(tau, 1.0), "'tau'"),
    "scale=tau": (lambda a, tau, W, V: dist.Normal(a[0], tau), "tau^-2", "1 / jnp.sqrt(tau)"),
    "scale=1/tau": (lambda a, tau, W, V: dist.Normal(a[0], 1 / tau), "tau^2"),
    "Normal(0, tau)": (lambda a, tau, W, V: dist.Normal(0.0, tau), "tau^-2"),
    "exp of a scale": (lambda a, tau, W, V: dist.Normal(0.0, jnp.exp(tau)), "'exp'", "'tau'"),
    "a Gaussian as a scale": (lambda a, tau, W, V: dist.Normal(0.0, a[0]), "normal in scale"),
    "observed Poisson": (lambda a, tau, W, V: dist.Poisson(jnp.exp(a[0])), "jp.Amortized",
                         "Poisson"),
}
MATRICES = {
    "a sum as precision": (lambda a, tau, W, V: dist.MultivariateNormal(a, precision_matrix=W + V),
                           "a sum", "'V' and 'W'"),
    "W as covariance": (lambda a, tau, W, V: dist.MultivariateNormal(a, covariance_matrix=W),
                        "wishart in covariance_matrix", "precision_matrix=W"),
}


@pytest.mark.parametrize("case", STRUCTURE)
def test_what_is_not_conjugate_is_refused(case):
    fn, *says = STRUCTURE[case]
    y = 2 if "Poisson" in case else 0.5
    refused(StructureError, observed(fn, y), site="y", says=tuple(says))


@pytest.mark.parametrize("case", MATRICES)
def test_a_precision_matrix_is_one_wishart(case):
    fn, *says = MATRICES[case]
    refused(StructureError, observed(fn, np.zeros(2)), site="y", says=tuple(says))


def test_latent_family_without_an_update_is_refused():
    def program():
        b = jp.latent("b", dist.Beta(2.0, 2.0))
        jp.observe("y", dist.Normal(b, 1.0), 0.5)

    refused(StructureError, program, site="b", says=("Beta", "SVI or NUTS", "Gamma"))


def test_sites_of_a_scan_that_no_schedule_fits():
    def noisy():
        def step(x, y):
            tau = jp.latent("tau", dist.Gamma(2.0, 1.0))
            jp.observe("y", dist.Normal(x, 1 / jnp.sqrt(tau)), y)
            return jp.latent("x", dist.Normal(x, 1.0)), None
        jp.scan(step, jp.latent("x0", dist.Normal(0.0, 1.0)), jnp.zeros(T))

    def nested():
        def step(x, y):
            jp.scan(lambda c, z: (c, None), x, jnp.zeros(2))
            jp.observe("y", dist.Normal(x, 1.0), y)
            return jp.latent("x", dist.Normal(x, 1.0)), None
        jp.scan(step, jp.latent("x0", dist.Normal(0.0, 1.0)), jnp.zeros(T))

    def recursion():
        def step(x, y):
            jp.observe("y", dist.Normal(x, 1.0), y)
            return 0.9 * x, None
        jp.scan(step, jp.latent("x0", dist.Normal(0.0, 1.0)), jnp.zeros(T))

    refused(StructureError, noisy, site="y", says=("tau", "out of the scan"))
    refused(StructureError, nested, says=("scan inside a scan",))
    refused(StructureError, recursion, says=("never forgets", "jp.latent"))


def test_factors_of_a_product_cannot_share_a_block():
    def program():
        a = jp.latent("a", dist.Normal(0.0, 1.0))
        b = jp.latent("b", dist.Normal(0.0, 1.0))
        jp.observe("y", dist.Normal(a * b, 1.0), 0.5)

    refused(StructureError, program, blocks=(("a", "b"),), says=("'a'", "'b'", "blocks="))
    refused(SiteError, program, blocks=(("a", "q"),), site="q")


def test_a_latent_outside_of_the_scan_cannot_join_its_chain():
    def program():
        c = jp.latent("c", dist.Normal(0.0, 1.0))

        def step(x, y):
            jp.observe("y", dist.Normal(x, 1.0), y)
            return jp.latent("x", dist.Normal(x + c, 1.0)), None
        jp.scan(step, jp.latent("x0", dist.Normal(0.0, 1.0)), jnp.zeros(T))

    refused(StructureError, program, blocks=(("c", "x"),), says=("'c'", "'x'", "first carry"))


# -- shapes and dtypes ---------------------------------------------------------------------------


def test_shapes_are_never_broadcast():
    refused(ShapeError, act, np.ones((T, 1)), site="y", says=("(1,)", "(2,)"))
    refused(ShapeError, mean_only, np.ones(1), site="y", says=("(1,)", "3"))
    refused(ShapeError, mean_only, np.float64(1.0), site="y")
    refused(ShapeError, jp.condition(act, {"u": np.ones((T, 2))}), FRAMES, site="u",
            says=("(4, 2)", "(1,)"))
    refused(ShapeError, jp.condition(act, {"x0": np.ones(1)}), FRAMES, site="x0",
            says=("(1,)", "(2,)"))
    refused(ShapeError, jp.given(mean_only, {"m": dist.Normal(jnp.zeros(2), 1.0)}), Y, site="m",
            says=("(2,)",))


def test_dtypes():
    refused(ShapeError, mean_only, Y + 1j, says=("complex",))
    refused(ShapeError, mean_only, np.array(["a"] * N), says=("dtype",))
    message(ShapeError, lambda: jp.condition(act, {"u": ACTIONS + 1j}), "complex", site="u")
    message(ShapeError, lambda: jp.condition(act, {"u": np.array("left")}), "dtype", site="u")
    message(DataError, lambda: jp.condition(act, {"u": None}), "None", site="u")


def test_lengths_of_series():
    refused(ShapeError, jp.condition(act, {"u": np.ones((T + 1, 1))}), FRAMES, site="u",
            says=("longer", "5 steps", "at most 4"))
    refused(ShapeError, jp.condition(act, {"u": np.ones((0, 1))}), FRAMES, site="u",
            says=("empty",))
    refused(ShapeError, act, FRAMES, run={"T": T + 1}, says=("length 4", "length=5"))
    refused(ShapeError, act, np.ones((0, 2)), run={"T": 0}, says=("empty",))
    body = lambda c, x: (c, None)
    message(ShapeError, lambda: jp.scan(body, 0.0, (np.ones(2), np.ones(3))), "2, 3")
    message(ShapeError, lambda: jp.scan(body, 0.0, 1.0), "scalar")

    def plain(y):
        scan(lambda x, y: (numpyro.sample("x", dist.Normal(x, 1.0), obs=y), None), 0.0, y, length=T)
    refused(ShapeError, plain, np.zeros(T + 1), says=("length 5", "length=4"))
    message(ShapeError, lambda: jp.scan(body, 0.0), "length=T")


def test_a_carry_keeps_its_shape():
    def program():
        def step(x, y):
            jp.observe("y", dist.Normal(x, 1.0), y)
            return jnp.ones(2) * jp.latent("x", dist.Normal(x, 1.0)), None
        jp.scan(step, jp.latent("x0", dist.Normal(0.0, 1.0)), jnp.zeros(T))

    refused(ShapeError, program, says=("carry", "(2,)"))


def test_sparse():
    message(ShapeError, lambda: jp.sparse(5, {}), "at least one value")
    message(ShapeError, lambda: jp.sparse(-1, {0: 1.0}), "at least one step")
    message(ShapeError, lambda: jp.sparse(5, {5: 1.0}), "out of range", "step 5", "[-5, 5)")
    message(ShapeError, lambda: jp.sparse(5, {4: 1.0, -1: 2.0}), "named twice")
    message(ShapeError, lambda: jp.sparse(5, {0: np.ones(2), 1: np.ones(3)}), "(2,)", "(3,)")


# -- names ---------------------------------------------------------------------------------------


def test_names():
    def twice():
        jp.latent("a", dist.Normal(0.0, 1.0))
        jp.observe("a", dist.Normal(0.0, 1.0), 0.5)

    refused(SiteError, twice, site="a", says=("twice",))
    refused(SiteError, jp.condition(mean_only, {"mm": 1.0}), Y, site="mm",
            says=("jp.condition", "'m'"))
    refused(SiteError, jp.condition(act, {"U": ACTIONS}), FRAMES, site="U", says=("'u'",))
    refused(SiteError, jp.given(mean_only, {"q": dist.Normal(0.0, 1.0)}), Y, site="q",
            says=("jp.given", "'m'"))
    message(SiteError, lambda: jp.given(mean_only, {"m": dist.Normal(0, 1)}, sites=["q"]),
            "jp.given", site="q")
    message(SiteError, lambda: jp.given(mean_only, {"m": 3.0}), "float", site="m")
    refused(SiteError, jp.given(mean_only, {"m": dist.Gamma(1.0, 1.0)}), Y, site="m",
            says=("positive", "real"))
    refused(SiteError, jp.given(act, {"x": dist.Normal(jnp.zeros(2), 1.0).to_event(1)}), FRAMES,
            site="x", says=("scan", "first state"))
    refused(SiteError, mean_only, says=("nothing is observed", "jp.condition"))


def test_decisions():
    def idle(y):
        def step(x, y):
            jp.observe("y", dist.Normal(x, 1.0), y)
            jp.latent("u", dist.Normal(0.0, 1.0))
            return jp.latent("x", dist.Normal(x, 1.0)), None
        jp.scan(step, jp.latent("x0", dist.Normal(0.0, 1.0)), y)

    refused(SiteError, act, FRAMES, decide="v", site="v", says=("decide=", "'u'"))
    refused(SiteError, act, FRAMES, decide="y", site="y", says=("data",))
    refused(SiteError, jp.condition(act, {"u": ACTIONS}), FRAMES, decide="u", site="u",
            says=("data", "condition"))
    refused(SiteError, idle, np.zeros(T), decide="u", site="u",
            says=("nothing observed depends", "jp.sparse"))
    refused(StructureError, act, FRAMES, decide="x0", says=("'x0'", "inside a scan"))
    refused(DataError, act, jp.sparse(T, {0: FRAMES[0]}), decide="u", site="u",
            says=("after the first decision", "jp.sparse"))


@pytest.mark.parametrize("options", [{"max_iters": 0}, {"tol": -1.0}, {"damping": 1.0},
                                     {"damping": -0.1}, {"chain": "fast"}])
def test_options_out_of_range(options):
    message(JopaError, lambda: jp.VMP(mean_only, **options), *map(str, options.values()))


def test_the_model_is_a_function():
    message(JopaError, lambda: jp.VMP(3), "int", "callable")


# -- data and priors: found in the run -----------------------------------------------------------

GOOD = {"y": FRAMES[:N], "cov": np.eye(2), "rate": np.eye(2), "dof": np.array(4.0),
        "scale": np.array(1.0), "shape": np.array(2.0),
        "inverse_scale": np.array(1.0), "weight": np.ones(N)}
FAULTS = {
    "covariance": (PriorError, "m", {"cov": np.array([[1.0, 2.0], [2.0, 1.0]])}, "positive def"),
    "asymmetric": (PriorError, "m", {"cov": np.eye(2) + np.eye(2, k=1)}, "symmetric", "M.T"),
    "asymmetric rate": (PriorError, "W", {"rate": np.eye(2) + np.eye(2, k=1)}, "symmetric"),
    "NaN scale": (PriorError, "a", {"scale": np.array(np.nan)}, "not finite"),
    "rate": (PriorError, "W", {"rate": -np.eye(2)}, "positive def"),
    "dof": (PriorError, "W", {"dof": np.array(-1.0)}, "degrees of freedom"),
    "negative scale": (PriorError, "a", {"scale": np.array(-1.0)}, "scale"),
    "zero scale": (PriorError, "a", {"scale": np.array(0.0)}, "scale"),
    "concentration": (PriorError, "tau", {"shape": np.array(-1.0)}, "concentration"),
    "weights": (DataError, "z", {"weight": np.array([1.0, -1.0, 1.0])}, "weights"),
    "infinite": (DataError, "y", {"y": np.where(np.eye(N, 2) == 1, np.inf, 0.1)},
                 "2 infinite values", "NaN"),
}


OPEN = [
    pytest.param("W", {"dof": np.array(0.9)}, id="dof in (0, size - 1]"),
    pytest.param("z", {"weight": np.array([np.nan, 1.0, 1.0])}, id="NaN weight"),
    pytest.param("z", {"weight": np.array([np.inf, 1.0, 1.0])}, id="inf weight"),
    pytest.param("W", {"dof": np.array(np.nan)}, id="NaN dof"),
    pytest.param("tau", {"shape": np.array(np.nan)}, id="NaN concentration"),
    pytest.param("tau", {"inverse_scale": np.array(-1.0)}, id="negative rate"),
]


def run_priors(**changed):
    # Five sweeps without a tolerance: enough to meet a fault, and never converged.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return jp.VMP(priors, max_iters=5, tol=0.0, progress=False).run(**GOOD | changed)


@pytest.mark.parametrize("case", FAULTS)
def test_data_and_priors_at_fault(case):
    error, site, changed, *says = FAULTS[case]
    message(error, lambda: run_priors(**changed), *says, site=site)


@pytest.mark.parametrize("site, changed", OPEN)
def test_data_and_priors_at_fault_in_the_engine(site, changed):
    message((PriorError, DataError), lambda: run_priors(**changed), site=site)


def test_a_wishart_can_be_data():
    def program(y=FRAMES[0]):
        m = jp.latent("m", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
        W = jp.latent("W", dist.Wishart(4.0, rate_matrix=jnp.eye(2)))
        jp.observe("y", dist.MultivariateNormal(m, precision_matrix=W), y)

    posterior = jp.VMP(jp.condition(program, {"W": 3.0 * np.eye(2)}), progress=False).run()
    np.testing.assert_allclose(posterior.mean("m"), 0.75 * FRAMES[0], rtol=1e-6)


def test_a_fault_changes_nothing():
    before = run_priors()
    message(DataError, lambda: run_priors(y=np.full((N, 2), np.inf)))
    after = run_priors()
    assert np.isfinite(before.free_energy).all()
    np.testing.assert_array_equal(before.free_energy, after.free_energy)
    np.testing.assert_array_equal(before.mean("W"), after.mean("W"))


@pytest.mark.parametrize("size, sweep", [(1e200, 1), (1.2e154, 3)])
def test_a_free_energy_that_overflows_stops_at_the_last_finite_state(size, sweep):
    error = message(NumericalError, lambda: run_priors(y=size * FRAMES[:N]),
                    f"sweep {sweep}", "at block '", "error.posterior")
    assert isinstance(error.posterior, jp.Posterior)
    assert error.posterior.num_iters == sweep - 1 and not error.posterior.converged
    assert np.isfinite(error.posterior.free_energy).all()
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(error.posterior.state.moments))


def test_not_converged_warns():
    with pytest.warns(ConvergenceWarning, match="after 5 sweeps(.|\n)*max_iters"):
        posterior = jp.VMP(priors, max_iters=5, tol=0.0, progress=False).run(**GOOD)
    assert not posterior.converged and posterior.num_iters == 5


def test_infinities():
    refused(DataError, mean_only, np.array([0.0, np.inf, 1.0]), site="y",
            says=("1 infinite", "NaN"))
    refused(DataError, mean_only, np.array([0.0, -np.inf, np.nan]), site="y", says=("1 infinite",))
    message(DataError, lambda: jp.condition(act, {"u": ACTIONS * np.inf}), "4 infinite", site="u")
    # An input is no observation: NaN in it is an error, not a missing value.
    refused(DataError, drift, *map(jnp.asarray, (series(), np.nan, 1.0)), site="x0",
            says=("not finite",), max_iters=60, tol=1e-9)


def test_all_data_missing():
    refused(DataError, mean_only, np.full(N, np.nan), says=("missing", "NaN", "'y'"))
    # Actions whose prior is fixed say nothing of the states.
    error = refused(DataError, jp.condition(act, {"u": ACTIONS}), FRAMES * np.nan, says=("'y'",))
    assert "'u'" not in str(error)
    jp.VMP(jp.condition(act, {"u": ACTIONS}), progress=False).run(None)     # a prediction


# -- what must not go wrong in silence -----------------------------------------------------------


def test_nan_is_missing_and_update_counts_both_data_sets():
    run = lambda model, y: jp.VMP(model).run(y)
    with_gap = run(mean_only, np.array([1.0, np.nan, 2.0]))
    np.testing.assert_allclose(with_gap.mean("m"), 3.0 / 3.0, rtol=1e-6)
    np.testing.assert_allclose(with_gap.variance("m"), 1.0 / 3.0, rtol=1e-6)
    clean = run(mean_only, Y)
    np.testing.assert_allclose(clean.mean("m"), Y.sum() / 4.0, rtol=1e-6)
    both = run(jp.given(mean_only, clean, update=True), Y + 1.0)
    np.testing.assert_allclose(both.mean("m"), (2 * Y.sum() + N) / 7.0, rtol=1e-6)
    np.testing.assert_allclose(both.variance("m"), 1.0 / 7.0, rtol=1e-6)
    held = run(jp.given(mean_only, clean), Y + 1.0)
    np.testing.assert_allclose(held.mean("m"), clean.mean("m"), rtol=1e-6)


def series(T: int = 20) -> np.ndarray:
    rng, x = np.random.default_rng(0), [1.0]
    for _ in range(T - 1):
        x.append(0.8 * x[-1] + 0.5 * rng.normal())
    return np.array(x) + 0.1 * rng.normal(size=T)


def fit(y: np.ndarray, offset: float, scale: float) -> dict[str, np.ndarray]:
    """Beliefs about `drift`, freed of units."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        p = jp.VMP(drift, max_iters=60, tol=1e-9, progress=False).run(
            jnp.asarray(y * scale + offset), jnp.asarray(offset), jnp.asarray(scale))
    # The density of the data scales with the units, so F is compared up to T log(scale).
    return {"A": np.asarray(p.mean("A"), float), "sd": np.sqrt(np.asarray(p.variance("A"), float)),
            "tau": np.asarray(p.mean("tau"), float) * scale**2,
            "x": (np.asarray(p.mean("x"), float) - offset) / scale,
            "F": p.free_energy[-1] - np.isfinite(y).sum() * np.log(scale)}


def test_offsets_scales_and_a_missing_frame_in_single_precision():
    y = series()
    gap = np.where(np.arange(len(y)) == 7, np.nan, y)
    assert not jax.config.jax_enable_x64
    with jax.enable_x64(True):
        exact, exact_gap = fit(y, 0.0, 1.0), fit(gap, 0.0, 1.0)
    assert all(np.isfinite(v).all() for v in exact_gap.values())
    assert np.abs(exact["x"][:-1] - y[1:]).max() < 0.5 and 0.3 < exact["A"] < 1.2
    for offset, scale in ((0.0, 1.0), (1e3, 1.0), (0.0, 1e-3), (0.0, 1e3)):
        single = fit(y, offset, scale)
        for name, want in exact.items():
            np.testing.assert_allclose(single[name], want, rtol=1e-3, atol=1e-3, err_msg=name)
    single = fit(gap, 0.0, 1.0)
    for name, want in exact_gap.items():
        np.testing.assert_allclose(single[name], want, rtol=1e-3, atol=1e-3, err_msg=name)
    # A missing frame leaves no trace in the fits that follow.
    np.testing.assert_allclose(fit(y, 0.0, 1.0)["F"], exact["F"], rtol=1e-3)


def test_ten_thousand_steps_of_precise_observations():
    steps, precision = 10_000, 1e8
    rng = np.random.default_rng(1)
    x = np.cumsum(rng.normal(size=steps))
    y = (x + 1e-4 * rng.normal(size=steps)).astype(np.float32).astype(float)
    posterior = jp.VMP(walk, progress=False).run(y)
    # x0 and x_1 .. x_{T-1}: a random walk from N(0, 1), its precision tridiagonal.
    bands = np.array([np.full(steps, 2.0 + precision), np.full(steps, -1.0)])
    bands[0, -1] -= 1.0
    bands[1, -1] = 0.0
    factor = cholesky_banded(bands, lower=True)
    mean = cho_solve_banded((factor, True), precision * y)
    got = np.concatenate([[posterior.mean("x0")], posterior.mean("x")[:-1]])
    np.testing.assert_allclose(got, mean, rtol=1e-5, atol=1e-4)
    sd = np.sqrt(posterior.variance("x")[:-1])
    np.testing.assert_allclose(sd, 1e-4, rtol=1e-3)
    # The exponent at its minimum: an error in `mean` enters squared, unlike in y' P (y - mean).
    quadratic = precision * ((y - mean) ** 2).sum() + mean[0] ** 2 + (np.diff(mean) ** 2).sum()
    logdet = 2 * np.log(factor[0]).sum() - steps * np.log(precision)
    evidence = -0.5 * (quadratic + logdet + steps * np.log(2 * np.pi))
    np.testing.assert_allclose(posterior.free_energy[-1], -evidence, rtol=1e-6)
