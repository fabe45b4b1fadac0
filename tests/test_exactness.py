"""Beliefs, evidence and updates against independent truth, for every program of the list."""

import functools
import warnings
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import programs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from oracles import (
    dense_gaussian,
    dense_lds,
    mean_field_regression,
    numerical_gradient,
    settled,
)

import jopa_ppl as jp

pytestmark = pytest.mark.slow      # minutes of compilation: python -m pytest -m slow

C = np.array([[1.0, 0.5], [0.0, 1.0]])
A, B, W = programs.rotation(), np.array([[0.5], [-1.0]]), np.array([[20.0, 3.0], [3.0, 10.0]])
rng = np.random.default_rng(5)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def run(model, *args, tol=1e-10, max_iters=200, **kwargs):
    """A fit without bars and without the warning that few sweeps bring."""
    options = {k: kwargs.pop(k) for k in ("chain", "blocks") if k in kwargs}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", jp.ConvergenceWarning)
        return jp.VMP(model, tol=tol, max_iters=max_iters, progress=False, **options).run(
            *args, **kwargs)


@functools.cache
def fit(name):
    """The posterior of a program of the list, run once."""
    case = programs.cases()[name]
    return run(case.model, *case.args, **case.kwargs)


# -- every program of the list -------------------------------------------------------------------


@pytest.mark.parametrize("name", list(programs.cases()))
def test_every_program_runs_and_its_free_energy_never_rises(name):
    posterior = fit(name)
    f = posterior.free_energy
    assert np.isfinite(f).all() and len(f) >= 2
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


def one_block(name, T):
    """A program whose latents are one Gaussian block, with missing data: model, args, shapes."""
    y, u = programs.simulate(T, seed=T, missing=0)
    if T > 2:
        y[1], y[2, 0] = np.nan, np.nan
    elif T > 1:
        y[0, 1] = np.nan
    state = {"x0": (2,), "x": (T, 2)}
    if name == "lds":
        return jp.condition(programs.lds, {"A": A, "B": B, "W": W}), (y,), {"T": T, "C": C}, {
            **state, "u": (T, 1)}
    if name == "lds, actions known":
        model = jp.condition(programs.lds, {"A": A, "B": B, "W": W, "u": u})
        return model, (y,), {"T": T, "C": C}, state
    if name == "varying":
        case = programs.cases(T)["varying"]
        return case.model, (y,), case.kwargs, {**state, "u": (T, 1)}
    if name == "fusion":
        model = jp.condition(programs.fusion, {"tau": np.asarray(3.0)})
        return model, (y, y[::-1, 0] * 2), {"T": T, "A": A}, state
    if name == "coupled":
        model = jp.condition(programs.coupled, {"tau": np.array([2.0, 9.0])})
        data = programs.simulate(T, missing=0)[0][:, 0]
        return model, (data,), {"T": T}, {"a0": (), "b0": (), "a": (T,), "b": (T,)}
    if name == "second order":
        model = jp.condition(programs.second_order, {"tau": np.asarray(9.0),
                                                     "damp": np.asarray(0.7)})
        return model, (y,), {"T": T}, {"q1": (2,), "q0": (2,), "q": (T, 2)}
    if name == "trajectories":
        model = jp.condition(programs.trajectories, {"A": A, "W": W})
        many = programs.simulate(T, n=3, missing=0)[0]
        many[T // 2 + 1:, 1] = np.nan
        return model, (many,), {}, {"x0": (3, 2), "x": (T, 3, 2)}
    if name == "hierarchy":
        case = programs.cases()["hierarchy"]
        model = jp.condition(case.model, {"tau": np.asarray(2.0)})
        return model, case.args, {}, {"mu": (), "theta": (6, 1)}
    if name == "transitions":
        case = programs.cases()["transitions, tempered"]
        return jp.condition(case.model, {"W": W}), case.args, {}, {"A": (2, 3), "B": (2, 1)}
    case = programs.cases()["factor analysis"]
    model = jp.condition(case.model, {"L": rng.normal(size=(5, 2)), "tau": np.arange(1.0, 6)})
    return model, case.args, {}, {"z": (25, 2), "b": (5,)}


@pytest.mark.parametrize(("name", "T"), [
    *((n, T) for n in ("lds", "second order") for T in (1, 2, 5)),
    *((n, 5) for n in ("lds, actions known", "varying", "fusion", "coupled", "trajectories")),
    *((n, 1) for n in ("hierarchy", "transitions", "factor analysis"))])
def test_one_block_is_the_exact_posterior(name, T):
    model, args, kwargs, shapes = one_block(name, T)
    exact = dense_gaussian(model, args, kwargs, shapes)
    posterior = run(model, *args, **kwargs)
    assert_allclose(posterior.free_energy[-1], -exact.evidence, rtol=1e-10)
    for site in shapes:
        assert_allclose(posterior.mean(site), exact.mean[site], rtol=1e-8, atol=1e-10)
        assert_allclose(posterior.variance(site), exact.var[site], rtol=1e-8, atol=1e-12)


# -- many blocks: an independent mean-field implementation ----------------------------------------


@pytest.mark.parametrize("offset", [False, True])
def test_lds_at_the_fixed_point_of_a_dense_implementation(offset):
    posterior = settled(fit("lds with offset" if offset else "lds"))
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


def test_missing_frames_do_not_pull_the_dynamics():
    y, u = programs.simulate(30, seed=1, missing=0.8)
    exact = dense_lds(y, u, C, sweeps=300)
    posterior = run(jp.condition(programs.lds, {"u": u}), y, T=30, C=C, tol=0, max_iters=300)
    found = np.concatenate([posterior.mean("A"), posterior.mean("B")], 1)
    assert_allclose(found, exact.M_mean, atol=1e-6)


@pytest.mark.parametrize("N", [30, 3000])
def test_regression_against_its_closed_form(N):
    X = rng.normal(size=(N, 3))
    y = X @ np.array([1.0, -2.0, 0.5]) + 0.3 * rng.normal(size=N)
    exact = mean_field_regression(X, y)
    posterior = run(programs.regression, X, y, tol=0)
    assert_allclose(posterior.mean("w"), exact.mean, rtol=1e-10)
    assert_allclose(posterior["w"].covariance_matrix, exact.cov, rtol=1e-8, atol=1e-14)
    assert_allclose(posterior.mean("tau"), exact.a / exact.b, rtol=1e-10)
    assert_allclose(posterior.free_energy[-1], exact.free_energy, rtol=1e-10)


# -- messages are gradients -----------------------------------------------------------------------


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


# -- laws -----------------------------------------------------------------------------------------


def test_barren_steps_change_nothing():
    (y,), kwargs = programs.cases()["lds, actions latent"][1:]
    longer = np.concatenate([y, np.full((3, 2), np.nan)])
    short = fit("lds, actions latent")
    long = run(programs.lds, longer, **{**kwargs, "T": len(longer)})
    assert_allclose(long.free_energy, short.free_energy, rtol=1e-12)
    for site in ("A", "B", "W", "x0"):
        assert_allclose(long.mean(site), short.mean(site), rtol=1e-11, atol=1e-12)
        assert_allclose(long.variance(site), short.variance(site), rtol=1e-11, atol=1e-12)
    for site in ("x", "u"):
        assert_allclose(long.mean(site)[:len(y)], short.mean(site), rtol=1e-11, atol=1e-12)


def test_latents_without_data_keep_their_prior():
    """Dynamics that no pair of frames speaks about, given or not, and what they predict."""
    y, _ = programs.simulate(8)
    first = np.where(np.arange(8)[:, None] == 0, y, np.nan)
    plain = run(programs.autonomous, first, T=8)
    assert_allclose(plain.mean("A"), np.eye(2), atol=1e-12)
    assert_allclose(plain.variance("A"), 0.5, rtol=1e-12)
    assert_allclose(plain.mean("W"), 4 * np.eye(2), atol=1e-12)
    assert_allclose(plain.mean("x"), np.broadcast_to(plain.mean("x0"), (8, 2)), rtol=1e-10)
    learned = fit("autonomous")
    held = run(jp.given(programs.autonomous, learned), first, T=8)
    for site in ("A", "W"):
        assert_allclose(held.mean(site), learned.mean(site), rtol=1e-12)
        assert_allclose(held.variance(site), learned.variance(site), rtol=1e-10)
    assert_allclose(held.mean("x")[0], held.mean("A") @ held.mean("x0"), rtol=1e-10)


@pytest.mark.parametrize("known", [True, False])
def test_a_group_without_data_is_predicted(known):
    (y,) = programs.cases()["hierarchy"].args
    holes = np.where(np.arange(6)[:, None] == 3, np.nan, y)
    model = jp.condition(programs.hierarchy, {"tau": np.asarray(2.0)} if known else {})
    posterior, kept = run(model, holes), np.arange(6) != 3
    without = run(model, y[kept])
    assert_allclose(posterior.free_energy[-1], without.free_energy[-1], rtol=1e-10)
    assert_allclose(posterior.mean("theta")[kept], without.mean("theta"), rtol=1e-8)
    assert_allclose(posterior.mean("theta")[3, 0], without.mean("mu"), rtol=1e-8)
    if known:
        assert_allclose(posterior.variance("theta")[3, 0], without.variance("mu") + 0.5, rtol=1e-8)
    draws = posterior.sample(jax.random.key(0), (400,))["theta"]
    assert_allclose(draws.mean(0), posterior.mean("theta"), atol=0.3)


@settings(max_examples=4, deadline=None)
@given(st.permutations(range(3)))
def test_the_order_of_trajectories_does_not_matter(order):
    with jax.enable_x64(True):
        (y,), _ = programs.cases()["trajectories"][1:]
        plain, mixed = fit("trajectories"), run(programs.trajectories, y[:, np.array(order)])
        assert_allclose(mixed.free_energy[-1], plain.free_energy[-1], rtol=1e-10)
        assert_allclose(mixed.mean("A"), plain.mean("A"), rtol=1e-8, atol=1e-10)
        assert_allclose(mixed.mean("x"), plain.mean("x")[:, np.array(order)], rtol=1e-8, atol=1e-10)


def relabelled(x, y, *, names, cuts=()):
    """A regression with sites of any name and its plate cut in pieces."""
    w = numpyro.sample(names[0], dist.Normal(jnp.zeros(x.shape[1]), 1.0).to_event(1))
    b = numpyro.sample(names[1], dist.Normal(0.0, 2.0))
    tau = numpyro.sample(names[2], dist.Gamma(2.0, 1.0))
    edges = [0, *cuts, len(x)]
    for i, (start, stop) in enumerate(pairwise(edges)):
        with numpyro.plate(f"{names[3]}{i}", stop - start):
            mean = x[start:stop] @ w + b
            numpyro.sample(f"{names[4]}{i}", dist.Normal(mean, tau**-0.5), obs=y[start:stop])


@settings(max_examples=2, deadline=None)
@given(st.permutations(("w", "b", "tau", "n", "y")), st.sampled_from([(), (7,), (3, 12)]))
def test_names_and_the_cut_of_a_plate_do_not_matter(names, cuts):
    with jax.enable_x64(True):
        x, _, y, _ = programs.table()
        plain = _plain()
        other = run(relabelled, x, y[:, 0], tol=0, names=tuple(names), cuts=cuts)
        assert_allclose(other.free_energy[-1], plain.free_energy[-1], rtol=1e-12)
        for old, new in zip(("w", "b", "tau"), names):
            assert_allclose(other.mean(new), plain.mean(old), rtol=1e-10)


@functools.cache
def _plain():
    x, _, y, _ = programs.table()
    names = ("w", "b", "tau", "n", "y")
    return run(relabelled, x, y[:, 0], tol=0, names=names, cuts=())


def test_a_plate_of_regressions_is_as_many_regressions():
    x, u, y, weights = programs.table()
    many = fit("local transitions")
    total = 0.0
    for h in range(3):
        one = run(programs.transitions, x, u, y, weights[h])
        total += one.free_energy[-1]
        for site in ("A", "B", "W"):
            assert_allclose(many.mean(site)[h, 0], one.mean(site), rtol=1e-5, atol=1e-6)
            assert_allclose(many.variance(site)[h, 0], one.variance(site), rtol=1e-5)
    assert_allclose(many.free_energy[-1], total, rtol=1e-9)


def test_more_data_later_equals_all_data_at_once():
    X = rng.normal(size=(40, 3))
    y = X @ np.array([1.0, -2.0, 0.5]) + 0.3 * rng.normal(size=40)
    # `tau` becomes data, so that w is the one block; its own density is counted in every run.
    model = jp.condition(programs.regression, {"tau": np.asarray(9.0)})
    first = run(model, X[:20], y[:20])
    second = run(jp.given(model, first, update=True), X[20:], y[20:])
    both = run(model, X, y)
    assert_allclose(second.mean("w"), both.mean("w"), rtol=1e-10)
    assert_allclose(second["w"].covariance_matrix, both["w"].covariance_matrix, rtol=1e-10,
                    atol=1e-15)
    tau = -dist.Gamma(2.0, 1.0).log_prob(9.0)
    together = first.free_energy[-1] + second.free_energy[-1] - tau
    assert_allclose(together, both.free_energy[-1], rtol=1e-10)


def test_missing_rows_are_as_rows_left_out():
    (X, y), kwargs = programs.cases()["regression, sqrt"][1:]
    holes = np.where(np.arange(len(y)) % 3 == 0, np.nan, y)
    kept = np.isfinite(holes)
    with_holes = run(programs.regression, X, holes, tol=0, **kwargs)
    without = run(programs.regression, X[kept], y[kept], tol=0, **kwargs)
    assert_allclose(with_holes.free_energy[-1], without.free_energy[-1], rtol=1e-12)
    assert_allclose(with_holes.mean("w"), without.mean("w"), rtol=1e-12)
    assert_allclose(with_holes.mean("tau"), without.mean("tau"), rtol=1e-12)


def test_ways_to_eliminate_a_chain_agree():
    model, args, kwargs, _ = one_block("second order", 5)
    first, *others = (run(model, *args, chain=c, **kwargs)
                      for c in ("sequential", "parallel", "funsor"))
    for other in others:
        assert_allclose(other.free_energy, first.free_energy, rtol=1e-10)
        for site in first.sites:
            assert_allclose(other.mean(site), first.mean(site), rtol=1e-8, atol=1e-10)
            assert_allclose(other.variance(site), first.variance(site), rtol=1e-8, atol=1e-12)
