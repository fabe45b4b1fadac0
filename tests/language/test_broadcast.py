"""Data are broadcast to the batch of their site as NumPyro's `log_prob` does."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from fitting import run
from numpyro.infer.util import log_density

import jopa_ppl as jp


def expanded(y, shape):
    a = jp.latent("a", dist.Normal(0.0, 1.0))
    jp.observe("y", dist.Normal(a, 1.0).expand(shape), y)


def plated(y, shape):
    a = jp.latent("a", dist.Normal(0.0, 1.0))
    with numpyro.plate("n", shape[0]):
        jp.observe("y", dist.Normal(a, 1.0), y)


def events(y, shape):
    a = jp.latent("a", dist.Normal(0.0, 1.0))
    with numpyro.plate("n", shape[0]):
        jp.observe("y", dist.MultivariateNormal(a * jnp.ones(2), jnp.eye(2)), y)


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize(("model", "y", "shape"), [
    (expanded, 1.2, (4,)), (expanded, np.array([1.0, 2.0, 0.0, 1.0]), (3, 4)),
    (expanded, np.array([[1.0], [2.0], [0.5]]), (3, 4)),
    (expanded, np.array([[1.0], [np.nan], [0.5]]), (3, 4)),
    (plated, 1.2, (4,)), (plated, np.array([0.7]), (4,)), (events, np.array([1.0, 2.0]), (3,))])
def test_data_count_as_often_as_numpyro_counts_them(model, y, shape):
    """log p(a) of the belief, against NumPyro's joint density on a grid."""
    grid = jnp.linspace(-6, 6, 4001)
    joint = jax.vmap(lambda a: log_density(model, (y, shape), {}, {"a": a})[0])(grid)
    posterior = run(model, y, shape)
    evidence = jax.scipy.special.logsumexp(joint) + jnp.log(grid[1] - grid[0])
    np.testing.assert_allclose(posterior.free_energy[-1], -evidence, atol=1e-9)
    weight = jnp.exp(joint - joint.max())
    np.testing.assert_allclose(posterior.mean("a"), (weight * grid).sum() / weight.sum(), atol=1e-9)


def test_what_cannot_be_broadcast_is_told_by_its_site():
    with pytest.raises(jp.ShapeError, match=r"site 'y': the value has the wrong shape"):
        jp.VMP(expanded).run(np.ones((2, 3)), (3, 4))
