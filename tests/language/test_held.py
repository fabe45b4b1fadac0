"""Beliefs that are given and not updated: used in full, never moved, whatever they share."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from fitting import run
from numpy.testing import assert_allclose
from oracles import dense_gaussian

import jopa_ppl as jp

rng = np.random.default_rng(0)
X, Y = rng.normal(size=10), rng.normal(size=10) + 1


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def line(y, X):
    """Whole numbers are parameters too."""
    a, b = jp.latent("a", dist.Normal(0, 1)), jp.latent("b", dist.Normal(0, 1))
    jp.observe("y", dist.Normal(a + b * X, 1).to_event(1), y)


def walk(y, *, start=None):
    x0 = jp.latent("x0", dist.Normal(0.0, 1.0)) if start is None else start

    def step(x, y):
        jp.observe("y", dist.Normal(x, 0.5), y)
        return jp.latent("x", dist.Normal(0.9 * x, 0.3)), None

    jp.scan(step, x0, y)


def test_one_of_two_that_meet_in_a_mean():
    posterior = run(jp.given(line, {"a": dist.Normal(-3.0, 0.5)}), Y, X)
    assert_allclose([posterior.mean("a"), posterior.variance("a")], [-3.0, 0.25], rtol=1e-12)
    assert_allclose(posterior.mean("b"), X @ (Y + 3) / (1 + X @ X), rtol=1e-10)
    assert_allclose(posterior.variance("b"), 1 / (1 + X @ X), rtol=1e-10)


def test_part_of_a_joint_belief():
    learned = run(line, Y, X)
    again = run(jp.given(line, learned, sites=["a"]), Y + 5, X)
    assert_allclose(again.mean("a"), learned.mean("a"), rtol=1e-12)
    assert_allclose(again.variance("a"), learned.variance("a"), rtol=1e-12)
    assert_allclose(again.mean("b"), X @ (Y + 5 - learned.mean("a")) / (1 + X @ X), rtol=1e-10)


def test_a_first_state():
    """The others see its mean, as if it were known; its spread is its own."""
    belief, y = {"x0": dist.Normal(5.0, 0.5)}, Y[:4]
    held = run(jp.given(walk, belief), y)
    assert_allclose([held.mean("x0"), held.variance("x0")], [5.0, 0.25], rtol=1e-12)
    exact = dense_gaussian(walk, (y,), {"start": 5.0}, {"x": (4,)})
    assert_allclose(held.mean("x"), exact.mean["x"], rtol=1e-8)
    assert_allclose(held.variance("x"), exact.var["x"], rtol=1e-8)
    moved = run(jp.given(walk, belief, update=True), y)
    assert abs(moved.mean("x0") - 5.0) > 1


def test_a_plan_starts_from_a_given_first_state():
    F, G = jnp.array([[1.0, 0.1], [0.0, 1.0]]), jnp.array([0.0, 0.3])

    def mass(y):
        def step(x, y):
            jp.observe("y", dist.Normal(x, 0.1).to_event(1), y)
            u = jp.latent("u", dist.Normal(0.0, 3.0))
            return jp.latent("x", dist.Normal(F @ x + G * u, 0.05).to_event(1)), None

        jp.scan(step, jp.latent("x0", dist.Normal(jnp.zeros(2), 1.0).to_event(1)), y)

    start = {"x0": dist.Normal(jnp.array([0.2, 0.1]), 1e-3).to_event(1)}
    goal = jp.sparse(8, {-1: np.array([1.0, 0.0])})
    plans = [jp.VMP(jp.given(mass, start, update=u), decide="u").run(goal) for u in (False, True)]
    assert_allclose(plans[0].mean("u"), plans[1].mean("u"), rtol=1e-10)
    assert_allclose(plans[0].mean("x0"), [0.2, 0.1], rtol=1e-6)


def test_blocks_do_not_join_what_is_held_to_what_is_not():
    with pytest.raises(jp.StructureError, match="'a' is held but 'b' is not"):
        jp.VMP(jp.given(line, {"a": dist.Normal(0.0, 1.0)}), blocks=[("a", "b")]).run(Y, X)
