"""A state that actions turn: exact where actions are data, linearised where they are planned."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpy.testing import assert_allclose

import jopa_ppl as jp
from models.bilinear import bilinear, linearise

N, T, TURN = 4, 40, 0.2
rng = np.random.default_rng(0)
U = rng.uniform(-1, 1, (T, N, 1)).astype(np.float32)
ANGLE = rng.uniform(0, 2 * np.pi, N) + TURN * np.concatenate(
    [np.zeros((1, N)), np.cumsum(U[..., 0], 0)])[:-1]
Y = np.stack([np.cos(ANGLE), np.sin(ANGLE)], -1).astype(np.float32)


class Eye:
    d = 2

    def likelihood(self, x):
        return dist.Normal(x, 0.02).to_event(1)


def actions_as_inputs(y, u):
    """`bilinear` of degree 1 whose actions are inputs of the scan and no site."""
    M = jp.latent("M", dist.Normal(jnp.zeros((2, 2, 2)).at[0].set(jnp.eye(2)), 0.5).to_event(3))
    W = jp.latent("W", dist.Wishart(4.0, rate_matrix=0.1 * jnp.eye(2)))
    with jp.plate("trajectory", N):
        x0 = jp.latent("x0", dist.Normal(jnp.zeros(2), 1.0).to_event(1))

    def step(x, inputs):
        y, u = inputs
        with jp.plate("trajectory", N):
            jp.observe("y", Eye().likelihood(x), y)
            mean = x @ M[0].T + u * (x @ M[1].T)
            x = jp.latent("x", dist.MultivariateNormal(mean, precision_matrix=W))
        return x, None

    jp.scan(step, x0, (y, u), length=T)


@pytest.fixture(scope="module")
def learned():
    program = jp.condition(bilinear, {"u": U})
    return jp.VMP(program, progress=False).run(Y, T=T, trajectories=N, vae=Eye(), degree=1)


def test_observed_actions_of_a_plate_multiply_the_states_of_their_own_trajectory(learned):
    truth = jp.VMP(actions_as_inputs, progress=False).run(Y, U)
    assert_allclose(learned.mean("M"), truth.mean("M"), atol=1e-5)
    assert_allclose(learned.mean("x"), truth.mean("x"), atol=1e-5)
    assert_allclose(learned.mean("M")[1], [[0, -TURN], [TURN, 0]], atol=0.01)


def test_linearisation_is_the_tangent_of_the_mean():
    M = rng.normal(size=(4, 2, 2))
    x, u = rng.normal(size=(3, 2)), rng.normal(size=(3, 1))
    mean = lambda x, u: sum(u**k * (x @ M[k].T) for k in range(4))
    A, B, c = map(np.asarray, linearise(M, x, u))
    at = lambda x, u: np.einsum("nij,nj->ni", A, x) + np.einsum("nij,nj->ni", B, u) + c
    assert_allclose(at(x, u), mean(x, u), rtol=1e-5)
    for dx, du in ((1e-3, 0.0), (0.0, 1e-3)):
        assert_allclose(at(x + dx, u + du), mean(x + dx, u + du), atol=3e-5)
