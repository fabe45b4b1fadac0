"""Exact posteriors of any program of the grammar, from values of its log joint alone.

The program is run by NumPyro's handlers with a Python loop for its scans, so that nothing of the
library is used. A function known to be quadratic (or linear in tau and log tau) is told by a few of
its values, and so is its expectation: every quantity here is a weighted sum of values of log p.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro.primitives import Messenger
from scipy.special import digamma, gammaln, multigammaln

from tests.fuzz.grammar import Program

LOG_2PI = np.log(2 * np.pi)
QUICK = {"xla_backend_optimization_level": 0}


def score(fn: dist.Distribution, value: jax.Array) -> jax.Array:
    """log p of every element of the batch, NaN being missing: elementwise, or of whole events."""
    if isinstance(fn, dist.Independent):
        inner = score(fn.base_dist, value)
        return inner.sum(tuple(range(inner.ndim - fn.reinterpreted_batch_ndims, inner.ndim)))
    if isinstance(fn, dist.MaskedDistribution):
        return jnp.where(fn._mask, score(fn.base_dist, value), 0.0)
    if isinstance(fn, dist.ExpandedDistribution):
        return jnp.broadcast_to(score(fn.base_dist, value), fn.batch_shape)
    missing = jnp.isnan(value)
    events = tuple(range(value.ndim - fn.event_dim, value.ndim))
    return jnp.where(missing.any(events), 0.0, fn.log_prob(jnp.where(missing, 1.0, value)))


class _Run(Messenger):
    """One run: latents take their `values`; the log density of every site is kept in `found`."""

    def __init__(self, values: Mapping[str, jax.Array], known: Mapping[str, np.ndarray],
                 beliefs: Mapping[str, dist.Distribution]) -> None:
        super().__init__(None)
        self.values, self.known, self.beliefs = values, known, beliefs
        self.step: int | None = None
        self.found: dict[str, list[jax.Array]] = {}
        self.latent: dict[str, dist.Distribution] = {}

    def process_message(self, msg: dict) -> None:
        if msg["type"] != "sample":
            return
        name, fn = msg["name"], self.beliefs.get(msg["name"], msg["fn"])
        if msg["value"] is None or name in self.known:
            self.latent[name] = fn
            value = self.values.get(name, jnp.zeros((99, *fn.shape()) if self.step is not None
                                                   else fn.shape()))
            msg["value"] = value if self.step is None else value[self.step]
        weight = 1.0 if msg["scale"] is None else msg["scale"]
        found = weight * score(fn, msg["value"])
        self.found.setdefault(name, []).append(jnp.broadcast_to(found, fn.batch_shape))

    def scan(self, f: Callable, init: Any, xs: Any = None, length: int | None = None) -> Any:
        """NumPyro's `scan` as a loop."""
        outs, carry = [], init
        length = len(jax.tree.leaves(xs)[0]) if length is None else length
        for t in range(length):
            self.step = t
            carry, out = f(carry, jax.tree.map(lambda x, t=t: x[t], xs))
            outs.append(out)
        self.step = None
        return carry, jax.tree.map(lambda *x: jnp.stack(x), *outs)


class Site(NamedTuple):
    """A latent: its family, the shape of its values and of its log densities, both with time."""

    family: str
    shape: tuple[int, ...]
    batch: tuple[int, ...]


class LogJoint:
    """log p(latents, data) of a program, by element of its sites, as a function of one vector.

    The vector holds what is not data: `at[site]` tells where, -1 where it is.
    """

    def __init__(self, program: Program, known: Mapping[str, np.ndarray] | None = None,
                 beliefs: Mapping[str, dist.Distribution] | None = None) -> None:
        known, beliefs = known or {}, beliefs or {}
        first: list[_Run] = []

        def run(values: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
            r = _Run(values, known, beliefs)
            with r:
                program.call(latent=None, scan=r.scan)
            first.append(r)
            steps = {n: jnp.stack(x) if n in program.inside else x[0] for n, x in r.found.items()}
            return steps

        shapes = jax.eval_shape(lambda: run({}))
        self.beliefs = beliefs
        self.sites: dict[str, Site] = {}
        self.data: dict[str, np.ndarray] = {}
        self.at: dict[str, np.ndarray] = {}
        self.size = 0
        for name, fn in first[0].latent.items():
            lead = shapes[name].shape[:1] if name in program.inside else ()
            shape = (*lead, *fn.shape())
            given = np.full(shape, np.nan)
            if name in known:
                value = np.asarray(known[name], float)
                given[tuple(slice(n) for n in value.shape)] = value
            free = np.isnan(given)
            self.sites[name] = Site(family_of(fn), shape, shapes[name].shape)
            self.data[name] = given
            self.at[name] = np.full(shape, -1)
            self.at[name][free] = self.size + np.arange(free.sum())
            self.size += int(free.sum())

        def elements(vector: jax.Array) -> dict[str, jax.Array]:
            padded = jnp.append(vector, 0.0)
            return run({n: jnp.where(self.at[n] < 0, np.nan_to_num(self.data[n]),
                                     padded[self.at[n]]) for n in self.sites})

        self._elements = jax.jit(jax.vmap(elements), compiler_options=QUICK)

    def elements(self, points: np.ndarray) -> dict[str, np.ndarray]:
        """{site: (points, *batch)}."""
        found = [self._elements(jnp.asarray(p)) for p in _chunks(points)]
        return {n: np.concatenate([np.asarray(f[n]) for f in found])[:len(points)]
                for n in found[0]}

    def total(self, points: np.ndarray, active: Mapping[str, np.ndarray] | None = None
              ) -> np.ndarray:
        """log p at every point, of the elements that are `active` alone."""
        found = self.elements(points)
        return sum((x if active is None else np.where(active[n], x, 0)).reshape(len(points), -1)
                   .sum(1) for n, x in found.items())

    def coordinates(self, name: str) -> np.ndarray:
        """Where the vector holds what is unknown of a site."""
        return self.at[name][self.at[name] >= 0]

    def touched(self) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Log densities by site at many points, and whether element e of all of them depends on
        coordinate i (i, e)."""
        base = np.random.default_rng(0).uniform(0.5, 1.5, self.size)
        for name, site in self.sites.items():
            if site.family == "wishart":
                base[self.at[name]] = np.eye(site.shape[-1]) + 0.1
        moved = self.elements(np.concatenate([base[None], base + 1e-2 * np.eye(self.size)]))
        flat = np.concatenate([moved[n].reshape(self.size + 1, -1) for n in moved], 1)
        return moved, flat[1:] != flat[0]

    def reached(self, whole: Mapping[str, tuple[int, ...]] | None = None,
                also: Iterable[LogJoint] = ()) -> dict[str, np.ndarray]:
        """By site the elements of its batch that data depend on (of observed sites: all).

        `whole`: axes of a site's batch along which it counts as one; `also`: the same program with
        other masks, for what its text reaches.
        """
        moved, touched = self.touched()
        for other in also:
            touched = touched | other.touched()[1]
        names = list(moved)
        start = dict(zip(names, np.cumsum([0, *(moved[n][0].size for n in names)])))
        active = np.ones(touched.shape[1], bool)
        units = []                                       # (elements, coordinates)
        for name, site in self.sites.items():
            size = int(np.prod(site.batch, dtype=int))
            number = np.arange(size).reshape(site.batch)
            for axis in (whole or {}).get(name, ()):
                number = np.broadcast_to(number.min(axis, keepdims=True), site.batch)
            own = self.at[name].reshape(size, -1)
            for k in np.unique(number):
                here = np.flatnonzero(number.ravel() == k)
                if (own[here] >= 0).all():
                    active[start[name] + here] = False
                    units.append((start[name] + here, own[here].ravel()))
        while True:
            new = [e for e, own in units if not active[e].any()
                   and touched[own][:, active].any()]
            if not new:
                break
            active[np.concatenate(new)] = True
        return {n: active[start[n]:start[n] + moved[n][0].size].reshape(moved[n].shape[1:])
                for n in names}


def _chunks(points: np.ndarray, size: int = 256) -> list[np.ndarray]:
    """Pieces of one size (the last one filled up), so that a function compiles once."""
    count = -(-len(points) // size)
    filled = np.concatenate([points, np.repeat(points[-1:], count * size - len(points), 0)])
    return np.split(filled, count)


def family_of(fn: dist.Distribution) -> str:
    while isinstance(fn, dist.Independent | dist.ExpandedDistribution | dist.MaskedDistribution):
        fn = fn.base_dist
    if isinstance(fn, dist.Wishart):
        return "wishart"
    return "gamma" if isinstance(fn, dist.Gamma | dist.Exponential) else "gaussian"


# -- quadratics ------------------------------------------------------------------------------------


class Quadratic(NamedTuple):
    """f(z) = top - 1/2 (z - mean)' H (z - mean)."""

    mean: np.ndarray
    H: np.ndarray
    top: float

    @property
    def evidence(self) -> float:
        """log int exp f."""
        return (self.top + 0.5 * len(self.mean) * LOG_2PI
                - 0.5 * np.linalg.slogdet(self.H)[1]) if len(self.mean) else self.top

    @property
    def cov(self) -> np.ndarray:
        return np.linalg.inv(self.H)


def quadratic(f: Callable[[np.ndarray], np.ndarray], at: np.ndarray, passes: int = 2) -> Quadratic:
    """A quadratic function of a vector from its values: around `at`, then around its maximum, in
    steps of its own spread, where it has the most digits."""
    n, step = len(at), np.ones(len(at))
    pairs = list(combinations(range(n), 2))
    mean = np.array(at, float)
    if not n:
        return Quadratic(mean, np.zeros((0, 0)), float(f(mean[None])[0]))
    for _ in range(passes):
        eye = np.diag(step)
        both = np.array([eye[i] + eye[j] for i, j in pairs]).reshape(-1, n)
        values = f(mean + np.concatenate([np.zeros((1, n)), eye, -eye, both]))
        zero, up, down, cross = np.split(values, [1, n + 1, 2 * n + 1])
        H = np.diag(2 * zero - up - down)
        for (i, j), v in zip(pairs, cross):
            H[i, j] = H[j, i] = up[i] + up[j] - v - zero[0]
        H = H / step / step[:, None]
        g = (up - down) / 2 / step
        move = np.linalg.solve(H, g)
        top, mean = float(zero[0] + 0.5 * g @ move), mean + move
        step = np.sqrt(np.diag(np.linalg.inv(H)))
    return Quadratic(mean, H, top)


# -- mean field ------------------------------------------------------------------------------------


class Belief(NamedTuple):
    """q of one block over the coordinates `at`: Gaussian (mean, spread = cov), gamma (mean, spread
    = concentration and rate by element), Wishart (dof, spread = rate)."""

    family: str
    at: np.ndarray
    mean: np.ndarray
    spread: np.ndarray
    held: bool = False

    def nodes(self) -> tuple[np.ndarray, np.ndarray]:
        """Points and weights by which E_q[f] is exact for every f that the block can meet."""
        n = len(self.at)
        if self.family == "gaussian":
            root = np.sqrt(n) * np.linalg.cholesky(self.spread).T
            return np.concatenate([self.mean + root, self.mean - root]), np.full(2 * n, 0.5 / n)
        if self.family == "gamma":
            a, b = self.spread
            points, weights = np.zeros((1, 0)), np.ones(1)
            for a_, b_ in zip(a, b):
                mine = a_ / b_ * np.array([0.5, 1.0, 2.0])
                w = np.linalg.solve([np.ones(3), mine, np.log(mine)],
                                    [1.0, a_ / b_, digamma(a_) - np.log(b_)])
                points = np.concatenate([np.repeat(points, 3, 0),
                                         np.tile(mine, len(points))[:, None]], 1)
                weights = np.kron(weights, w)
            return points, weights
        d, (dof, rate) = len(self.spread), (self.mean[0], self.spread)
        W = dof * np.linalg.inv(rate)
        points = _around(W)
        log = digamma((dof - np.arange(d)) / 2).sum() + d * np.log(2) - np.linalg.slogdet(rate)[1]
        w = np.linalg.solve(_features(points).T, _features(W[None], [log])[0])
        return points.reshape(len(points), -1), w

    def entropy(self) -> float:
        if self.family == "gaussian":
            return 0.5 * (len(self.at) * (1 + LOG_2PI) + np.linalg.slogdet(self.spread)[1])
        if self.family == "gamma":
            a, b = self.spread
            return float((a - np.log(b) + gammaln(a) + (1 - a) * digamma(a)).sum())
        dof, rate, d = self.mean[0], self.spread, len(self.spread)
        logdet = np.linalg.slogdet(rate)[1]
        psi = digamma((dof - np.arange(d)) / 2).sum() + d * np.log(2) - logdet
        log_z = 0.5 * dof * d * np.log(2) - 0.5 * dof * logdet + multigammaln(dof / 2, d)
        return float(log_z - 0.5 * (dof - d - 1) * psi + 0.5 * dof * d)

    def fit(self, f: Callable[[np.ndarray], np.ndarray]) -> Belief:
        """The belief proportional to exp f."""
        if self.family == "gaussian":
            found = quadratic(f, self.mean, passes=1)
            return self._replace(mean=found.mean, spread=found.cov)
        if self.family == "gamma":
            a, b = (x.copy() for x in self.spread)
            here = a / b
            for i in range(len(a)):
                mine = here[i] * np.array([0.5, 1.0, 2.0])
                points = np.repeat(here[None], 3, 0)
                points[:, i] = mine
                _, c, k = np.linalg.solve(np.stack([np.ones(3), mine, np.log(mine)], 1), f(points))
                a[i], b[i] = k + 1, -c
            return self._replace(spread=np.stack([a, b]))
        d = len(self.spread)
        points = _around(self.mean[0] * np.linalg.inv(self.spread))
        c = np.linalg.solve(_features(points), f(points.reshape(len(points), -1)))
        rate = np.zeros((d, d))
        for k, (i, j) in enumerate(zip(*np.triu_indices(d))):
            rate[i, j] = rate[j, i] = -2 * c[1 + k] / (1 if i == j else 2)
        return self._replace(mean=np.array([2 * c[-1] + d + 1]), spread=rate)


def _around(W: np.ndarray) -> np.ndarray:
    """As many positive definite matrices around W as `_features` has columns."""
    d, root, found = len(W), np.linalg.cholesky(W), [np.eye(len(W)), 2 * np.eye(len(W))]
    for i, j in zip(*np.triu_indices(d)):
        S = np.eye(d)
        S[i, j] = S[j, i] = 1.5 if i == j else 0.5
        found.append(S)
    return np.array([root @ S @ root.T for S in found])


def _features(W: np.ndarray, log: Sequence[float] | None = None) -> np.ndarray:
    """(1, upper triangle, log|W|) of matrices (n, d, d)."""
    i, j = np.triu_indices(W.shape[-1])
    log = np.linalg.slogdet(W)[1] if log is None else np.asarray(log)
    return np.concatenate([np.ones((len(W), 1)), W[:, i, j], log[:, None]], 1)


def expectation(f: Callable[[np.ndarray], np.ndarray], size: int, beliefs: Sequence[Belief],
                own: Belief | None = None, points: np.ndarray | None = None) -> np.ndarray:
    """E[f] over the beliefs (but `own`, which stands at each of the points)."""
    grid, weights = np.zeros((1, size)), np.ones(1)
    for q in beliefs:
        if q is own:
            continue
        mine, w = q.nodes()
        grid = np.repeat(grid, len(mine), 0)
        grid[:, q.at] = np.tile(mine, (len(weights), 1))
        weights = np.kron(weights, w)
    if points is None:
        return weights @ f(grid)
    grid = np.tile(grid, (len(points), 1))
    grid[:, own.at] = np.repeat(points, len(weights), 0)
    return f(grid).reshape(len(points), -1) @ weights


def mean_field(f: Callable[[np.ndarray], np.ndarray], size: int, beliefs: list[Belief],
               sweeps: int = 3000, tol: float = 1e-11) -> tuple[list[Belief], float]:
    """The fixed point of q = prod of blocks next to the given beliefs, and its free energy.

    Iterated until it stands (after 300 sweeps to 1e-9), or comes no nearer in 50: f is rounded.
    """
    best, last = np.inf, 0
    for i in range(sweeps):
        moved = 0.0
        for k, q in enumerate(beliefs):
            if not q.held:
                new = q.fit(lambda p, q=q: expectation(f, size, beliefs, q, p))
                scale = np.sqrt(np.diag(new.spread)) if q.family == "gaussian" else 1.0
                change = [(new.mean - q.mean) / scale, (new.spread - q.spread)
                          / np.abs(new.spread).max()]
                moved = max(moved, *(np.abs(c).max() for c in change))
                beliefs[k] = new
        if moved < 0.9 * best:
            best, last = moved, i
        if moved < (tol if i < 300 else 1e-9) or i - last > 50:
            break
    return beliefs, float(-expectation(f, size, beliefs) - sum(q.entropy() for q in beliefs))
