"""Families that are Gaussian under another name, against dense joints."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpy.testing import assert_allclose
from numpyro.distributions.transforms import StickBreakingTransform

import jopa_ppl as jp
from jopa_ppl.engine.marginals import Marginal
from jopa_ppl.posterior.unconstrained import transformed

A = np.array([[0.9, 0.1], [-0.2, 0.8]])
ROOT = np.array([[0.3, 0.0], [0.1, 0.2]])
T = 8
rng = np.random.default_rng(0)
SEEN = rng.normal(size=T)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def evidence(X, prior, noise, y):
    """Mean and covariance of z ~ N(0, prior) seen as y ~ N(X z, noise), and -log p(y)."""
    S = X @ prior @ X.T + noise * np.eye(len(y))
    gain = np.linalg.solve(S, X @ prior).T
    energy = 0.5 * (y @ np.linalg.solve(S, y) + np.linalg.slogdet(2 * np.pi * S)[1])
    return gain @ y, prior - gain @ X @ prior, energy


@pytest.mark.parametrize("shape", [(5,), (3, 4)])
def test_effects_that_sum_to_zero(shape):
    n = int(np.prod(shape))
    group, y = rng.integers(0, n, 40), rng.normal(size=40)

    def program(y):
        level = jp.latent("level", dist.Normal(0.0, 2.5))
        effect = jp.latent("effect", dist.ZeroSumNormal(1.3, event_shape=shape))
        with jp.plate("n", 40):
            jp.observe("y", dist.Normal(level + effect.reshape(-1)[group], 0.5), y)

    found = jp.VMP(program, progress=False).run(y)
    centred = np.eye(1)
    for k in shape:
        centred = np.kron(centred, np.eye(k) - 1 / k)
    prior = np.zeros((n + 1, n + 1))
    prior[0, 0], prior[1:, 1:] = 2.5**2, 1.3**2 * centred
    mean, cov, energy = evidence(np.c_[np.ones(40), np.eye(n)[group]], prior, 0.25, y)
    assert_allclose(found.free_energy[-1], energy, rtol=1e-10)
    assert_allclose(found.mean("effect").ravel(), mean[1:], atol=1e-9)
    assert_allclose(found.variance("effect").ravel(), np.diagonal(cov)[1:], atol=1e-9)
    assert_allclose(found.sample(0, 5)["effect"].sum(-1), 0, atol=1e-9)


def seen(y, first=None, A=A):
    first = None if first is None else jp.latent("first", dist.Normal(0.0, first).expand((2,))
                                                 .to_event(1))
    x = jp.latent("x", dist.GaussianStateSpace(T, A, scale_tril=ROOT, initial_value=first))
    with jp.plate("t", T):
        jp.observe("y", dist.Normal(x[:, 0], 0.2), y)


@pytest.mark.parametrize("first", [None, 0.7])
def test_a_state_space_is_the_chain_that_it_is(first, capsys):
    found = jp.VMP(seen, progress=False).run(SEEN, first)
    back = np.eye(2 * T) - np.kron(np.eye(T, k=-1), A)
    start = np.zeros((2 * T, 2 * T))
    start[:2, :2] = 0 if first is None else first**2 * A @ A.T
    forward = np.linalg.inv(back)
    prior = forward @ (np.kron(np.eye(T), ROOT @ ROOT.T) + start) @ forward.T
    mean, cov, energy = evidence(np.eye(2 * T)[::2], prior, 0.04, SEEN)
    assert_allclose(found.free_energy, [energy], rtol=1e-10)        # one pass, exact
    assert_allclose(found.mean("x").ravel(), mean, atol=1e-9)
    assert_allclose(found.variance("x").ravel(), np.diagonal(cov), atol=1e-9)
    jp.explain(seen, SEEN, first)
    assert "exact, on " in capsys.readouterr().out.split("\nx ")[1].splitlines()[0]


def test_a_state_space_whose_matrix_is_learned():
    def named(y):
        seen(y, A=jp.latent("A", dist.Normal(jnp.eye(2), 0.5).to_event(2)))

    def written(y):
        A = jp.latent("A", dist.Normal(jnp.eye(2), 0.5).to_event(2))

        def step(x, y):
            x = jp.latent("x", dist.MultivariateNormal(A @ x, scale_tril=jnp.asarray(ROOT)))
            jp.observe("y", dist.Normal(x[0], 0.2), y)
            return x, None

        jp.scan(step, jnp.zeros(2), y)

    ours, plain = (jp.VMP(f, tol=1e-12, max_iters=500, progress=False).run(SEEN)
                   for f in (named, written))
    assert_allclose(ours.free_energy[-1], plain.free_energy[-1], rtol=1e-9)
    assert_allclose(ours.mean("A"), plain.mean("A"), atol=1e-6)


def test_moments_of_what_mixes_elements_are_those_of_many_draws():
    """A simplex, from narrow (nearly affine) to wide (saturated)."""
    centre = jnp.array([0.3, -0.5, 0.2])
    for scale in (1e-3, 0.5, 4.0):
        cov = scale**2 * jnp.array([[1.0, 0.5, 0.0], [0.5, 1.0, 0.3], [0.0, 0.3, 1.0]])
        q = dist.MultivariateNormal(centre, cov)
        m = transformed(Marginal("", centre, jnp.diagonal(cov), {"mean": centre, "cov": cov}),
                        StickBreakingTransform(), q)
        x = StickBreakingTransform()(q.sample(jax.random.key(1), (400_000,)))
        error = x.std(0) / 400_000**0.5
        assert (jnp.abs(m.mean - x.mean(0)) < 5 * error + 0.06 * min(scale, 1) * x.std(0)).all()
        assert_allclose(m.variance, x.var(0), rtol=0.1 if scale > 1 else 0.03)
