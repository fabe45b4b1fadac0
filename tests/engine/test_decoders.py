"""What an image tells of what is drawn in it, from a prior far away: the decoder's own message."""

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import jopa_ppl as jp

SIDE, SD = 10, 0.1
GRID = np.stack(np.meshgrid(*[np.linspace(-2.5, 2.5, SIDE)] * 2, indexing="ij"), -1)
PLACES = np.array([[1.2, -0.9], [-1.5, 0.3], [0.4, 1.6], [-0.2, -1.8]])


def drawn(x):
    """A blob at x (.., 2) on SIDE x SIDE pixels."""
    return jnp.exp(-((x[..., None, None, :] - GRID)**2).sum(-1))


def spots(y, *, rest=0):
    with jp.plate("spot", len(PLACES)):
        x = jp.latent("x", dist.Normal(jnp.zeros(2 + rest), 1.0).to_event(1))
        nothing = lambda y: dist.Normal(jnp.zeros((*y.shape[:-2], 2 + rest)), 1.0).to_event(1)
        jp.observe("y", jp.Amortized(dist.Normal(drawn(x[..., :2]), SD).to_event(2), on=x,
                                     message=nothing), y)


def frames():
    noise = np.random.default_rng(0).normal(0, SD, (len(PLACES), SIDE, SIDE))
    return np.asarray(drawn(PLACES)) + noise


def by_grid(y):
    """Means of x (spots, 2) by a fine grid."""
    line = np.linspace(-3, 3, 241)
    x = np.stack(np.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 2)
    means = np.asarray(drawn(x)).reshape(len(x), -1)
    log = -0.5 * (x**2).sum(-1) - 0.5 * ((y.reshape(len(y), 1, -1) - means)**2).sum(-1) / SD**2
    weight = np.exp(log - log.max(-1, keepdims=True))
    return weight @ x / weight.sum(-1, keepdims=True)


@pytest.mark.parametrize(("rule", "rest"), [("linearise", 0), ("cubature", 0), ("quadrature", 2)])
def test_spots_are_found_from_the_middle_of_the_image(rule, rest):
    """There log p bends down and up: the positive part of its curvature alone leads nowhere."""
    y = frames()
    found = jp.VMP(spots, messages={"y": rule}).run(y, rest=rest)
    np.testing.assert_allclose(found.mean("x")[:, :2], by_grid(y), atol=0.02)
