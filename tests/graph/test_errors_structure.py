"""Programs that message passing has no update for end in one clear error."""

from __future__ import annotations

import inspect
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from faults import FRAMES, T, act, refused
from fitting import run

import jopa_ppl as jp
from jopa_ppl.errors import (
    ShapeError,
    SiteError,
    StructureError,
)


def observed(fn, y=0.5):
    """A program whose one observed site 'y' follows fn(a, tau, W, V): a is Normal."""
    def program(y=y):
        a = jp.latent("a", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
        tau = jp.latent("tau", dist.Gamma(2.0, 1.0))
        W = jp.latent("W", dist.Wishart(3.0, rate_matrix=jnp.eye(2)))
        V = jp.latent("V", dist.Wishart(3.0, rate_matrix=jnp.eye(2)))
        jp.observe("y", fn(a, tau, W, V), y)

    return program


def test_a_nonlinear_mean_is_told_with_its_operation_and_line(capsys):
    def program():
        a = jp.latent("a", dist.Normal(0.0, 1.0))
        bent = jnp.sin(a)                                       # two lines below `def`
        jp.observe("y", dist.Normal(bent, 1.0), 0.5)

    line = inspect.getsourcelines(program)[1] + 2
    jp.explain(program)
    row = next(x for x in capsys.readouterr().out.splitlines() if x.startswith("y "))
    assert "quadrature" in row and "'sin'" in row and f"{Path(__file__).name}:{line}" in row
    assert run(program).converged


BENT = {
    "power of a latent": lambda a, tau, W, V: dist.Normal(a[0] ** 2, 1.0),
    "Gamma in a mean": lambda a, tau, W, V: dist.Normal(tau, 1.0),
    "scale=tau": lambda a, tau, W, V: dist.Normal(a[0], tau),
    "scale=1/tau": lambda a, tau, W, V: dist.Normal(a[0], 1 / tau),
    "Normal(0, tau)": lambda a, tau, W, V: dist.Normal(0.0, tau),
    "exp of a scale": lambda a, tau, W, V: dist.Normal(0.0, jnp.exp(tau)),
    "exp of a Gaussian": lambda a, tau, W, V: dist.Normal(0.0, jnp.exp(a[0])),
    "observed Poisson": lambda a, tau, W, V: dist.Poisson(jnp.exp(a[0])),
}
PRIORS = {
    "Poisson": (lambda: dist.Poisson(2.0), "conjugate"),
}
MATRICES = {
    "a sum as precision": (lambda a, tau, W, V: dist.MultivariateNormal(a, precision_matrix=W + V),
                           "a sum", "'V' and 'W'"),
    "W as covariance": (lambda a, tau, W, V: dist.MultivariateNormal(a, covariance_matrix=W),
                        "wishart in covariance_matrix", "precision_matrix=W"),
}


@pytest.mark.parametrize("case", BENT)
def test_what_is_not_conjugate_has_a_message_whose_f_is_true(case):
    with jax.enable_x64(True):
        found = run(observed(BENT[case], 2 if "Poisson" in case else 0.5), tol=1e-10)
        gap, error = found.free_energy_error(2000)
    assert found.converged and abs(gap) < 4 * error + 1e-3


@pytest.mark.parametrize("case", MATRICES)
def test_a_precision_matrix_is_one_wishart(case):
    fn, *says = MATRICES[case]
    refused(StructureError, observed(fn, np.zeros(2)), site="y", says=tuple(says))


def test_latent_family_without_an_update_is_refused():
    def program(prior=None):
        b = jp.latent("b", prior or dist.Poisson(2.0))
        jp.observe("y", dist.Normal(1.0 * b, 1.0), 0.5)

    refused(StructureError, program, site="b",
            says=("Poisson", "cut it off: dist.Categorical over its first values"))
    log_prob = dist.Poisson(2.0).log_prob(jnp.arange(20))
    found = run(lambda: program(dist.Categorical(jnp.exp(log_prob) / jnp.exp(log_prob).sum())))
    weight = np.exp(np.asarray(log_prob) - 0.5 * (0.5 - np.arange(20))**2)
    np.testing.assert_allclose(found.mean("b"), weight @ np.arange(20) / weight.sum(), rtol=1e-5)


def test_explain_tells_every_faulty_site(capsys):
    def program(y):
        a = jp.latent("a", dist.Normal(0.0, 1.0))
        tau = jp.latent("tau", dist.Gamma(2.0, 1.0))
        b = jp.latent("b", dist.Poisson(2.0))
        jp.observe("fine", dist.Normal(a, 1 / jnp.sqrt(tau)), y)
        jp.observe("odd", dist.Normal(0.0, a), y)
        jp.observe("coin", dist.Normal(1.0 * b, 1.0), y)
        jp.latent("ahead", dist.Normal(a, 1.0))

    jp.explain(program, np.float64(0.5))
    head, shown, *errors = capsys.readouterr().out.strip().split("\n\n")
    assert head == "program does not compile:"
    rows = {row.split()[0]: row for row in shown.splitlines()[2:]}
    assert list(rows) == ["a", "tau", "b", "fine", "odd", "coin", "ahead"]
    assert "negative" in rows["odd"] and "Poisson" in rows["b"] and "'b'" in rows["coin"]
    assert "exact, on a" in rows["fine"] and "predicted" in rows["ahead"]
    assert [e.split("'")[1] for e in errors] == ["b", "odd", "coin"]
    assert all("way out:" in e for e in errors)


def test_sites_of_a_scan_that_no_schedule_fits():
    def noisy():
        def step(carry, y):
            x, tau = carry
            tau = jp.latent("tau", dist.Gamma(2.0, tau))
            jp.observe("y", dist.Normal(x, 1 / jnp.sqrt(tau)), y)
            return (jp.latent("x", dist.Normal(x, 1.0)), tau), None
        jp.scan(step, (jp.latent("x0", dist.Normal(0.0, 1.0)), 1.0), jnp.zeros(T))

    def nested():
        def step(x, y):
            jp.scan(lambda c, z: (c, None), x, jnp.zeros(2))
            jp.observe("y", dist.Normal(x, 1.0), y)
            return jp.latent("x", dist.Normal(x, 1.0)), None
        jp.scan(step, jp.latent("x0", dist.Normal(0.0, 1.0)), jnp.zeros(T))

    def recursion():
        def step(x, y):
            jp.observe("y", dist.Normal(x, 1.0), y)
            return 0.9 * jnp.tanh(x) + jp.latent("e", dist.Normal(0.0, 1.0)), None
        jp.scan(step, jp.latent("x0", dist.Normal(0.0, 1.0)), jnp.zeros(T))

    refused(StructureError, noisy, site="tau", says=("tau", "out of the scan"))
    refused(StructureError, nested, says=("scan inside a scan",))
    refused(StructureError, recursion, site="carry", says=("not affine", "tanh", "jp.latent"))


def test_factors_of_a_product_cannot_share_a_block():
    def program():
        a = jp.latent("a", dist.Normal(0.0, 1.0))
        b = jp.latent("b", dist.Normal(0.0, 1.0))
        jp.observe("y", dist.Normal(a * b, 1.0), 0.5)

    refused(StructureError, program, blocks=(("a", "b"),), says=("'a'", "'b'", "blocks="))
    refused(SiteError, program, blocks=(("a", "q"),), site="q")


def test_a_latent_that_multiplies_the_states_cannot_join_their_chain():
    def program():
        c = jp.latent("c", dist.Normal(0.0, 1.0))

        def step(x, y):
            jp.observe("y", dist.Normal(x, 1.0), y)
            return jp.latent("x", dist.Normal(x * c, 1.0)), None
        jp.scan(step, jp.latent("x0", dist.Normal(0.0, 1.0)), jnp.zeros(T))

    refused(StructureError, program, blocks=(("c", "x0", "x"),), says=("multiply each other",))


@pytest.mark.parametrize("blocks", [[["x0"], ["x"]], [["x"], ["u", "x0"]], [["x0"]]])
def test_a_first_state_belongs_to_its_chain(blocks):
    refused(StructureError, act, FRAMES, blocks=blocks, site="x0", says=("'x'",))


def test_actions_and_states_in_chains_of_their_own_have_the_exact_means():
    with jax.enable_x64(True):
        exact, apart = run(act, FRAMES), run(act, FRAMES, blocks=[["x"]])
    assert len(apart.compiled.graph.blocks) == 2
    for site in ("x0", "x", "u"):
        np.testing.assert_allclose(apart.mean(site), exact.mean(site), atol=1e-6)
    assert apart.free_energy[-1] > exact.free_energy[-1]


def test_a_scan_in_a_plate():
    def program(y):
        with jp.plate("many", 2):
            act(y)

    refused(StructureError, program, FRAMES, site="many", says=("scan", "step"))


@pytest.mark.parametrize("name", PRIORS)
def test_a_prior_without_an_update(name):
    prior, *says = PRIORS[name]

    def program():
        s = jp.latent("s", prior())
        jp.observe("y", dist.Normal(0.0, 1.0 + s.sum()), 0.5)

    refused(StructureError, program, site="s", says=(name, *says))


def test_a_subsampled_plate():
    def program(y):
        w = jp.latent("w", dist.Normal(0.0, 1.0))
        with jp.plate("n", 6, subsample_size=3):
            jp.observe("y", dist.Normal(w, 1.0), y)

    refused(StructureError, program, np.zeros(6), says=("plate 'n'", "3 of 6", "VariationalEM"))


def test_a_factor_statement():
    def program(factor):
        w = jp.latent("w", dist.Normal(0.0, 1.0))
        if factor:
            numpyro.factor("f", -w**2)
        else:
            jp.observe("f", dist.Normal(w, 0.5**0.5), 0.0)
        jp.observe("y", dist.Normal(w, 1.0), 0.5)

    with jax.enable_x64(True):
        found, same = run(program, True), run(program, False)
    np.testing.assert_allclose(found.mean("w"), same.mean("w"), atol=1e-7)
    np.testing.assert_allclose(found.variance("w"), same.variance("w"), rtol=1e-7)
    constant = 0.5 * np.log(2 * np.pi * 0.5)
    np.testing.assert_allclose(found.free_energy[-1] + constant, same.free_energy[-1], atol=1e-7)


@pytest.mark.parametrize("bend", [float, np.sin, lambda w: w if w > 0 else 0.0])
def test_python_that_asks_for_the_value_of_a_latent(bend):
    def program():
        w = jp.latent("w", dist.Normal(0.0, 1.0))
        jp.observe("y", dist.Normal(bend(w), 1.0), 0.5)

    refused(StructureError, program, says=(Path(__file__).name, "jnp.where"))


def test_many_data_of_one_kind_are_sent_to_a_plate():
    def program(y):
        jp.observe("y", dist.Normal(jp.latent("w", dist.Normal(0.0, 1.0)), 1.0), y)

    refused(ShapeError, program, np.zeros(7), site="y", says=("numpyro.plate('n', 7)",))
