"""Precisions made of latents: only those whose determinants VMP can average are accepted."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from faults import refused
from fitting import run
from numpy.testing import assert_allclose
from scipy.special import gammaln, multigammaln

import jopa_ppl as jp
from jopa_ppl.errors import StructureError

Y = np.random.default_rng(0).normal(size=(5, 2))
D, ROOT = np.array([1.0, 3.0]), np.array([[1.0, 0.0], [0.7, 0.8]])


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def wishart(y, D, f, n=2):
    W = jp.latent("W", dist.Wishart(n + 2.0, rate_matrix=jnp.eye(n)))
    with numpyro.plate("n", len(y)):
        fn = dist.MultivariateNormal(jnp.zeros(y.shape[1]), precision_matrix=f(W, D))
        jp.observe("y", fn, y)


def gammas(y, f):
    t = jp.latent("t", dist.Gamma(2.0, 1.0).expand([2]).to_event(1))
    with numpyro.plate("n", len(y)):
        jp.observe("y", dist.MultivariateNormal(jnp.zeros(2), scale_tril=f(t)), y)


def evidence(y):
    """log p(y) of y_n ~ N(0, W^-1), W ~ Wishart(4, rate I), 2 x 2."""
    N, nu, after = len(y), 4.0, np.eye(2) + y.T @ y
    return (multigammaln((nu + N) / 2, 2) - multigammaln(nu / 2, 2)
            - 0.5 * (nu + N) * np.linalg.slogdet(after)[1] - N * np.log(np.pi))


@pytest.mark.parametrize(("f", "scaled"), [
    (lambda W, D: W, 1.0), (lambda W, D: W[::-1, ::-1].T, 1.0), (lambda W, D: 4.0 * W, 2.0),
    (lambda W, D: W * jnp.outer(D, D), D)])
def test_a_whole_precision_has_its_exact_evidence(f, scaled):
    posterior = run(wishart, Y, D, f)
    jacobian = len(Y) * np.log(np.broadcast_to(scaled, 2)).sum()
    assert_allclose(posterior.free_energy[-1], -evidence(Y * scaled) - jacobian, rtol=1e-10)


def test_columns_scaled_by_gammas_are_independent_precisions():
    """L diag(t)^-1/2: the whitened elements L^-1 y have precisions t of their own."""
    def apart(z):
        t = jp.latent("t", dist.Gamma(2.0, 1.0).expand([2]).to_event(1))
        with numpyro.plate("n", len(z)):
            jp.observe("z", dist.Normal(jnp.zeros(2), 1 / jnp.sqrt(t)).to_event(1), z)

    found = run(gammas, Y, lambda t: ROOT / jnp.sqrt(t)[None, :])
    want = run(apart, np.linalg.solve(ROOT, Y.T).T)
    assert_allclose(found.mean("t"), want.mean("t"), rtol=1e-10)
    assert_allclose(found.free_energy[-1], want.free_energy[-1]
                    + len(Y) * np.log(np.diag(ROOT)).sum(), rtol=1e-10)


@pytest.mark.parametrize(("f", "n"), [
    (lambda W, D: W[:2, :2], 3), (lambda W, D: W * jnp.eye(2), 2),
    (lambda W, D: jnp.diag(jnp.diag(W)), 2),
    (lambda W, D: W * jnp.array([[1.0, 0.5], [0.5, 1.0]]), 2)])
def test_parts_and_masks_of_a_wishart_are_refused(f, n):
    refused(StructureError, wishart, Y, D, f, n, site="y", says=("'W'", "a part or a masked copy"))


def test_rows_scaled_by_gammas_are_not_conjugate():
    """They are read through their logs: the density is scored, by points."""
    refused_as_conjugate(lambda t: ROOT / jnp.sqrt(t)[:, None])


def refused_as_conjugate(root):
    with jax.enable_x64(True):
        found = jp.VMP(gammas, progress=False).run(Y, root)
        gap, error = found.free_energy_error(2000)
    factor = next(f for f in found.compiled.graph.factors if f.site.name == "y")
    assert factor.scored and found.converged and abs(gap) < 4 * error + 0.05


def kernel(n, jitter=1e-6):
    x = np.linspace(0.0, 1.0, n)[:, None]
    return np.exp(-0.5 * (x - x.T)**2 / 0.3**2) + jitter * np.eye(n)


@pytest.mark.parametrize("spelling", ["covariance", "times", "root", "traced"])
@pytest.mark.parametrize("jitter", [1e-6, 1e-9])
def test_the_scale_of_a_kernel_is_learned_exactly(spelling, jitter):
    """y ~ N(0, K / k), k ~ Gamma(2, 3): log p(y) is a Student-t's. K barely can be inverted."""
    K, n = kernel(20, jitter), 20
    y = np.linalg.cholesky(K) @ np.random.default_rng(0).normal(size=n)

    def program(y, x):
        k = jp.latent("k", dist.Gamma(2.0, 3.0))
        if spelling == "root":
            fn = dist.MultivariateNormal(0.0, scale_tril=np.linalg.cholesky(K) / jnp.sqrt(k))
        elif spelling == "traced":
            made = jnp.exp(-0.5 * (x - x.T)**2 / 0.3**2) + jitter * jnp.eye(n)
            fn = dist.MultivariateNormal(0.0, made / k)
        else:
            fn = dist.MultivariateNormal(0.0, K / k if spelling == "covariance" else K * (1 / k))
        jp.observe("y", fn, y)

    found = run(program, y, np.linspace(0.0, 1.0, n)[:, None])
    white = np.linalg.solve(np.linalg.cholesky(K), y)
    a, b = 2.0 + n / 2, 3.0 + 0.5 * white @ white
    evidence = (2 * np.log(3.0) - a * np.log(b) + gammaln(a) - gammaln(2.0)
                - 0.5 * n * np.log(2 * np.pi) - np.log(np.diag(np.linalg.cholesky(K))).sum())
    assert_allclose(found.mean("k"), a / b, rtol=1e-15 / jitter)
    assert_allclose(found.free_energy[-1], -evidence, rtol=1e-15 / jitter)


def test_a_scaled_kernel_with_more_than_its_scale_is_not_conjugate():
    """Its rows scaled by gammas of their own."""
    K = np.linalg.cholesky(kernel(2, 1e-1))
    refused_as_conjugate(lambda t: K / jnp.sqrt(t)[:, None])
