"""Data and priors at fault are found in the run, and named; NaN is missing, never spread."""

from __future__ import annotations

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from faults import ACTIONS, FRAMES, N, Y, act, drift, mean_only, message, refused, series

import jopa_ppl as jp
from jopa_ppl.errors import (
    ConvergenceWarning,
    DataError,
    NumericalError,
    PriorError,
)


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
    """The prior carried forward: of which nothing is seen, F = 0."""
    found = jp.VMP(mean_only, progress=False).run(np.full(N, np.nan))
    assert found.free_energy[-1] == 0 and found.mean("m") == 0 and found.variance("m") > 0
    # Actions whose prior is fixed say nothing of the states.
    acted = jp.VMP(jp.condition(act, {"u": ACTIONS}), progress=False).run(FRAMES * np.nan)
    assert not np.any(acted.mean("x0"))
    jp.VMP(jp.condition(act, {"u": ACTIONS}), progress=False).run(None)     # a prediction


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


def rows(y=None):
    m = jp.latent("m", dist.Normal(jnp.zeros(2), 2.0).to_event(1))
    with jp.plate("n", 3):
        jp.observe("y", dist.MultivariateNormal(m, jnp.array([[1.0, 0.6], [0.6, 1.5]])), y)


def steps(y=None):
    def step(x, y):
        x = jp.latent("x", dist.Normal(x, 1.0).to_event(1))
        jp.observe("y", dist.MultivariateNormal(x, jnp.eye(2)), y)
        return x, None

    jp.scan(step, jnp.zeros(2), y, length=3)


@pytest.mark.parametrize("model", [rows, steps])
def test_rows_that_are_partly_missing_are_told(model):
    vmp = jp.VMP(model, progress=False)
    gaps = np.array([[1.0, np.nan], [np.nan, np.nan], [0.5, 2.0]])
    with pytest.warns(jp.DataWarning, match=r"'y': 1 rows(.|\n)*jp.condition\(model, {'y': y}\)"):
        vmp.run(gaps)
    with warnings.catch_warnings():
        warnings.simplefilter("error", jp.DataWarning)
        vmp.run(np.array([[1.0, 2.0], [np.nan, np.nan], [0.5, 2.0]]))
        jp.VMP(jp.condition(model, {"y": gaps}), progress=False).run()      # the way out
    half = np.array([[1.0, np.nan], [np.nan, np.nan], [np.nan, 2.0]])
    error = message(DataError, lambda: vmp.run(half), "NaN in every row of 'y'", "jp.condition")
    assert "every value" not in str(error)
    nothing = vmp.run(np.full((3, 2), np.nan))                # the prior, carried forward
    assert nothing.free_energy[-1] == 0 and not np.any(nothing.mean(nothing.sites[0]))
