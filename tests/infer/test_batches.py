"""Many runs at once are the runs one by one."""

from __future__ import annotations

import copy
import pickle
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import jopa_ppl as jp
from tests.engine.test_rotation import channels, relevant
from tests.faults import act, drift, series

GOALS = np.stack([np.asarray(jp.sparse(4, {0: [0.0, 0.0], 3: [g, -g]})) for g in (0.5, 1.0, 2.0)])


def same(batch, runs, sites):
    assert len(batch) == len(runs)
    for name in sites:
        for got, of in ((batch.mean(name), "mean"), (batch.variance(name), "variance")):
            want = np.stack([getattr(p, of)(name) for p in runs])
            assert np.isfinite(want).all()
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(batch.free_energy, [p.free_energy[-1] for p in runs], rtol=1e-6)


def test_goals():
    vmp = jp.VMP(act, decide="u", progress=False)
    plans, runs = vmp.run_batch(GOALS, over="y"), [vmp.run(g) for g in GOALS]
    same(plans, runs, ("u", "x", "x0"))
    np.testing.assert_allclose(plans[-1].mean("u"), runs[-1].mean("u"), rtol=1e-5, atol=1e-6)
    assert plans[1].predict(num_samples=3)["y"].shape == (3, 4, 2)
    with pytest.raises(IndexError):
        plans[3]


def test_starts_and_actions():
    starts = dist.Normal(jnp.array([[0.0, 1.0], [2.0, 0.0], [1.0, 1.0]]), 0.1).to_event(1)
    actions = np.arange(12.0).reshape(3, 4, 1)

    def vmp(start, u):
        return jp.VMP(jp.condition(jp.given(act, {"x0": start}, update=True), {"u": u}),
                      progress=False)

    batch = vmp(starts, actions).run_batch(GOALS[0], over=("x0", "u"))
    runs = [vmp(dist.Normal(starts.base_dist.loc[i], 0.1).to_event(1), actions[i]).run(GOALS[0])
            for i in range(3)]
    same(batch, runs, ("x", "x0"))


def test_runs_that_see_the_state_to_the_end_beside_some_that_do_not():
    """Where b is no longer seen and a still is, b goes on from what is known of both."""
    def two(y):
        def step(state, y):
            a, b = state
            jp.observe("y", dist.Normal(a, 0.3), y[0])
            jp.observe("z", dist.Normal(b, 0.3), y[1])
            a = jp.latent("a", dist.Normal(0.9 * a, 0.5))
            b = jp.latent("b", dist.Normal(0.7 * b + 0.5 * a, 0.4))
            return (a, b), None

        first = [jp.latent(n, dist.Normal(0.0, 1.0)) for n in ("a0", "b0")]
        jp.scan(step, tuple(first), y)

    data = np.random.default_rng(0).normal(size=(4, 5, 2))
    data[1, 2:, 1] = data[2, 3:] = data[3] = np.nan
    vmp = jp.VMP(two, progress=False)
    same(vmp.run_batch(data, over="y"), [vmp.run(y) for y in data], ("a", "b", "a0", "b0"))


def test_data_sets_that_settle_at_different_times():
    data = np.stack([series(), 3 * series()[::-1], series() + 1])
    vmp = jp.VMP(drift, progress=False)
    batch = vmp.run_batch(data, 0.0, 1.0, over="y")
    runs = [vmp.run(y, 0.0, 1.0) for y in data]
    same(batch, runs, ("A", "tau", "x"))
    assert list(batch.num_iters) == [p.num_iters for p in runs] and batch.converged.all()


def test_what_is_wrong_is_told_with_its_number():
    vmp = jp.VMP(act, progress=False)
    y = np.zeros((3, 4, 2), np.float32)
    y[1, 2] = np.inf
    with pytest.raises(jp.DataError, match=r"in run 1 of the batch"):
        vmp.run_batch(y, over="y")
    with pytest.raises(jp.SiteError, match="unknown name in over="):
        vmp.run_batch(y, over="z")
    with pytest.raises(jp.ShapeError, match="differ in length"):
        jp.VMP(jp.condition(act, {"u": np.zeros((2, 4, 1))})).run_batch(y, over=("y", "u"))


def test_masked_entries_are_missing_in_a_batch():
    def program(y):
        w = jp.latent("w", dist.Normal(0.0, 1.0))
        with jp.plate("n", 3):
            jp.observe("y", dist.Normal(w, 1.0), y)

    y = np.ma.masked_array(np.ones((2, 3)), [[False, False, True], [False] * 3])
    batch = jp.VMP(program).run_batch(y, over="y")
    np.testing.assert_allclose(batch.mean("w"), [2 / 3, 3 / 4], rtol=1e-6)
    with pytest.raises(jp.JopaError, match="named by its number"):
        batch["w"]
    for ask in (batch.mean, batch[0].mean, batch[0].variance, batch[0].__getitem__):
        with pytest.raises(jp.SiteError, match="named by a string"):
            ask(["w"])


@pytest.mark.parametrize("sweeps", [3, 25])
def test_few_sweeps_are_done(sweeps):
    def program(y):
        m = jp.latent("m", dist.Normal(0.0, 3.0))
        tau = jp.latent("tau", dist.Gamma(2.0, 1.0))
        with jp.plate("n", 4):
            jp.observe("y", dist.Normal(m, 1 / jnp.sqrt(tau)), y)

    y = np.array([[0.3, 1.0, -0.2, 4.0], [1.0, 1.1, 0.9, 1.0]])
    vmp = jp.VMP(program, progress=False, max_iters=sweeps, tol=0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", jp.ConvergenceWarning)
        batch, alone = vmp.run_batch(y, over="y"), vmp.run(y[0])
    assert 0 < batch.num_iters[0] == alone.num_iters <= sweeps
    np.testing.assert_allclose(batch.free_energy[0], alone.free_energy[-1], rtol=1e-10)
    np.testing.assert_allclose(batch.mean("m")[0], alone.mean("m"), rtol=1e-6)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_batch_is_copied_as_its_posteriors_are(again):
    plans = jp.VMP(act, decide="u", progress=False).run_batch(GOALS, over="y")
    copied = again(plans)
    same(copied, list(plans), ("u", "x", "x0"))
    assert (copied.converged == plans.converged).all() and len(copied) == len(plans)
    np.testing.assert_allclose(copied[1].mean("u"), plans[1].mean("u"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::jopa_ppl.errors.ConvergenceWarning")
def test_slow_runs_start_ahead_side_by_side():
    """Each comes to where it does alone, far below what as many plain sweeps come to."""
    with jax.enable_x64(True):
        data = np.stack([channels(), 1.3 * channels()[::-1]])
        quick, plain = (jp.VMP(relevant, progress=False, max_iters=150, extrapolate=e)
                        for e in (True, False))
        batch, slow = (v.run_batch(data, 4, over="y") for v in (quick, plain))
        alone = [quick.run(y, 4).free_energy[-1] for y in data]
        np.testing.assert_allclose(batch.free_energy, alone, atol=1e-3)
        assert batch.converged.all() and (slow.free_energy > batch.free_energy + 0.3).all()
        several = jp.VMP(relevant, progress=False, max_iters=150, starts=3).run(data[0], 4)
        assert several.starts.min() < alone[0] + 1e-3 and several.converged
