"""The programs that must compile and be right, with small data sets to run them on.

Half are plain NumPyro. Every program is run by test_exactness.py; `CASES` names them.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.contrib.control_flow import scan

import jopa_ppl as jp
from models.local_level import NILE, local_level

SCALES = {"sqrt": lambda tau: 1 / jnp.sqrt(tau), "power": lambda tau: tau**-0.5,
          "rsqrt": jax.lax.rsqrt}


def regression(X, y=None, *, form="sqrt"):
    """Linear regression with unknown noise."""
    w = numpyro.sample("w", dist.Normal(0.0, 2.0).expand([X.shape[-1]]).to_event(1))
    tau = numpyro.sample("tau", dist.Gamma(2.0, 1.0))
    with numpyro.plate("n", X.shape[0]):
        numpyro.sample("y", dist.Normal(X @ w, SCALES[form](tau)), obs=y)


def transitions(x, u, y=None, weights=None):
    """Rectangular A, B from observed (x, u, y); `weights` (N,) temper each transition."""
    d, dx, du = 2, x.shape[-1], u.shape[-1]
    A = numpyro.sample("A", dist.Normal(0.0, 1.0).expand([d, dx]).to_event(2))
    B = numpyro.sample("B", dist.Normal(0.0, 2.0).expand([d, du]).to_event(2))
    W = numpyro.sample("W", dist.Wishart(d + 2.0, rate_matrix=jnp.eye(d)))
    weights = jnp.ones(x.shape[0]) if weights is None else weights
    with numpyro.plate("n", x.shape[0]), numpyro.handlers.scale(scale=weights):
        numpyro.sample("y", dist.MultivariateNormal(x @ A.T + u @ B.T, precision_matrix=W), obs=y)


def local_transitions(x, u, y, weights):
    """H local regressions on the same data, each with weights of its own: weights (H, N)."""
    d, dx, du = y.shape[-1], x.shape[-1], u.shape[-1]
    H, N = weights.shape
    with numpyro.plate("h", H, dim=-2):
        A = numpyro.sample("A", dist.Normal(jnp.zeros((d, dx)), 1.0).to_event(2))
        B = numpyro.sample("B", dist.Normal(jnp.zeros((d, du)), 2.0).to_event(2))
        W = numpyro.sample("W", dist.Wishart(d + 2.0, rate_matrix=jnp.eye(d)))
        with numpyro.plate("n", N, dim=-1), numpyro.handlers.scale(scale=weights):
            mean = jnp.einsum("hzij,nj->hni", A, x) + jnp.einsum("hzij,nj->hni", B, u)
            fn = dist.MultivariateNormal(mean, precision_matrix=W)
            numpyro.sample("y", fn, obs=jnp.broadcast_to(y, (H, *y.shape)))


def lds(y=None, *, T, C, offset=False):
    """A linear dynamical system with unknown A, B, W and perhaps an offset c; B in use if u is."""
    d, du = C.shape[1], 1
    A = jp.latent("A", dist.Normal(jnp.eye(d), jnp.sqrt(0.5)).to_event(2))
    B = jp.latent("B", dist.Normal(jnp.zeros((d, du)), 1.0).to_event(2))
    c = jp.latent("c", dist.Normal(jnp.zeros(d), 1.0).to_event(1)) if offset else 0.0
    W = jp.latent("W", dist.Wishart(d + 2.0, rate_matrix=jnp.eye(d)))
    x0 = jp.latent("x0", dist.MultivariateNormal(jnp.zeros(d), jnp.eye(d)))

    def step(x, y):
        jp.observe("y", dist.Normal(C @ x, 0.3).to_event(1), y)
        u = jp.latent("u", dist.Normal(jnp.zeros(du), 2.0).to_event(1))
        x = jp.latent("x", dist.MultivariateNormal(A @ x + B @ u + c, precision_matrix=W))
        return x, None

    jp.scan(step, x0, y, length=T)


def autonomous(y=None, *, T, d=2):
    """A linear dynamical system with unknown A and W and no actions, in plain NumPyro."""
    A = numpyro.sample("A", dist.Normal(jnp.eye(d), jnp.sqrt(0.5)).to_event(2))
    W = numpyro.sample("W", dist.Wishart(d + 2.0, rate_matrix=jnp.eye(d)))
    x0 = numpyro.sample("x0", dist.MultivariateNormal(jnp.zeros(d), jnp.eye(d)))

    def step(x, y):
        numpyro.sample("y", dist.Normal(x, 0.3).to_event(1), obs=y)
        return numpyro.sample("x", dist.MultivariateNormal(A @ x, precision_matrix=W)), None

    scan(step, x0, y, length=T)


def varying(y=None, *, T, A, B, c, C):
    """Known dynamics of their own at every step (A, B, c lead with time), actions latent."""
    d, du = B.shape[1:]
    x0 = jp.latent("x0", dist.MultivariateNormal(jnp.ones(d), 0.5 * jnp.eye(d)))

    def step(x, now):
        A, B, c, y = now
        jp.observe("y", dist.Normal(C @ x, 0.2).to_event(1), y)
        u = jp.latent("u", dist.Normal(jnp.zeros(du), 2.0).to_event(1))
        x = jp.latent("x", dist.MultivariateNormal(A @ x + B @ u + c,
                                                   covariance_matrix=0.1 * jnp.eye(d)))
        return x, None

    jp.scan(step, x0, (A, B, c, y), length=T)


def unknown_sensor(y=None, *, T, A, p=3):
    """Known dynamics A, unknown observation matrix C and noise."""
    d = A.shape[0]
    C = numpyro.sample("C", dist.Normal(jnp.eye(p, d), 0.5).to_event(2))
    tau = numpyro.sample("tau", dist.Gamma(3.0, 1.0))
    x0 = numpyro.sample("x0", dist.Normal(jnp.ones(d), 1.0).to_event(1))

    def step(x, y):
        numpyro.sample("y", dist.Normal(C @ x, jax.lax.rsqrt(tau)).to_event(1), obs=y)
        return numpyro.sample("x", dist.Normal(A @ x, 0.3).to_event(1)), None

    scan(step, x0, y, length=T)


def fusion(a=None, b=None, *, T, A):
    """Two sensors on one state, the noise of the second unknown."""
    d = A.shape[0]
    tau = jp.latent("tau", dist.Gamma(2.0, 1.0))
    x0 = jp.latent("x0", dist.MultivariateNormal(jnp.zeros(d), jnp.eye(d)))

    def step(x, seen):
        jp.observe("a", dist.MultivariateNormal(x, 0.2 * jnp.eye(d)), seen[0])
        jp.observe("b", dist.Normal(x.sum(), tau**-0.5), seen[1])
        return jp.latent("x", dist.MultivariateNormal(A @ x, scale_tril=0.4 * jnp.eye(d))), None

    jp.scan(step, x0, (a, b), length=T)


def coupled(y=None, *, T):
    """Two chains tied to each other by a linear factor (`link`), each with unknown noise."""
    with numpyro.plate("chain", 2):
        tau = numpyro.sample("tau", dist.Gamma(2.0, 1.0))
    a0 = numpyro.sample("a0", dist.Normal(0.0, 1.0))
    b0 = numpyro.sample("b0", dist.Normal(0.0, 2.0))

    def step(carry, y):
        a, b = carry
        numpyro.sample("link", dist.Normal(a - 2 * b, 0.5), obs=jnp.zeros(()))
        numpyro.sample("y", dist.Normal(a + b, 0.3), obs=y)
        a = numpyro.sample("a", dist.Normal(0.9 * a, tau[0]**-0.5))
        b = numpyro.sample("b", dist.Normal(0.8 * b, tau[1]**-0.5))
        return (a, b), None

    scan(step, (a0, b0), y, length=T)


def second_order(y=None, *, T):
    """Poses whose velocity is the difference of the last two: the carry holds an older state."""
    damp = jp.latent("damp", dist.Normal(0.5, 1.0))
    tau = jp.latent("tau", dist.Gamma(2.0, 0.5))
    q1 = jp.latent("q1", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
    q0 = jp.latent("q0", dist.Normal(q1, 0.5).to_event(1))

    def step(carry, y):
        old, now = carry
        jp.observe("y", dist.Normal(now, 0.2).to_event(1), y)
        new = jp.latent("q", dist.Normal(now + damp * (now - old), tau**-0.5).to_event(1))
        return (now, new), None

    jp.scan(step, (q1, q0), y, length=T)


def factor_analysis(y, *, k=2):
    """Loadings shared over a plate of local latents, noise of each output unknown."""
    N, p = y.shape
    L = numpyro.sample("L", dist.Normal(jnp.zeros((p, k)), 1.0).to_event(2))
    b = numpyro.sample("b", dist.Normal(0.0, 2.0).expand([p]).to_event(1))
    tau = numpyro.sample("tau", dist.Gamma(2.0 * jnp.ones(p), 1.0).to_event(1))
    with numpyro.plate("n", N):
        z = numpyro.sample("z", dist.Normal(jnp.zeros(k), 1.0).to_event(1))
        jp.observe("y", dist.Normal(z @ L.T + b, 1 / jnp.sqrt(tau)).to_event(1), y)


def hierarchy(y):
    """Means of groups around a common mean, between-group precision unknown."""
    groups, repeats = y.shape
    mu = numpyro.sample("mu", dist.Normal(0.0, 3.0))
    tau = numpyro.sample("tau", dist.Gamma(2.0, 1.0))
    with numpyro.plate("group", groups, dim=-2):
        theta = numpyro.sample("theta", dist.Normal(mu, 1 / jnp.sqrt(tau)))
        with numpyro.plate("repeat", repeats, dim=-1):
            jp.observe("y", dist.Normal(theta, 0.5), y)


def trajectories(y, *, d=2):
    """Trajectories in a plate inside the scan's body (y: T, n, d), shorter ones end in NaN."""
    T, n, _ = y.shape
    A = numpyro.sample("A", dist.Normal(jnp.eye(d), jnp.sqrt(0.5)).to_event(2))
    W = numpyro.sample("W", dist.Wishart(d + 2.0, rate_matrix=jnp.eye(d)))
    with numpyro.plate("n", n):
        x0 = numpyro.sample("x0", dist.Normal(jnp.zeros(d), 1.0).to_event(1))

    def step(x, y):
        with numpyro.plate("n", n):
            jp.observe("y", dist.Normal(x, 0.3).to_event(1), y)
            x = numpyro.sample("x", dist.MultivariateNormal(x @ A.T, precision_matrix=W))
        return x, None

    scan(step, x0, y, length=T)


class Case(NamedTuple):
    """A program and its data."""

    model: Callable
    args: tuple
    kwargs: dict


def rotation(angle=0.4, size=0.95):
    """A damped rotation of the plane."""
    c, s = np.cos(angle), np.sin(angle)
    return size * np.array([[c, -s], [s, c]])


def simulate(T, seed=0, n=None, missing=0.1):
    """A noisy damped rotation pushed by actions: y (T, [n,] 2) with missing frames, u (T, 1)."""
    rng = np.random.default_rng(seed)
    shape = (2,) if n is None else (n, 2)
    x, u, ys = rng.normal(size=shape), rng.normal(size=(T, 1)), []
    for t in range(T):
        ys.append(x + 0.3 * rng.normal(size=shape))
        push = u[t] * np.array([0.5, -1.0]) if n is None else 0
        x = x @ rotation().T + push + 0.2 * rng.normal(size=shape)
    y = np.array(ys)
    gaps = rng.random(y.shape[:-1]) < missing
    gaps[0] = gaps[-1] = False
    if missing and not gaps.any():
        gaps[T // 2] = T > 2
    y[gaps] = np.nan
    return y, u


def table(N=20, seed=0):
    """Transitions of a rectangular system: x (N, 3), u (N, 1), y (N, 2)."""
    rng = np.random.default_rng(seed)
    x, u = rng.normal(size=(N, 3)), rng.normal(size=(N, 1))
    A, B = rng.normal(size=(2, 3)), rng.normal(size=(2, 1))
    return x, u, x @ A.T + u @ B.T + 0.2 * rng.normal(size=(N, 2)), rng.uniform(0.1, 1, (3, N))


def cases(T=8):
    """Every program of the list with data: {name: Case}."""
    rng = np.random.default_rng(1)
    y, u = simulate(T)
    X = rng.normal(size=(30, 3))
    target = X @ np.array([1.0, -2.0, 0.5]) + 0.3 * rng.normal(size=30)
    tx, tu, ty, weights = table()
    many = simulate(T, n=3)[0]
    many[T - 3:, 1] = np.nan
    fa = rng.normal(size=(25, 2)) @ rng.normal(size=(2, 5)) + 0.2 * rng.normal(size=(25, 5)) + 1
    fa[3, 2] = fa[7] = np.nan
    groups = rng.normal(size=(6, 1)) + 0.5 * rng.normal(size=(6, 3)) + 2
    groups[2, 1] = np.nan
    steps = {"A": rotation() + 0.1 * rng.normal(size=(T, 2, 2)), "B": rng.normal(size=(T, 2, 1)),
             "c": rng.normal(size=(T, 2)), "C": np.array([[1.0, 0.5], [0.0, 1.0]])}
    C = np.array([[1.0, 0.5], [0.0, 1.0]])
    full = simulate(T, missing=0)[0]
    acted = jp.condition(lds, {"u": u})
    found = {f"regression, {f}": Case(regression, (X, target), {"form": f}) for f in SCALES}
    return found | {
        "transitions": Case(transitions, (tx, tu, ty, np.ones(len(ty))), {}),
        "transitions, tempered": Case(transitions, (tx, tu, ty, weights[0]), {}),
        "local transitions": Case(local_transitions, (tx, tu, ty, weights), {}),
        "local level (Nile)": Case(local_level, ((NILE - 900) / 150,), {"T": 100}),
        "autonomous": Case(autonomous, (full,), {"T": T}),
        "lds": Case(acted, (y,), {"T": T, "C": C}),
        "lds, actions latent": Case(lds, (y,), {"T": T, "C": C}),
        "lds with offset": Case(acted, (y,), {"T": T, "C": C, "offset": True}),
        "varying": Case(varying, (y,), {"T": T, **steps}),
        "unknown sensor": Case(unknown_sensor, (np.concatenate([full, full[:, :1]], 1),),
                               {"T": T, "A": rotation()}),
        "fusion": Case(fusion, (y, np.where(np.arange(T) == 2, np.nan, full.sum(-1))),
                       {"T": T, "A": rotation()}),
        "coupled": Case(coupled, (full[:, 0],), {"T": T}),
        "second order": Case(second_order, (y,), {"T": T}),
        "factor analysis": Case(factor_analysis, (fa,), {}),
        "hierarchy": Case(hierarchy, (groups,), {}),
        "trajectories": Case(trajectories, (many,), {}),
    }
