"""Independent truth: dense linear algebra that shares no code with the library."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from numpyro.infer.util import log_density
from scipy.special import digamma, gammaln, multigammaln

LOG_2PI = np.log(2 * np.pi)


class DenseGaussian(NamedTuple):
    """The exact posterior: mean and var by site, the covariance over all of them, log p(y)."""

    mean: dict[str, np.ndarray]
    var: dict[str, np.ndarray]
    cov: np.ndarray
    evidence: float


def dense_gaussian(model: Callable, args: tuple, kwargs: dict, shapes: Mapping[str, tuple],
                   fixed: Mapping[str, Any] | None = None) -> DenseGaussian:
    """The posterior of a program whose latents are all Gaussian, from NumPyro's `log_density`.

    The log joint is a quadratic, so its gradient g and Hessian -H at zero give
        m = H^-1 g,  V = H^-1,  log p(y) = log p(m, y) + (n/2) log 2 pi - 1/2 log|H|.

    Args:
        shapes: {latent: shape}, time in front inside a scan.
        fixed: values of the latents that are not Gaussian.
    """
    zero, unravel = ravel_pytree({k: jnp.zeros(s) for k, s in shapes.items()})
    held = {k: jnp.asarray(v) for k, v in (fixed or {}).items()}

    def log_joint(flat: jax.Array) -> jax.Array:
        return log_density(model, args, kwargs, {**unravel(flat), **held})[0]

    value, g, H = jax.jit(lambda z: (log_joint(z), jax.grad(log_joint)(z),
                                     -jax.hessian(log_joint)(z)))(zero)
    m, V = np.linalg.solve(H, g), np.linalg.inv(H)
    evidence = float(value) + 0.5 * g @ m + 0.5 * len(m) * LOG_2PI - 0.5 * np.linalg.slogdet(H)[1]
    named = {k: np.asarray(v) for k, v in unravel(m).items()}
    return DenseGaussian(named, {k: np.asarray(v) for k, v in unravel(np.diag(V)).items()}, V,
                         float(evidence))


def conditioned(exact: DenseGaussian, known: Mapping[str, np.ndarray]) -> DenseGaussian:
    """The posterior once some elements are known as well: `known[site]` has NaN elsewhere."""
    flat, unravel = ravel_pytree({k: jnp.asarray(v) for k, v in exact.mean.items()})
    value = np.asarray(ravel_pytree({k: jnp.asarray(known.get(k, np.full(np.shape(v), np.nan)))
                                     for k, v in exact.mean.items()})[0])
    seen, mean, V = ~np.isnan(value), np.array(flat), exact.cov
    S, gap = V[np.ix_(seen, seen)], (value - mean)[seen]
    gain = np.linalg.solve(S, V[seen]).T
    mean, cov = mean + gain @ gap, V - gain @ V[seen]
    mean[seen], cov[seen], cov[:, seen] = value[seen], 0, 0
    evidence = exact.evidence - 0.5 * (gap @ np.linalg.solve(S, gap) + np.linalg.slogdet(S)[1]
                                       + len(gap) * LOG_2PI)
    named = lambda x: {k: np.asarray(v) for k, v in unravel(x).items()}
    return DenseGaussian(named(mean), named(np.diag(cov)), cov, float(evidence))


class DenseLDS(NamedTuple):
    """Beliefs of `dense_lds`: x (T, d), M = [A B c] (d, m) row-major, W ~ Wishart(dof, rate)."""

    x_mean: np.ndarray
    x_cov: np.ndarray
    M_mean: np.ndarray
    M_cov: np.ndarray
    dof: float
    rate: np.ndarray
    free_energy: float


def dense_lds(y: np.ndarray, u: np.ndarray, C: np.ndarray, *, noise: float = 0.3,
              A_var: float = 0.5, B_var: float = 1.0, c_var: float | None = None,
              sweeps: int = 500) -> DenseLDS:
    """Mean-field VB q(x) q(A, B, c) q(W) of an LDS by explicit matrices over all of x.

        x_0 ~ N(0, I),  x_t+1 ~ N(A x_t + B u_t + c, W^-1),  y_t ~ N(C x_t, noise^2 I)
        A ~ N(I, A_var), B ~ N(0, B_var), c ~ N(0, c_var), W ~ Wishart(d + 2, rate I)

    Frames of `y` (T, p) hold NaN where missing (elementwise); the last one is seen. `c_var=None`
    has no offset; a `u` of no columns has no actions. F is computed as

        F = KL(q(M) || p) + KL(q(W) || p) - log Z,   Z = int exp(E[log p(x, y | M, W)]) dx

    which holds when q(x) is the last to be updated.
    """
    T = len(y)
    d, du = C.shape[1], u.shape[1]
    known = u if c_var is None else np.concatenate([u, np.ones((T, 1))], 1)
    m = d + known.shape[1]
    prior_mean = np.concatenate([np.eye(d), np.zeros((d, m - d))], 1)
    prior_var = np.concatenate([np.full(d, A_var), np.full(du, B_var),
                                [] if c_var is None else [c_var]])
    prior_prec = np.diag(np.tile(1 / prior_var, d))
    dof0, rate0 = d + 2.0, np.eye(d)
    J_seen, h_seen, const_seen = np.zeros((T * d, T * d)), np.zeros(T * d), -0.5 * d * LOG_2PI
    J_seen[:d, :d] = np.eye(d)
    for t, j in zip(*np.nonzero(~np.isnan(y))):
        now = slice(t * d, t * d + d)
        J_seen[now, now] += np.outer(C[j], C[j]) / noise**2
        h_seen[now] += C[j] * y[t, j] / noise**2
        const_seen -= 0.5 * (y[t, j]**2 / noise**2 + LOG_2PI) + np.log(noise)
    M, S = prior_mean.copy(), np.linalg.inv(prior_prec)
    dof, rate = dof0 + T - 1, (d + 2.0) * np.eye(d)
    for _ in range(sweeps):
        # q(x): every transition adds E[(x' - M z)' W (x' - M z)], z = (x, known).
        Wbar = dof * np.linalg.inv(rate)
        logW = digamma((dof - np.arange(d)) / 2).sum() + d * np.log(2) - np.linalg.slogdet(rate)[1]
        S4 = S.reshape(d, m, d, m)
        MWM = M.T @ Wbar @ M + np.einsum("il,ijlk->jk", Wbar, S4)
        J, h, const = J_seen.copy(), h_seen.copy(), const_seen
        for t in range(T - 1):
            now = slice(t * d, t * d + d)
            then = slice(t * d + d, t * d + 2 * d)
            k = known[t]
            J[now, now] += MWM[:d, :d]
            J[then, then] += Wbar
            J[then, now] -= Wbar @ M[:, :d]
            J[now, then] -= M[:, :d].T @ Wbar
            h[now] -= MWM[:d, d:] @ k
            h[then] += Wbar @ M[:, d:] @ k
            const += 0.5 * logW - 0.5 * d * LOG_2PI - 0.5 * k @ MWM[d:, d:] @ k
        V = np.linalg.inv(J)
        mean = V @ h
        logZ = const + 0.5 * h @ mean + 0.5 * T * d * LOG_2PI - 0.5 * np.linalg.slogdet(J)[1]
        kl_M = 0.5 * (np.trace(prior_prec @ S) - d * m
                      + (M - prior_mean).ravel() @ prior_prec @ (M - prior_mean).ravel()
                      - np.linalg.slogdet(prior_prec @ S)[1])
        F = kl_M + _wishart_kl(dof, rate, dof0, rate0) - logZ
        done = DenseLDS(mean.reshape(T, d), V, M, S, dof, rate, float(F))
        # Moments of (z_t, x_t+1), summed over transitions.
        zz, xz, xx = np.zeros((m, m)), np.zeros((d, m)), np.zeros((d, d))
        for t in range(T - 1):
            now, then = slice(t * d, t * d + d), slice(t * d + d, t * d + 2 * d)
            z = np.concatenate([mean[now], known[t]])
            zz += np.outer(z, z)
            zz[:d, :d] += V[now, now]
            xz += np.outer(mean[then], z)
            xz[:, :d] += V[then, now]
            xx += np.outer(mean[then], mean[then]) + V[then, then]
        S = np.linalg.inv(prior_prec + np.kron(Wbar, zz))
        M = (S @ (prior_prec @ prior_mean.ravel() + (Wbar @ xz).ravel())).reshape(d, m)
        dof = dof0 + T - 1
        spread = np.einsum("ijlk,jk->il", S.reshape(d, m, d, m), zz)
        rate = rate0 + xx - xz @ M.T - M @ xz.T + M @ zz @ M.T + spread
        rate = (rate + rate.T) / 2
    return done


def _wishart_kl(dof: float, rate: np.ndarray, dof0: float, rate0: np.ndarray) -> float:
    """KL(W(dof, rate) || W(dof0, rate0)), rates being inverse scales."""
    d = len(rate)
    psi = digamma((dof - np.arange(d)) / 2).sum()
    logdet, logdet0 = np.linalg.slogdet(rate)[1], np.linalg.slogdet(rate0)[1]
    return (0.5 * dof0 * (logdet - logdet0) + 0.5 * (dof - dof0) * psi
            + 0.5 * dof * (np.trace(np.linalg.solve(rate, rate0)) - d)
            + multigammaln(dof0 / 2, d) - multigammaln(dof / 2, d))


class Regression(NamedTuple):
    """Beliefs of `mean_field_regression`: w ~ N(mean, cov), tau ~ Gamma(a, b)."""

    mean: np.ndarray
    cov: np.ndarray
    a: float
    b: float
    free_energy: float


def mean_field_regression(X: np.ndarray, y: np.ndarray, *, w_sd: float = 2.0, a0: float = 2.0,
                          b0: float = 1.0, sweeps: int = 500) -> Regression:
    """The fixed point of q(w) q(tau) for y ~ N(X w, 1 / tau) in closed form (Bishop 2006, 10.3)."""
    N, p = X.shape
    a, b = a0 + N / 2, b0
    for _ in range(sweeps):
        J = np.eye(p) / w_sd**2 + a / b * X.T @ X
        S = np.linalg.inv(J)
        w = a / b * S @ X.T @ y
        square = ((y - X @ w)**2).sum() + np.trace(X.T @ X @ S)
        b = b0 + square / 2
    tau, log_tau = a / b, digamma(a) - np.log(b)
    energy = (0.5 * N * (log_tau - LOG_2PI) - 0.5 * tau * square
              - 0.5 * (w @ w + np.trace(S)) / w_sd**2 - 0.5 * p * (LOG_2PI + 2 * np.log(w_sd))
              + a0 * np.log(b0) - gammaln(a0) + (a0 - 1) * log_tau - b0 * tau)
    entropy = (0.5 * p * (LOG_2PI + 1) + 0.5 * np.linalg.slogdet(S)[1]
               + a - np.log(b) + gammaln(a) + (1 - a) * digamma(a))
    return Regression(w, S, a, b, float(-energy - entropy))


def numerical_gradient(fn: Callable, at: Any, eps: float = 1e-3) -> Any:
    """Central differences of a scalar function of a pytree: exact for quadratics."""
    flat, unravel = ravel_pytree(at)
    steps = eps * jnp.eye(flat.size)
    f = jax.jit(jax.vmap(lambda s: fn(unravel(flat + s)) - fn(unravel(flat - s))))
    return unravel(f(steps) / (2 * eps))
