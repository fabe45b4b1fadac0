"""Beliefs, evidence and updates against independent truth, for every program of the list."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import programs
import pytest
from fitting import C, fit, one_block, run
from jax.flatten_util import ravel_pytree
from numpy.testing import assert_allclose
from numpyro.contrib.control_flow import scan
from oracles import (
    conditioned,
    dense_gaussian,
    dense_lds,
    mean_field_regression,
    numerical_gradient,
)

import jopa_ppl as jp

rng = np.random.default_rng(5)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


# -- every program of the list -------------------------------------------------------------------


SLOW = ("transitions, tempered", "autonomous", "lds, actions latent", "lds with offset", "varying",
        "unknown sensor", "fusion", "coupled", "local transitions")


def some_slow(cases, slow):
    """The cases, those of `slow` only with -m slow: every program takes seconds to compile."""
    return [pytest.param(*(c if isinstance(c, tuple) else (c,)),
                         marks=[pytest.mark.slow] if c in slow else []) for c in cases]


@pytest.mark.parametrize("name", some_slow(programs.cases(), SLOW))
def test_every_program_runs_and_its_free_energy_never_rises(name):
    posterior = fit(name)
    f = posterior.free_energy
    assert np.isfinite(f).all() and len(f) >= (1 if posterior.compiled.schedule.exact else 2)
    assert (np.diff(f) <= 1e-9 * np.maximum(1, np.abs(f[1:]))).all()
    assert posterior.converged
    for site in posterior.sites:
        assert np.isfinite(posterior.mean(site)).all()
        assert (posterior.variance(site) > 0).all()


def test_ways_to_write_a_scale_agree():
    first, *others = (fit(f"regression, {form}") for form in programs.SCALES)
    for other in others:
        assert_allclose(other.mean("tau"), first.mean("tau"), rtol=1e-12)
        assert_allclose(other.free_energy, first.free_energy, rtol=1e-12)


# -- one block: the exact posterior and the evidence ----------------------------------------------


@pytest.mark.parametrize(("name", "T"), some_slow([
    *((n, T) for n in ("lds", "second order") for T in (1, 2, 5)),
    *((n, 5) for n in ("lds, actions known", "varying", "fusion", "coupled", "trajectories")),
    *((n, 1) for n in ("hierarchy", "transitions", "factor analysis"))],
    [("lds", 2), ("second order", 1), ("second order", 2), ("lds, actions known", 5), ("fusion", 5),
     ("transitions", 1), ("factor analysis", 1)]))
def test_one_block_is_the_exact_posterior(name, T):
    model, args, kwargs, shapes = one_block(name, T)
    exact = dense_gaussian(model, args, kwargs, shapes)
    posterior = run(model, *args, **kwargs)
    assert_allclose(posterior.free_energy[-1], -exact.evidence, rtol=1e-10)
    for site in shapes:
        assert_allclose(posterior.mean(site), exact.mean[site], rtol=1e-8, atol=1e-10)
        assert_allclose(posterior.variance(site), exact.var[site], rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_a_first_state_that_steps_of_another_scan_read(scale):
    """Whether it stands for the state before the first step, or is only what that is made of."""
    def program(y, w):
        x0 = jp.latent("x0", dist.Normal(0.5, 1.0))

        def step(x, y):
            x = jp.latent("x", dist.Normal(0.9 * x, 0.5))
            jp.observe("y", dist.Normal(x, 0.3), y)
            return x, None

        jp.scan(step, scale * x0 if scale != 1 else x0, y)
        jp.scan(lambda _, w: (None, jp.observe("w", dist.Normal(0.7 * x0, 0.4), w)), None, w)

    y, w = np.array([0.3, np.nan, 1.2, -0.4]), np.array([0.2, np.nan, 0.9])
    exact = dense_gaussian(program, (y, w), {}, {"x0": (), "x": (4,)})
    posterior = run(program, y, w)
    assert_allclose(posterior.free_energy[-1], -exact.evidence, rtol=1e-10)
    for site in ("x0", "x"):
        assert_allclose(posterior.mean(site), exact.mean[site], rtol=1e-8)
        assert_allclose(posterior.variance(site), exact.var[site], rtol=1e-8)


# -- many blocks: an independent mean-field implementation ----------------------------------------


@pytest.mark.parametrize("offset", [False, True])
def test_lds_at_the_fixed_point_of_a_dense_implementation(offset):
    posterior = fit("lds with offset" if offset else "lds")
    y, u = programs.cases()["lds"].args[0], programs.simulate(8)[1]
    exact = dense_lds(y, u, C, c_var=1.0 if offset else None, sweeps=500)
    q, moments = posterior, posterior.state.moments
    x = np.concatenate([q.mean("x0")[None], q.mean("x")[:-1]])
    var = np.concatenate([q.variance("x0")[None], q.variance("x")[:-1]])
    assert_allclose(x, exact.x_mean, rtol=1e-8, atol=1e-10)
    assert_allclose(var, np.diag(exact.x_cov).reshape(-1, 2), rtol=1e-8)
    sites = ("A", "B", "c") if offset else ("A", "B")
    found = np.concatenate([q.mean(n).reshape(2, -1) for n in sites], 1)
    assert_allclose(found, exact.M_mean, rtol=1e-8, atol=1e-10)
    spread = np.concatenate([q.variance(n).reshape(2, -1) for n in sites], 1)
    assert_allclose(spread.ravel(), np.diag(exact.M_cov), rtol=1e-8)
    assert_allclose(moments["W"].dof, exact.dof)
    assert_allclose(moments["W"].rate, exact.rate, rtol=1e-8)
    # The library counts the density of the actions too: they are data of the program.
    actions = -dist.Normal(0, 2.0).log_prob(u).sum()
    assert_allclose(q.free_energy[-1], exact.free_energy + actions, rtol=1e-10)


@pytest.mark.slow
def test_missing_frames_do_not_pull_the_dynamics():
    y, u = programs.simulate(30, seed=1, missing=0.8)
    exact = dense_lds(y, u, C, sweeps=3000)
    posterior = run(jp.condition(programs.lds, {"u": u}), y, T=30, C=C)
    found = np.concatenate([posterior.mean("A"), posterior.mean("B")], 1)
    assert_allclose(found, exact.M_mean, rtol=1e-8)


def test_few_frames_tell_the_dynamics():
    """With 80 % of the frames missing A is as good as least squares on all states would have it."""
    y, u = programs.simulate(2000, seed=2, missing=0.8)
    model = jp.condition(programs.lds, {"u": u})
    posterior = run(model, y, T=len(y), C=np.eye(2), tol=1e-6, max_iters=500)
    assert np.abs(posterior.mean("A") - programs.rotation()).max() < 0.05
    assert np.abs(posterior.mean("B").ravel() - np.array([0.5, -1.0])).max() < 0.05


def known_walk(y):
    def step(x, y):
        jp.observe("y", dist.Normal(x, 0.5), y)
        return jp.latent("x", dist.Normal(0.9 * x, 0.3)), None

    jp.scan(step, jp.latent("x0", dist.Normal(0.0, 1.0)), y)


def known_line(y, learn=False):
    w = jp.latent("w", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
    tau = jp.latent("tau", dist.Gamma(2.0, 2.0)) if learn else 2.0
    with jp.plate("n", len(y)):
        jp.observe("y", dist.Normal(jnp.stack([jnp.ones(6), jnp.arange(6.0)], 1) @ w,
                                    1 / jnp.sqrt(tau)), y)


@pytest.mark.parametrize("program", [known_walk, known_line])
def test_one_pass_is_made_where_one_pass_is_exact(program):
    """At the tolerance 0 too, which stops where nothing changes any more: nothing is left to."""
    y = np.array([0.3, -0.2, np.nan, 1.0, 0.4, 0.9])
    for tol in (1e-6, 0.0):
        posterior = jp.VMP(program, tol=tol, progress=False).run(y)
        assert posterior.converged and posterior.num_iters == len(posterior.free_energy) == 1
    if program is known_line:
        assert jp.VMP(program, progress=False).run(y, learn=True).num_iters > 1


@pytest.mark.parametrize("N", [30, 3000])
def test_regression_against_its_closed_form(N):
    X = rng.normal(size=(N, 3))
    y = X @ np.array([1.0, -2.0, 0.5]) + 0.3 * rng.normal(size=N)
    exact = mean_field_regression(X, y)
    posterior = run(programs.regression, X, y)
    assert_allclose(posterior.mean("w"), exact.mean, rtol=1e-10)
    assert_allclose(posterior["w"].covariance_matrix, exact.cov, rtol=1e-8, atol=1e-14)
    assert_allclose(posterior.mean("tau"), exact.a / exact.b, rtol=1e-10)
    assert_allclose(posterior.free_energy[-1], exact.free_energy, rtol=1e-10)


@pytest.mark.slow
def test_joint_draws_have_the_joint_moments():
    model, args, kwargs, shapes = one_block("lds", 5)
    exact = dense_gaussian(model, args, kwargs, shapes)
    draws = run(model, *args, **kwargs).sample(jax.random.key(0), (4000,))
    flat = np.stack([ravel_pytree({k: draws[k][i] for k in shapes})[0] for i in range(4000)])
    white = (flat - ravel_pytree(exact.mean)[0]) @ np.linalg.inv(np.linalg.cholesky(exact.cov)).T
    assert_allclose(white.mean(0), 0, atol=0.08)
    assert_allclose(white.T @ white / len(white), np.eye(flat.shape[1]), atol=0.12)


@pytest.mark.parametrize("name", ["lds", "hierarchy"])
def test_sites_conditioned_in_part(name):
    model, args, kwargs, shapes = one_block(name, 5)
    site, steps = ("u", [0, 2, 3]) if name == "lds" else ("theta", [2])
    known = np.full(shapes[site], np.nan)
    known[steps] = [[0.7], [-1.0], [1.3]][:len(steps)]
    exact = conditioned(dense_gaussian(model, args, kwargs, shapes), {site: known})
    posterior = run(jp.condition(model, {site: known}), *args, **kwargs)
    assert_allclose(posterior.free_energy[-1], -exact.evidence, rtol=1e-10)
    for n in shapes:
        assert_allclose(posterior.mean(n), exact.mean[n], rtol=1e-8, atol=1e-10)
        assert_allclose(posterior.variance(n), exact.var[n], rtol=1e-8, atol=1e-12)
    belief, draw = posterior[site], posterior.sample(jax.random.key(1))[site]
    for value in (draw, belief.sample(jax.random.key(2))):
        assert_allclose(np.asarray(value)[steps], known[steps])
        assert np.isfinite(belief.log_prob(value)).all()
    assert (belief.log_prob(draw + 1) == -np.inf).any()


@pytest.mark.parametrize("last", [5, 3])
def test_data_given_by_a_handler_are_evidence_like_any_other(last):
    """Conditioned data, fewer than steps, as the only data: the model's own `obs` says the same."""
    y = np.random.default_rng(1).normal(size=(last, 2))

    def program(y, given):
        tau = numpyro.sample("tau", dist.Gamma(2.0, 1.0))
        W = numpyro.sample("W", dist.Wishart(4.0, rate_matrix=jnp.eye(2)))
        x0 = numpyro.sample("x0", dist.Normal(jnp.zeros(2), 1.0).to_event(1))

        def step(x, y):
            x = numpyro.sample("x", dist.MultivariateNormal(0.9 * x, precision_matrix=W))
            fn = dist.Normal(x, 1 / jnp.sqrt(tau)).to_event(1)
            jp.observe("y", fn, None if given else y)
            return x, None

        scan(step, x0, None if given else y, length=5)

    padded = np.concatenate([y, np.full((5 - last, 2), np.nan)])
    want, found = run(program, padded, False), run(
        numpyro.handlers.condition(program, {"y": jnp.asarray(y)}), None, True)
    assert_allclose(found.free_energy[-1], want.free_energy[-1], rtol=1e-10)
    for site in ("x", "W", "tau", "x0"):
        assert_allclose(found.mean(site), want.mean(site), rtol=1e-8, atol=1e-10)
        assert_allclose(found.variance(site), want.variance(site), rtol=1e-8)


def test_values_given_to_some_of_a_plate_are_its_only_data():
    """A regression of latents of which some are known says what one on those alone does."""
    X = np.random.default_rng(2).normal(size=(8, 2))
    known = X @ [1.0, -2.0] + 0.1
    known[[1, 6]] = np.nan

    def program(X):
        w = numpyro.sample("w", dist.Normal(jnp.zeros(2), 2.0).to_event(1))
        tau = numpyro.sample("tau", dist.Gamma(2.0, 1.0))
        with numpyro.plate("n", len(X)):
            numpyro.sample("z", dist.Normal(X @ w, 1 / jnp.sqrt(tau)))

    seen = ~np.isnan(known)
    found = run(jp.condition(program, {"z": known}), X)
    exact = mean_field_regression(X[seen], known[seen])
    assert_allclose(found.mean("w"), exact.mean, rtol=1e-8)
    assert_allclose(found.mean("tau"), exact.a / exact.b, rtol=1e-8)
    assert_allclose(found.free_energy[-1], exact.free_energy, rtol=1e-9)
    assert_allclose(found.mean("z")[~seen], X[~seen] @ exact.mean, rtol=1e-8)


# -- messages are gradients -----------------------------------------------------------------------


@pytest.mark.slow
def test_every_update_is_the_numerical_gradient_of_the_energy():
    posterior = fit("lds, actions latent")
    engine, bound, moments = posterior.compiled.engine, posterior.bound, posterior.state.moments
    stats = engine.stats(moments, bound.clamps)
    kinds = set()
    for block in engine.graph.blocks:
        def energy(mine, name=block.name):
            return engine.energy(list(engine.graph.factors), bound.arrays, {**stats, name: mine})

        mine = stats[block.name]
        numeric = numerical_gradient(energy, mine)
        for a, b in zip(jax.tree.leaves(jax.grad(energy)(mine)), jax.tree.leaves(numeric)):
            assert_allclose(a, b, rtol=1e-7, atol=1e-7)
        own = engine.energy.touching(block)
        new = engine.update(block, own, moments, bound)[block.name]
        kinds.add(block.kind)
        if block.kind == "wishart":
            assert_allclose(new.dof, 2 + 1 + 2 * numeric[1], rtol=1e-7)
            assert_allclose(new.rate, -numeric[0] - numeric[0].T, rtol=1e-7)
        elif block.kind == "dense":
            J = -numeric[1] - numeric[1].T
            assert_allclose(new.cov @ J, np.eye(len(J)), atol=1e-6)
            assert_allclose(J @ (new.mean - mine[0]), numeric[0], rtol=1e-6, atol=1e-6)
        else:
            free = bound.clamps[block.name].free
            J = -numeric[1] - jnp.swapaxes(numeric[1], -1, -2)
            J = J + (1 - free)[..., None] * jnp.eye(J.shape[-1])
            assert_allclose(new.diag, J, rtol=1e-6, atol=1e-6)
            assert_allclose(new.off, -numeric[2], rtol=1e-6, atol=1e-6)
    assert kinds == {"chain", "dense", "wishart"}


@pytest.mark.parametrize("conditioned", [False, True])
def test_data_that_multiply_a_first_state(conditioned):
    """A carry of a state and an action: x_0 = a_0 x0 + noise is a factor of its own."""
    def program(y, a):
        def step(carry, now):
            (x, u), (y, a) = carry, now
            if conditioned:
                a = jp.observe("a", dist.Normal(0.0, 1.0), a)
            x = jp.latent("x", dist.Normal(a * x + 0.7 * u, 0.5))
            jp.observe("y", dist.Normal(x, 0.2), y)
            return (x, jp.latent("u", dist.Normal(0.0, 1.0))), None

        jp.scan(step, (jp.latent("x0", dist.Normal(0.0, 1.0)), 0.0), (y, a))

    y, a = np.random.default_rng(0).normal(size=(2, 4))
    y[2:] = np.nan
    with jax.enable_x64(True):
        exact = dense_gaussian(program, (y, a), {}, {"x0": (), "x": (4,), "u": (4,)})
        found = run(program, y, a)
        np.testing.assert_allclose(found.mean("x0"), exact.mean["x0"], rtol=1e-8)
        np.testing.assert_allclose(found.mean("x"), exact.mean["x"], rtol=1e-8, atol=1e-12)
        np.testing.assert_allclose(found.free_energy[-1], -exact.evidence, rtol=1e-10)


def test_vectors_that_are_one_event_have_a_matrix_each():
    y = np.random.default_rng(0).normal(size=(5, 2))

    def program(y, one_event):
        W = jp.latent("W", dist.Wishart(4.0, rate_matrix=jnp.eye(2)))
        m = jp.latent("m", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
        fn = dist.MultivariateNormal(m + jnp.zeros((5, 2)), precision_matrix=W)
        jp.observe("y", fn.to_event(1) if one_event else fn, y)

    with jax.enable_x64(True):
        one, each = (jp.VMP(program).run(y, e) for e in (True, False))
    np.testing.assert_allclose(one.free_energy, each.free_energy, rtol=1e-12)
    np.testing.assert_allclose(one.mean("W"), each.mean("W"), rtol=1e-12)


def test_precisions_that_data_choose_between():
    """One of two for every element, as the same program with the elements apart."""
    y, which = np.random.default_rng(1).normal(size=6), np.array([0, 1, 1, 0, 1, 0])

    def program(y, apart):
        one, two = (jp.latent(n, dist.Gamma(2.0, 1.0)) for n in ("one", "two"))
        m = jp.latent("m", dist.Normal(0.0, 1.0))
        if apart:
            for name, tau, k in (("a", one, 0), ("b", two, 1)):
                jp.observe(name, dist.Normal(m, tau**-0.5).expand([3]).to_event(1), y[which == k])
        else:
            jp.observe("y", dist.Normal(m, 1 / jnp.sqrt(jnp.where(which == 0, one, two))
                                        ).to_event(1), y)

    found, apart = (jp.VMP(program).run(y, e) for e in (False, True))
    assert_allclose(found.free_energy, apart.free_energy, rtol=1e-12)
    for name in ("one", "two", "m"):
        assert_allclose(found.mean(name), apart.mean(name), rtol=1e-12)
