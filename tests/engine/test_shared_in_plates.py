"""One belief about latents of a plate and latents that its elements share, in factors that are not
conjugate: what each element makes of what is shared, in whatever order the program draws them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpy.testing import assert_allclose
from numpyro.infer.util import log_density

import jopa_ppl as jp

K = 5
COUNTS = np.array([1.0, 3.0, 0.0, 2.0, 6.0])


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def effects(order, n):
    """What is shared, `a`, and what is every element's own, `b`."""
    found = {}
    for name in order:
        prior = dist.Normal(jnp.zeros(n), 1.0).to_event(1)
        if name == "a":
            found[name] = jp.latent(name, prior)
        else:
            with jp.plate("k", K):
                found[name] = jp.latent(name, prior)
    return found["a"] + found["b"]


def fit(model, rule, site, *args):
    found = jp.VMP(model, messages={site: rule}, blocks=[("a", "b")], tol=1e-12,
                   progress=False).run(*args)
    assert found.converged
    return found


@pytest.mark.parametrize("rule", ["quadrature", *(
    pytest.param(r, marks=pytest.mark.slow) for r in ("cubature", "linearise"))])
@pytest.mark.parametrize("order", ["ab", "ba"])
def test_counts_by_the_fixed_point_of_the_best_gaussian(order, rule):
    """Of Poisson counts E_q[rate] is exp(mean + variance / 2), where points tell the variance."""
    def model(y):
        x = effects(order, 1)[..., 0]
        with jp.plate("k", K):
            jp.observe("y", dist.Poisson(jnp.exp(x)), y)

    found = fit(model, rule, "y", COUNTS)
    C = np.concatenate([np.ones((K, 1)), np.eye(K)], 1)         # (a, b_1, .., b_K) -> logs of rates
    mean, cov = np.zeros(K + 1), np.eye(K + 1)
    for _ in range(200):
        spread = np.einsum("ki,ij,kj->k", C, cov, C) if rule != "linearise" else 0.0
        rate = np.exp(C @ mean + 0.5 * spread)
        cov = np.linalg.inv(np.eye(K + 1) + C.T @ (rate[:, None] * C))
        mean = mean + 0.5 * cov @ (C.T @ (COUNTS - rate) - mean)
    tol = {"quadrature": 1e-5, "cubature": 1e-3, "linearise": 1e-8}[rule]     # of few points
    assert_allclose(found.mean("a"), mean[:1], atol=tol)
    assert_allclose(found.mean("b")[:, 0], mean[1:], atol=tol)
    assert_allclose(found.variance("a"), np.diag(cov)[:1], rtol=tol)
    assert_allclose(found.variance("b")[:, 0], np.diag(cov)[1:], rtol=tol)


@pytest.mark.parametrize("n", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_a_mean_that_bends_is_linearised_in_both(n):
    """The fixed point is the mode: one value of an element, made of 2 n latents."""
    y = np.array([0.3, 0.5, -0.2, 0.8, 0.1])

    def model(y):
        s = jp.latent("s", dist.Gamma(200.0, 2.0))
        x = effects("ab", n)
        with jp.plate("k", K):
            jp.observe("y", dist.Normal(jnp.tanh(x).sum(-1), 1 / jnp.sqrt(s)), y)

    found = fit(model, "linearise", "y", y)
    fixed = {"s": found.mean("s")}
    slope = jax.grad(lambda x: log_density(model, (y,), {}, {**x, **fixed})[0])(
        {name: jnp.asarray(found.mean(name)) for name in "ab"})
    for one in slope.values():
        assert_allclose(one, 0.0, atol=1e-5)
