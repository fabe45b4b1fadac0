"""Messages of likelihoods that are not conjugate, against exact posteriors."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from flax import nnx
from numpy.testing import assert_allclose

import jopa_ppl as jp
from jopa_ppl.linalg.factors import Moments
from jopa_ppl.linalg.nonconjugate import Score, expected_score

RULES = ("linearise", "cubature")
A = np.array([[0.9, -0.3], [0.3, 0.9]])
rng = np.random.default_rng(0)
C, b = rng.normal(size=(6, 2)), rng.normal(size=6)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def sensor(y=None, *, T, likelihood, n=3):
    """n trajectories of a known linear system, seen through any likelihood."""
    with jp.plate("n", n):
        x0 = jp.latent("x0", dist.Normal(jnp.zeros(2), 1.0).to_event(1))

    def step(x, y):
        with jp.plate("n", n):
            jp.observe("y", likelihood(x), y)
            x = jp.latent("x", dist.Normal(x @ A.T, 0.3).to_event(1))
        return x, None

    jp.scan(step, x0, y, length=T)


def linear(x):
    return dist.Normal(x @ C.T + b, 0.5).to_event(1)


def run(likelihood, y, messages, **options):
    return jp.VMP(sensor, messages={"y": messages} if messages else None, progress=False,
                  **options).run(y, T=len(y), likelihood=likelihood)


@pytest.mark.parametrize("rule", RULES)
def test_a_linear_likelihood_gives_the_exact_posterior(rule):
    """Both rules are exact for a linear Gaussian one, missing frames and pixels included."""
    y = rng.normal(size=(7, 3, 6))
    y[2, 1], y[4, 0, 3], y[5:, 2] = np.nan, np.nan, np.nan
    exact, found = run(linear, y, None), run(linear, y, rule)
    for site in ("x0", "x"):
        assert_allclose(found.mean(site), exact.mean(site), rtol=1e-8, atol=1e-10)
        assert_allclose(found.variance(site), exact.variance(site), rtol=1e-8)
    assert_allclose(found.free_energy[-1], exact.free_energy[-1], rtol=1e-10)


def test_cubature_is_exact_to_the_third_degree():
    """E[log p] for log p = -(y - x^3)^2 / 2 needs degree 6; for y x^3, degree 3 is enough."""
    mean, cov = jnp.array([[0.7, -0.2]]), jnp.array([[[0.5, 0.2], [0.2, 0.3]]])
    score = Score(lambda x: x[..., 0]**3 + x[..., 0] * x[..., 1]**2)
    exact = 0.7**3 + 3 * 0.7 * 0.5 + 0.7 * (0.04 + 0.3) + 2 * -0.2 * 0.2
    assert_allclose(expected_score(score, Moments(mean, cov), "cubature"), exact, rtol=1e-12)


def quadrature(log_joint, size=400, reach=6.0):
    """Mean and variance of a one-dimensional posterior on a grid."""
    x = np.linspace(-reach, reach, 20 * size)
    w = np.exp(log_joint(x) - log_joint(x).max())
    mean = (w * x).sum() / w.sum()
    return mean, (w * (x - mean)**2).sum() / w.sum()


@pytest.mark.parametrize(("rule", "tolerance"), [("linearise", 0.12), ("cubature", 0.03)])
def test_bernoulli_counts_against_quadrature(rule, tolerance):
    """A logit seen through 8 coins: mean and sd of the exact posterior, in posterior sds."""
    def coins(y):
        z = jp.latent("z", dist.Normal(0.5, 1.5))
        with jp.plate("coin", 8):
            jp.observe("y", dist.Bernoulli(logits=z), y)

    y = np.array([1.0, 1, 1, 1, 1, 0, 1, 0])
    found = jp.VMP(coins, messages={"y": rule}, progress=False, tol=1e-10).run(y)
    mean, var = quadrature(lambda z: -(z - 0.5)**2 / 4.5 + y.sum() * z - 8 * np.logaddexp(0, z))
    assert abs(found.mean("z") - mean) < tolerance * np.sqrt(var)
    assert abs(np.sqrt(found.variance("z")) / np.sqrt(var) - 1) < 2 * tolerance


class Net(nnx.Module):
    def __init__(self, rngs):
        self.a, self.b = nnx.Linear(2, 16, rngs=rngs), nnx.Linear(16, 6, rngs=rngs)

    def __call__(self, x):
        return self.b(nnx.tanh(self.a(x)))


def networked(y=None, *, T, net):
    decoder = jp.module("net", net)
    sensor(y, T=T, likelihood=lambda x: dist.Normal(decoder(x), 0.2).to_event(1), n=1)


def test_a_declared_network_is_linearised_and_explained(capsys):
    net = Net(nnx.Rngs(0))
    y = np.random.default_rng(1).normal(size=(5, 1, 6))
    jp.explain(networked, y, T=5, net=net)
    line = next(s for s in capsys.readouterr().out.splitlines() if s.startswith("y "))
    assert "linearised" in line and "tanh" in line and "test_nonconjugate.py" in line
    found = jp.VMP(networked, progress=False, tol=1e-9).run(y, T=5, net=net)
    assert found.converged

    def log_joint(flat):
        x = flat.reshape(6, 2)
        seen = dist.Normal(net(x[:-1]), 0.2).log_prob(y[:, 0]).sum()
        moved = dist.Normal(x[:-1] @ A.T, 0.3).log_prob(x[1:]).sum()
        return seen + moved + dist.Normal(0.0, 1.0).log_prob(x[0]).sum()

    # Gauss-Newton stops where the gradient of the log joint is zero: at a mode.
    x = jnp.concatenate([found.mean("x0"), found.mean("x")[:, 0]])
    x = x.at[-1].set(A @ x[-2])          # after the last frame: predicted
    assert jnp.abs(jax.grad(log_joint)(x.ravel())).max() < 1e-2


def test_bad_messages_are_refused():
    y = np.zeros((3, 1, 6))
    net = Net(nnx.Rngs(0))
    for messages, word in (({"y": "guess"}, "unknown message"),
                           ({"q": "linearise"}, "unknown site"),
                           ({"x": "linearise"}, "conjugate"), ({"y": "amortised"}, "encoder")):
        with pytest.raises(jp.JopaError, match=word):
            jp.VMP(networked, messages=messages).run(y, T=3, net=net)


def test_a_rule_may_be_of_a_site_that_is_exact_in_its_first_steps():
    """From a first state that is data the first step is a plain normal; the rest is bent."""
    def cubic(y=None, *, T):
        x0 = jp.latent("x0", dist.Normal(0.0, 1.0))

        def step(x, y):
            jp.observe("y", dist.Normal(x, 0.1), y)
            return jp.latent("x", dist.Normal(x - 0.2 * x**3, 0.05)), None

        jp.scan(step, x0, y, length=T)

    y = np.random.default_rng(0).normal(size=6)
    with jax.enable_x64(True):
        bent = {"messages": {"x": "linearise"}, "tol": 1e-12, "progress": False}
        known = jp.VMP(jp.condition(cubic, {"x0": 0.7}), **bent).run(y, T=6)
        near = jp.VMP(jp.given(cubic, {"x0": dist.Normal(0.7, 1e-5)}), **bent).run(y, T=6)
    assert_allclose(known.mean("x"), near.mean("x"), atol=1e-6)
    assert_allclose(known.variance("x"), near.variance("x"), rtol=1e-5)
