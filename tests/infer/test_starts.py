"""Several starts side by side, of which the best is kept."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import jopa_ppl as jp
from jopa_ppl.errors import JopaError

RNG = np.random.default_rng(4)
Y = np.concatenate([RNG.normal(m, 0.4, 8) for m in (-6.0, -4.0, -1.0, 1.5, 5.0)])


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def mixture(y):
    w = jp.latent("w", dist.Dirichlet(jnp.ones(5)))
    with jp.plate("K", 5):
        mu = jp.latent("mu", dist.Normal(0, 5.0))
    with jp.plate("n", len(y)):
        z = jp.latent("z", dist.Categorical(w))
        jp.observe("y", dist.Normal(mu[z], 0.4), y)


def level(y):
    x = jp.latent("x", dist.Normal(0.0, 1.0))
    jp.observe("y", dist.Normal(x, 1.0), y)


def fit(model, *args, **options):
    return jp.VMP(model, progress=False, extrapolate=False, max_iters=500, tol=1e-9,
                  **options).run(*args, rng_key=3)


def test_the_best_of_many_is_kept():
    """The first start is that of one alone; where they end differs, and the best has each of the
    five groups."""
    many, one = fit(mixture, Y, starts=8), fit(mixture, Y)
    np.testing.assert_allclose(many.starts[0], one.free_energy[-1], rtol=1e-9)
    assert np.ptp(many.starts) > 20
    np.testing.assert_allclose(many.free_energy[-1], many.starts.min(), rtol=1e-12)
    assert many.converged and many.num_iters == len(many.free_energy) and one.starts is None
    labels = np.asarray(many.most_probable()["z"])
    assert (labels.reshape(5, 8) == labels[::8, None]).all() and len(set(labels)) == 5
    np.testing.assert_allclose(np.sort(many.mean("mu")), Y.reshape(5, 8).mean(1), atol=0.1)
    assert many.sample(0, 3)["z"].shape == (3, len(Y))
    again = fit(mixture, Y, starts=8)
    np.testing.assert_array_equal(again.free_energy, many.free_energy)


def test_labels_end_where_a_program_that_knows_them_does():
    """F of the best start against that of the same groups given."""
    def known(y):
        w = jp.latent("w", dist.Dirichlet(jnp.ones(5)))
        with jp.plate("K", 5):
            mu = jp.latent("mu", dist.Normal(0, 5.0))
        with jp.plate("n", len(y)):
            z = jp.observe("z", dist.Categorical(w), np.repeat(np.arange(5), 8))
            jp.observe("y", dist.Normal(mu[z], 0.4), y)

    many, told = fit(mixture, Y, starts=8), fit(known, Y)
    np.testing.assert_allclose(many.free_energy[-1], told.free_energy[-1], atol=0.2)


def test_what_one_pass_solves_begins_once():
    found = fit(level, np.array(1.0), starts=5)
    assert found.starts is None and found.num_iters <= 2


def tight(y, scale):
    """Groups, and a sum of two levels that is known to `scale`."""
    level = jp.latent("level", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
    jp.observe("total", dist.Normal(level.sum(), scale), jnp.array(0.5))
    mixture(y)


def test_digits_are_told_of_what_settled_before_the_rest():
    """Of a start, and of a run of a batch, that goes no further while others do."""
    options = {"progress": False, "extrapolate": False, "max_iters": 500, "tol": 1e-9}
    with pytest.warns(jp.NumericalWarning, match="total"):
        found = jp.VMP(tight, starts=8, **options).run(Y, 1e-6, rng_key=3)
    assert found.num_iters < 20 and found.state.digits.tied.max() > 1e11
    other = np.random.default_rng(5).normal(size=len(Y)) * 2
    with pytest.warns(jp.NumericalWarning, match="total") as told:
        many = jp.VMP(tight, **options).run_batch(np.stack([Y, other]), 1e-6, over="y")
    assert many.num_iters[0] < 20 < many.num_iters[1] and len(told) == 2


def test_faults_are_told_as_of_one_start():
    with pytest.raises(jp.DataError):
        fit(mixture, np.full(8, np.inf), starts=3)
    with pytest.warns(jp.ConvergenceWarning):
        jp.VMP(mixture, progress=False, max_iters=2, starts=3).run(Y)


@pytest.mark.parametrize("wrong", [0, -1, 1.5, "3", None])
def test_odd_numbers_of_starts_are_refused(wrong):
    with pytest.raises(JopaError, match="starts"):
        jp.VMP(mixture, starts=wrong)


def test_plans_and_batches_have_none():
    with pytest.raises(JopaError, match=r"plan\.start"):
        jp.VMP(mixture, decide="u", starts=2)
    with pytest.raises(JopaError, match="starts"):
        jp.VMP(mixture, starts=2).run_batch(np.stack([Y, Y]), over="y")
