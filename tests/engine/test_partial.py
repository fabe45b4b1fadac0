"""Sites that are data in part: exact whatever the prior's family, and so when given again."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from faults import FRAMES, act, refused
from fitting import run
from numpy.testing import assert_allclose
from oracles import conditioned, dense_gaussian

import jopa_ppl as jp
from jopa_ppl.tools.controllability import reachability

T = 4
Y, MORE = np.array([0.3, -0.2, 0.9]), np.array([1.4, 0.1, 0.8, -0.5])
COV = np.array([[1.0, 0.6, 0.2], [0.6, 1.5, -0.3], [0.2, -0.3, 0.8]])
PART = np.array([np.nan, 0.5, np.nan])
SHAPES = {"a": (3,), "b": ()}


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def weights(y):
    """A correlated prior, so that the elements that are data speak of the others."""
    a = jp.latent("a", dist.MultivariateNormal(jnp.ones(3), COV))
    b = jp.latent("b", dist.Normal(a[0], 1.0))
    with jp.plate("n", len(y)):
        jp.observe("y", dist.Normal(a @ jnp.array([1.0, 2.0, -1.0]) + b, 0.7), y)


def agrees(posterior, exact, evidence=None):
    for site in exact.mean:
        assert_allclose(posterior.mean(site), exact.mean[site], rtol=1e-8, atol=1e-12)
        assert_allclose(posterior.variance(site), exact.var[site], rtol=1e-8, atol=1e-12)
    if evidence is not None:
        assert_allclose(posterior.free_energy[-1], -evidence, rtol=1e-10)


def truth(*parts, known=PART):
    y = np.concatenate(parts)
    return conditioned(dense_gaussian(weights, (y,), {}, SHAPES), {"a": known})


def test_elements_of_a_multivariate_normal_are_data():
    exact = truth(Y)
    agrees(run(jp.condition(weights, {"a": PART}), Y), exact, exact.evidence)
    # In two turns: what the inner one knows stays known.
    rest = np.array([-0.4, np.nan, np.nan])
    exact = truth(Y, known=np.array([-0.4, 0.5, np.nan]))
    agrees(run(jp.condition(jp.condition(weights, {"a": PART}), {"a": rest}), Y), exact,
           exact.evidence)


def test_elements_of_a_state_are_data():
    def chain(y):
        def step(x, y):
            jp.observe("y", dist.Normal(x.sum(), 0.5), y)
            mean = jnp.array([[0.9, 0.3], [-0.2, 0.7]]) @ x
            return jp.latent("x", dist.MultivariateNormal(mean, COV[:2, :2])), None

        jp.scan(step, jp.latent("x0", dist.MultivariateNormal(jnp.zeros(2), COV[1:, 1:])), y)

    y = np.array([0.4, np.nan, -0.3, 1.0])
    known = np.array([[np.nan, 0.2], [np.nan, np.nan], [0.7, 0.1], [np.nan, np.nan]])
    shapes = {"x0": (2,), "x": (T, 2)}
    exact = conditioned(dense_gaussian(chain, (jnp.asarray(y),), {}, shapes), {"x": known})
    agrees(run(jp.condition(chain, {"x": known}), y), exact, exact.evidence)


@pytest.mark.parametrize("again", [False, True])
def test_given_keeps_what_is_data(again, tmp_path):
    first = run(jp.condition(weights, {"a": PART}), Y)
    first.save(tmp_path / "first.safetensors")
    evidence = truth(Y, MORE).evidence - truth(Y).evidence
    model = jp.condition(weights, {"a": PART}) if again else weights
    for belief in (first, jp.load_posterior(tmp_path / "first.safetensors")):
        held = run(jp.given(model, belief), MORE)
        agrees(held, truth(Y))
        assert held.free_energy[-1] > -evidence
        moved = run(jp.given(model, belief, update=True), MORE)
        agrees(moved, truth(Y, MORE), evidence)
        assert_allclose(moved.sample(jax.random.key(0), (5,))["a"][:, 1], 0.5, rtol=1e-12)


def test_a_belief_meets_data_in_part():
    """The belief was full, the site is data in part only now."""
    first = run(weights, Y)
    exact = conditioned(dense_gaussian(weights, (np.concatenate([Y, MORE]),), {}, SHAPES),
                        {"a": PART})
    before = dense_gaussian(weights, (Y,), {}, SHAPES).evidence
    for model in (jp.given(jp.condition(weights, {"a": PART}), first, update=True),
                  jp.condition(jp.given(weights, first, update=True), {"a": PART})):
        agrees(run(model, MORE), exact, exact.evidence - before)


@pytest.mark.slow
def test_one_site_of_a_tree_that_is_data_in_part():
    def tree(y):
        mu = jp.latent("mu", dist.MultivariateNormal(jnp.zeros(2), COV[:2, :2]))
        with jp.plate("group", 3, dim=-2):
            theta = jp.latent("theta", dist.Normal(mu[0] - mu[1], 1.0))
            with jp.plate("repeat", y.shape[1], dim=-1):
                jp.observe("y", dist.Normal(theta, 0.5), y)

    y, later = np.random.default_rng(0).normal(size=(2, 3, 4))
    known = {"mu": np.array([0.8, np.nan])}
    posterior = run(jp.condition(tree, known), y)
    exact = dense_gaussian(tree, (y,), {}, {"mu": (2,), "theta": (3, 1)})
    agrees(posterior, conditioned(exact, known), conditioned(exact, known).evidence)
    belief = jp.given(tree, posterior, sites=["mu"], update=True)
    found = run(belief, later)
    mean, sd = posterior.mean("mu")[1], np.sqrt(posterior.variance("mu")[1])

    def again(y):
        mu = jnp.array([0.8, 1.0]) * jnp.array([1.0, jp.latent("m", dist.Normal(mean, sd))])
        with jp.plate("group", 3, dim=-2):
            theta = jp.latent("theta", dist.Normal(mu[0] - mu[1], 1.0))
            with jp.plate("repeat", y.shape[1], dim=-1):
                jp.observe("y", dist.Normal(theta, 0.5), y)

    exact = dense_gaussian(again, (later,), {}, {"m": (), "theta": (3, 1)})
    assert_allclose(found.mean("mu"), [0.8, exact.mean["m"]], rtol=1e-8)
    assert_allclose(found.variance("mu"), [0.0, exact.var["m"]], rtol=1e-8)
    assert_allclose(found.free_energy[-1], -exact.evidence, rtol=1e-10)


def test_dynamics_of_known_structure():
    """A companion matrix: the first row is data, the second is learned; both are reachable."""
    def program(y, u):
        A = jp.latent("A", dist.Normal(jnp.zeros((2, 2)), 1.0).to_event(2))
        B = jp.latent("B", dist.Normal(jnp.zeros((2, 1)), 1.0).to_event(2))
        x = jnp.concatenate([jnp.zeros((1, 2)), y[:-1]])
        with jp.plate("n", len(y)):
            jp.observe("y", dist.Normal(x @ A.T + u @ B.T, 0.1).to_event(1), y)

    rng = np.random.default_rng(0)
    u = rng.normal(size=(30, 1))
    A, B, x, y = np.array([[0.0, 1.0], [-0.5, 0.3]]), np.array([[0.0], [1.0]]), np.zeros(2), []
    for now in u:
        x = A @ x + B @ now + 0.1 * rng.normal(size=2)
        y.append(x)
    known = {"A": np.array([[0.0, 1.0], [np.nan, np.nan]]), "B": np.array([[0.0], [np.nan]])}
    posterior = run(jp.condition(program, known), np.array(y), u)
    assert_allclose(posterior.mean("A"), A, atol=0.1)
    assert reachability(posterior, "A", "B").rank == 2


def test_only_gaussians_are_data_in_part():
    def program(y):
        W = jp.latent("W", dist.Wishart(4.0, rate_matrix=jnp.eye(2)))
        tau = jp.latent("tau", dist.Gamma(2.0 * jnp.ones(2), 1.0).to_event(1))
        jp.observe("y", dist.MultivariateNormal(jnp.zeros(2), precision_matrix=W), y)
        jp.observe("z", dist.Normal(0.0, 1 / jnp.sqrt(tau)).to_event(1), y)

    refused(jp.StructureError, jp.condition(program, {"tau": np.array([np.nan, 5.0])}), Y[:2],
            site="tau", says=("gamma", "NaN"))
    refused(jp.StructureError, jp.condition(program, {"W": np.array([[np.nan, 1.0], [1.0, 2.0]])}),
            Y[:2], site="W", says=("wishart", "NaN"))


# -- data that are given twice, and gaps that are drawn ------------------------------------------


@pytest.mark.parametrize("condition", [jp.condition, numpyro.handlers.condition])
@pytest.mark.parametrize("outer", ["full", "gaps", "short"])
def test_the_outer_data_of_a_scan_win_and_the_inner_fill_their_gaps(condition, outer):
    inner, whole = np.ones((T, 1)), np.array([[0.5], [-2.0], [0.0], [3.0]])
    both = {"full": whole, "gaps": np.where(np.arange(T)[:, None] == 1, np.nan, whole),
            "short": whole[:2]}[outer]
    if condition is not jp.condition and outer == "gaps":
        pytest.skip("NaN is a value to NumPyro's own handler")
    told = np.full((T, 1), np.nan)
    told[:len(both)] = both
    told = np.where(np.isnan(told), inner, told)
    frames = FRAMES + 0.2
    wanted = run(jp.condition(act, {"u": told}), frames)
    nested = condition(condition(act, {"u": inner}), {"u": both})
    found = run(nested, frames)
    assert_allclose(found.free_energy[-1], wanted.free_energy[-1], rtol=1e-10)
    assert_allclose(found.mean("x"), wanted.mean("x"), rtol=1e-8, atol=1e-12)
    assert_allclose(found.predict(rng_key=0, num_samples=2)["u"][0], told, atol=1e-6)


def tail(z=None, *, sample):
    m = jp.latent("m", dist.Normal(5.0, 0.01))
    with jp.plate("n", 2):
        z = sample("z", dist.Normal(m, 0.1), z)
        numpyro.deterministic("twice", 2 * z)


def walk(y=None, *, sample):
    def step(x, y):
        x = jp.latent("x", dist.Normal(x, 0.1))
        numpyro.deterministic("seen", sample("y", dist.Normal(x, 0.1), y))
        return x, None

    jp.scan(step, jp.latent("x0", dist.Normal(8.0, 0.01)), y)


@pytest.mark.parametrize("sample", [jp.observe, lambda name, fn, y: numpyro.sample(
    name, fn, obs=y)], ids=["observe", "sample"])
def test_gaps_of_new_data_are_drawn(sample):
    def predict(model, train, data):
        return run(model, train, sample=sample).predict(data, sample=sample, rng_key=0,
                                                        num_samples=500)

    drawn = predict(tail, np.array([5.0, 5.0]), np.array([1.0, np.nan]))
    assert_allclose(drawn["z"][:, 0], 1.0, rtol=1e-6)
    assert_allclose(drawn["z"][:, 1].mean(), 5.0, atol=0.05)
    assert_allclose(drawn["z"][:, 1].std(), 0.1, rtol=0.2)
    assert_allclose(drawn["twice"], 2 * drawn["z"], rtol=1e-6)
    drawn = predict(walk, np.full(3, 8.0), np.array([1.0, np.nan, 8.1]))
    assert_allclose(drawn["y"][:, [0, 2]], np.tile([1.0, 8.1], (500, 1)), rtol=1e-6)
    # Two steps of 0.1 and the noise of the sensor; x0 is as good as known.
    assert_allclose(drawn["y"][:, 1].mean(), 8.0, atol=0.05)
    assert_allclose(drawn["y"][:, 1].std(), np.sqrt(3) * 0.1, rtol=0.2)
    assert_allclose(drawn["seen"], drawn["y"], rtol=1e-6)


def pushed(y, z):
    """Pushes u that are measured, together with the state that they act on."""
    def step(x, now):
        jp.observe("y", dist.Normal(x, 0.3), now[0])
        u = jp.latent("u", dist.Normal(0.0, 1.0))
        jp.observe("z", dist.Normal(u + 0.5 * x, 0.3), now[1])
        return jp.latent("x", dist.Normal(x + u, 0.2)), None

    jp.scan(step, jp.latent("x0", dist.Normal(0.0, 1.0)), (y, z))


@pytest.mark.parametrize("known", [None, np.array([0.3, np.nan, 1.0, 2.0])])
def test_a_last_state_follows_from_what_is_known_of_its_action(known):
    """No frame reaches the last state, but one reaches the action before it."""
    data, shapes = (Y[[0, 1, 2, 0]], MORE), {"x0": (), "u": (T,), "x": (T,)}
    exact = dense_gaussian(pushed, data, {}, shapes)
    exact = exact if known is None else conditioned(exact, {"u": known})
    model = pushed if known is None else jp.condition(pushed, {"u": known})
    posterior = run(model, *data)
    agrees(posterior, exact, exact.evidence)
    drawn = posterior.sample(jax.random.key(0), (4000,))["x"][:, -1]
    deviation = np.sqrt(exact.var["x"][-1])
    assert_allclose(drawn.mean(), exact.mean["x"][-1], atol=0.1 * deviation)
    assert_allclose(drawn.std(), deviation, rtol=0.1)
