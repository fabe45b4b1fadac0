"""Plans of linear Gaussian programs by dense linear algebra: NumPy alone, nothing of the library.

A problem is the list of its sites in program order, each a Gaussian given what came before it,

    z = K h + noise,  h = (1, everything drawn before),

so nothing here knows of steps, carries or chains. `solve` conditions a dense joint on the past,
eliminates the future backward from one dense quadratic form, and rolls the joint out; `open_loop`
is the least-squares plan of the mean dynamics.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

LOG_2PI = np.log(2 * np.pi)


class Site(NamedTuple):
    """One draw of n numbers: K (n, H) its mean on h; precision, its log-determinant and covariance
    (expectations where they are uncertain); data (n,), NaN where there are none; at: its columns in
    h, none of an observed site; spread (n, H, n, H): covariance of K."""

    K: np.ndarray
    precision: np.ndarray
    logdet: float
    cov: np.ndarray
    data: np.ndarray
    at: np.ndarray
    decide: bool = False
    spread: np.ndarray | None = None


class Problem:
    """Collects sites; `size` numbers are drawn in all."""

    def __init__(self, size: int) -> None:
        self.size, self.sites, self.used = 1 + size, [], 1

    def _site(self, terms, const, noise, data, at, decide=False, spread=None) -> None:
        n = len(const)
        K = np.zeros((n, self.size))
        K[:, 0] = const
        for where, matrix in terms:
            K[:, where] += matrix
        precision, logdet, cov = noise if isinstance(noise, tuple) else (
            np.linalg.inv(noise), -np.linalg.slogdet(noise)[1], noise)
        if spread is not None:
            on, part = spread
            spread = np.zeros((n, self.size, n, self.size))
            spread[np.ix_(range(n), on, range(n), on)] = part
        data = np.full(n, np.nan) if data is None else np.asarray(data, float)
        self.sites.append(Site(K, precision, logdet, cov, data, at, decide, spread))

    def draw(self, terms, const, noise, data=None, decide=False, spread=None) -> np.ndarray:
        """A latent site; returns its columns in h."""
        at = np.arange(self.used, self.used + len(const))
        self.used += len(const)
        self._site(terms, const, noise, data, at, decide, spread)
        return at

    def see(self, terms, const, noise, data) -> None:
        """An observed site."""
        self._site(terms, const, noise, data, np.arange(0))


class Solution(NamedTuple):
    """Moments of everything drawn (the first entry of h is left out), and F in nats."""

    mean: np.ndarray
    cov: np.ndarray
    free_energy: float


def _residual(site: Site, H: int) -> np.ndarray:
    """value - mean on h, the data of an observed site in the constant."""
    R = -site.K.copy()
    if len(site.at):
        R[np.arange(len(site.at)), site.at] += 1
    else:
        R[:, 0] += np.nan_to_num(site.data)
    return R


def _cost(site: Site, rows: np.ndarray) -> np.ndarray:
    """2 E[-log p] of the chosen elements of a site, as a form in h."""
    H = site.K.shape[1]
    R, Q = _residual(site, H)[rows], np.zeros((H, H))
    P, logdet = site.precision, site.logdet
    if not rows.all():
        P = np.linalg.inv(site.cov[np.ix_(rows, rows)])
        logdet = np.linalg.slogdet(P)[1]
    Q += R.T @ P @ R
    if site.spread is not None:
        Q += np.einsum("ij,iajb->ab", P, site.spread[rows][:, :, rows])
    Q[0, 0] += rows.sum() * LOG_2PI - logdet
    return Q


def _rule(site: Site) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Mean rows, covariance and spread of a draw whose data are known."""
    known = ~np.isnan(site.data)
    free, L = ~known, np.eye(len(known))
    G = np.zeros_like(L)
    if known.any() and free.any():
        G[np.ix_(free, known)] = site.cov[np.ix_(free, known)] @ np.linalg.inv(
            site.cov[np.ix_(known, known)])
    L = np.diag(free.astype(float)) - G
    K = L @ site.K
    K[:, 0] += (np.diag(known.astype(float)) + G) @ np.nan_to_num(site.data)
    spread = site.spread
    if spread is not None:
        spread = np.einsum("ni,iajb,mj->namb", L, spread, L)
    return K, L @ site.cov @ L.T, spread


def first_decision(problem: Problem) -> int:
    """The place of the first site with a decision to take."""
    return next((i for i, s in enumerate(problem.sites)
                 if s.decide and np.isnan(s.data).any()), len(problem.sites))


def _put(h, S, site, K, cov, spread):
    """A draw added to the joint of h."""
    across = K @ S
    own = across @ K.T + cov
    if spread is not None:
        own = own + np.einsum("namb,ab->nm", spread, S + np.outer(h, h))
    h[site.at] = K @ h
    S[site.at], S[:, site.at] = across, across.T
    S[np.ix_(site.at, site.at)] = own


def solve(problem: Problem) -> Solution:
    """The plan: minus log evidence of the past, then the optimum of the future."""
    H, first = problem.size, first_decision(problem)
    past, future = problem.sites[:first], problem.sites[first:]
    # The past: only what some datum depends on is inferred.
    form, needed = np.zeros((H, H)), np.zeros(H, bool)
    for s in past[::-1]:
        known = ~np.isnan(s.data)
        if not (known.any() or needed[s.at].any()):
            continue
        rows = np.ones_like(known) if len(s.at) else known
        needed |= (s.K[rows] != 0).any(0)
        if s.spread is not None:
            needed |= (s.spread[rows] != 0).any((0, 2, 3))
        needed[s.at] = True
        form += _cost(s, rows)
    h, S, given = np.zeros(H), np.zeros((H, H)), np.zeros(H, bool)
    h[0] = 1
    for s in past:
        known = ~np.isnan(s.data)
        if len(s.at):
            h[s.at[known]], given[s.at[known]] = s.data[known], True
    free = needed & ~given
    free[0] = False
    inner = np.ix_(free, free)
    b = form[free] @ h
    S[inner] = np.linalg.inv(form[inner])
    free_energy = 0.5 * (h @ form @ h - b @ S[inner] @ b + np.linalg.slogdet(form[inner])[1]
                         - free.sum() * LOG_2PI)
    h[free] = -S[inner] @ b
    for s in past:
        if len(s.at) and not needed[s.at].any():
            _put(h, S, s, *_rule(s))
    # The future, backward.
    Q, rules = np.zeros((H, H)), []
    for s in future[::-1]:
        known, at = ~np.isnan(s.data), s.at
        if not len(at):
            if known.any():
                Q += _cost(s, known)
            continue
        T = np.eye(H)
        if s.decide:
            Q += _cost(s, np.ones_like(known))
            T[at[known]] = 0
            T[at[known], 0] = s.data[known]
            Q = T.T @ Q @ T
            u = at[~known]
            K, cov = np.zeros((len(at), H)), np.zeros((len(at), len(at)))
            K[known, 0] = s.data[known]
            if len(u):
                cov[np.ix_(~known, ~known)] = np.linalg.inv(Q[np.ix_(u, u)])
                rest = Q[u].copy()
                rest[:, at] = 0
                K[~known] = -np.linalg.solve(Q[np.ix_(u, u)], rest)
                extra = np.linalg.slogdet(Q[np.ix_(u, u)])[1] - len(u) * LOG_2PI
                T = np.eye(H)
                T[u] = K[~known]
                Q = T.T @ Q @ T
                Q[0, 0] += extra
            rules.append((s, K, cov, None))
            continue
        if known.any():
            Q += _cost(s, known)
        K, cov, spread = _rule(s)
        Qzz = Q[np.ix_(at, at)]
        T[at] = K
        Q = T.T @ Q @ T
        Q[0, 0] += np.trace(Qzz @ cov)
        if spread is not None:
            Q += np.einsum("nm,namb->ab", Qzz, spread)
        rules.append((s, K, cov, spread))
    free_energy += 0.5 * np.sum(Q * (S + np.outer(h, h)))
    for s, *rule in rules[::-1]:
        _put(h, S, s, *rule)
    return Solution(h[1:], S[1:, 1:], float(free_energy))


def open_loop(problem: Problem, start: np.ndarray) -> np.ndarray:
    """Everything drawn under the least-squares plan, from the mean `start` of the past.

    min over the free actions U of the sum of squared, whitened residuals of all data and actions of
    the future, the states following the mean dynamics: a linear least-squares problem.
    """
    H, first = problem.size, first_decision(problem)
    future = problem.sites[first:]
    if not future:
        return start
    actions = np.concatenate([s.at[np.isnan(s.data)] for s in future if s.decide])
    T = np.zeros((H, 1 + len(actions)))             # h on (1, U)
    T[:, 0] = np.concatenate([[1.0], start])
    for s in future:
        T[s.at] = 0
    rows = []

    def residual(s: Site, elements: np.ndarray) -> None:
        P = np.linalg.inv(s.cov[np.ix_(elements, elements)])
        rows.append(np.linalg.cholesky(P).T @ _residual(s, H)[elements] @ T)

    for s in future:
        known = ~np.isnan(s.data)
        if s.decide:
            T[s.at[known], 0] = s.data[known]
            for a in s.at[~known]:
                T[a, 1 + list(actions).index(a)] = 1
            residual(s, np.ones_like(known))
        elif len(s.at):
            K = _rule(s)[0]
            T[s.at] = K @ T
            if known.any():
                residual(s, known)
        elif known.any():
            residual(s, known)
    R = np.concatenate(rows)
    U = np.linalg.lstsq(R[:, 1:], -R[:, 0], rcond=None)[0]
    return (T @ np.concatenate([[1.0], U]))[1:]
