"""Laws that hold whatever the numbers: what changes nothing, and what must come to the same."""

import functools
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import programs
import pytest
from fitting import fit, one_block, run
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from oracles import dense_gaussian

import jopa_ppl as jp

rng = np.random.default_rng(5)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def test_barren_steps_change_nothing():
    (y,), kwargs = programs.cases()["lds, actions latent"][1:]
    longer = np.concatenate([y, np.full((3, 2), np.nan)])
    short = fit("lds, actions latent")
    long = run(programs.lds, longer, **{**kwargs, "T": len(longer)})
    shared = min(long.num_iters, short.num_iters)
    assert_allclose(long.free_energy[:shared], short.free_energy[:shared], rtol=1e-12)
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
    q = without.state.moments["tau"] if not known else None
    noise = 0.5 if known else q.b / (q.a - 1)                            # E[1 / tau]
    assert_allclose(posterior.variance("theta")[3, 0], without.variance("mu") + noise, rtol=1e-8)
    draws = np.asarray(posterior.sample(jax.random.key(0), (4000,))["theta"])
    assert_allclose(draws.mean(0), posterior.mean("theta"), atol=0.07)
    assert_allclose(draws.var(0), posterior.variance("theta"), rtol=0.3)


@pytest.mark.slow
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


@pytest.mark.slow
@settings(max_examples=2, deadline=None)
@given(st.permutations(("w", "b", "tau", "n", "y")), st.sampled_from([(), (7,), (3, 12)]))
def test_names_and_the_cut_of_a_plate_do_not_matter(names, cuts):
    with jax.enable_x64(True):
        x, _, y, _ = programs.table()
        plain = _plain()
        other = run(relabelled, x, y[:, 0], names=tuple(names), cuts=cuts)
        assert_allclose(other.free_energy[-1], plain.free_energy[-1], rtol=1e-12)
        for old, new in zip(("w", "b", "tau"), names):
            assert_allclose(other.mean(new), plain.mean(old), rtol=1e-10)


@functools.cache
def _plain():
    x, _, y, _ = programs.table()
    names = ("w", "b", "tau", "n", "y")
    return run(relabelled, x, y[:, 0], names=names, cuts=())


@pytest.mark.slow
def test_a_plate_of_regressions_is_as_many_regressions():
    x, u, y, weights = programs.table()
    many = fit("local transitions")
    total = 0.0
    for h in range(3):
        one = run(programs.transitions, x, u, y, weights[h])
        total += one.free_energy[-1]
        for site in ("A", "B", "W"):
            assert_allclose(many.mean(site)[h, 0], one.mean(site), rtol=1e-8, atol=1e-10)
            assert_allclose(many.variance(site)[h, 0], one.variance(site), rtol=1e-8)
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


@pytest.mark.parametrize("stored", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_globals_of_a_tree_are_given_jointly(stored, tmp_path):
    """Data tell of a + b alone, so that the beliefs about a and b lean on each other."""
    def tree(y):
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
        b = numpyro.sample("b", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
        with numpyro.plate("n", y.shape[-1]):
            z = numpyro.sample("z", dist.Normal(a + b[0], 1.0))
            numpyro.sample("y", dist.Normal(z + 0.1 * b[1], 0.5), obs=y[0])
            if len(y) > 1:
                later = numpyro.sample("later", dist.Normal(a + b[0], 1.0))
                numpyro.sample("y later", dist.Normal(later + 0.1 * b[1], 0.5), obs=y[1])

    y = rng.normal(1.0, 1.0, size=(2, 4))
    exact = dense_gaussian(tree, (y,), {}, {"a": (), "b": (2,), "z": (4,), "later": (4,)})
    first = run(tree, y[:1])
    assert first.compiled.graph.block_of("a").kind == "elimination"
    belief = first
    if stored:
        first.save(tmp_path / "first.safetensors")
        belief = jp.load_posterior(tmp_path / "first.safetensors")
    second = run(jp.given(tree, belief, update=True), y[1:])
    for site in ("a", "b"):
        assert_allclose(second.mean(site), exact.mean[site], rtol=1e-8)
        assert_allclose(second.variance(site), exact.var[site], rtol=1e-8)
    together = first.free_energy[-1] + second.free_energy[-1]
    assert_allclose(together, -exact.evidence, rtol=1e-9)


def test_missing_rows_are_as_rows_left_out():
    (X, y), kwargs = programs.cases()["regression, sqrt"][1:]
    holes = np.where(np.arange(len(y)) % 3 == 0, np.nan, y)
    kept = np.isfinite(holes)
    with_holes = run(programs.regression, X, holes, **kwargs)
    without = run(programs.regression, X[kept], y[kept], **kwargs)
    assert_allclose(with_holes.free_energy[-1], without.free_energy[-1], rtol=1e-12)
    assert_allclose(with_holes.mean("w"), without.mean("w"), rtol=1e-12)
    assert_allclose(with_holes.mean("tau"), without.mean("tau"), rtol=1e-12)


@pytest.mark.slow
def test_ways_to_eliminate_a_chain_agree():
    model, args, kwargs, _ = one_block("second order", 5)
    first, *others = (run(model, *args, chain=c, **kwargs)
                      for c in ("sequential", "parallel", "funsor"))
    for other in others:
        assert_allclose(other.free_energy, first.free_energy, rtol=1e-10)
        for site in first.sites:
            assert_allclose(other.mean(site), first.mean(site), rtol=1e-8, atol=1e-10)
            assert_allclose(other.variance(site), first.variance(site), rtol=1e-8, atol=1e-12)
