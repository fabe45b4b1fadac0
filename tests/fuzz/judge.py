"""Run a program of the grammar, and say whether what comes back is right."""

from __future__ import annotations

import traceback
import warnings
from typing import Any, NamedTuple

import jax
import numpy as np

import jopa_ppl as jp
from tests.fuzz.further import further
from tests.fuzz.grammar import Program
from tests.fuzz.truth import (
    Belief,
    LogJoint,
    Quadratic,
    mean_field,
    quadratic,
)


class Verdict(NamedTuple):
    """`kind`: right, refused or wrong; of numbers that went astray, "warned" where a result came
    back with a NumericalWarning, "eaten" where a NumericalError did in its place; "unjudged" where
    the truth took too long; `text`: why."""

    kind: str
    text: str = ""


def judge(program: Program, single: bool = False, deep: bool = False) -> Verdict:
    """Compare a run with the truth; `single`: run in float32, as callers do by default; `deep`:
    ask for draws, densities, predictions and files as well (in float64)."""
    with jax.enable_x64(True):
        joint = LogJoint(program, program.known, program.beliefs())
    try:
        with jax.enable_x64(not single), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            posterior = jp.VMP(program.model(), tol=1e-20, max_iters=20_000, progress=False).run(
                program.data)
    except jp.JopaError as error:
        kind = "eaten" if isinstance(error, jp.NumericalError) else "refused"
        return Verdict(kind, f"{type(error).__name__}: {error}")
    except Exception:
        return Verdict("wrong", traceback.format_exc(limit=-6))
    with jax.enable_x64(True):
        faults = compare(program, joint, posterior, 2e-4 if single else 1e-8)
        if deep and not single:
            try:
                faults += further(program, joint, posterior)
            except Exception:
                faults.append(traceback.format_exc(limit=-6))
    told = [str(w.message) for w in caught if issubclass(w.category, jp.NumericalWarning)]
    if told:        # true, false or too late: whoever counts sees what is off beside it
        return Verdict("warned", "\n".join([*told, *(faults or ["nothing is off"])]))
    return Verdict("wrong", "\n".join(faults)) if faults else Verdict("right")


def compare(program: Program, joint: LogJoint, posterior: Any, tol: float) -> list[str]:
    """What differs from the truth, in words; nothing where all is right.

    What data reach is read from the program's text: `jnp.where` depends on both of its sides, and
    a coefficient that happens to be 0 counts.
    """
    compare_with = _compare_gaussian if program.quadratic else _compare_mean_field
    graph = posterior.compiled.graph
    faults = compare_with(joint, posterior, list(graph.blocks), joint.reached(), tol)
    mixed = {n: tuple(int(v.site.is_series) + p.axis for p in v.site.axes if p not in v.local)
             for n, v in graph.variables.items()}
    if faults and any(mixed.values()):      # a plate that some site mixes is seen as a whole
        faults = compare_with(joint, posterior, list(graph.blocks), joint.reached(mixed), tol)
    if faults:
        also = [LogJoint(other, program.known, program.beliefs()) for other in program.choices()]
        faults = compare_with(joint, posterior, list(graph.blocks), joint.reached(mixed, also), tol)
    return faults


def alive(joint: LogJoint, active: dict[str, np.ndarray], name: str) -> np.ndarray:
    """The coordinates of a site that data reach."""
    at, batch = joint.at[name], active[name]
    here = batch.reshape((*batch.shape, *(1,) * (at.ndim - batch.ndim)))
    return at[np.broadcast_to(here, at.shape) & (at >= 0)]


def _compare_gaussian(joint: LogJoint, posterior: Any, blocks: list, active: dict, tol: float
                      ) -> list[str]:
    """One block: the dense posterior and the evidence. Several: their product in closed form.

    log p is top - 1/2 (z - mu)' H (z - mu) in what data reach, the rest integrated out; q has means
    m that agree with each other (held ones apart: mu itself) and precisions H_bb, so that

        F = -top + 1/2 (m - mu)' H (m - mu) + 1/2 sum_b tr(H_bb V_b) - sum_b entropy(V_b)
    """
    exact = quadratic(joint.total, np.zeros(joint.size))
    parts = [(b.held, np.concatenate([np.zeros(0, int), *(alive(joint, active, n)
                                                          for n in b.members if n in joint.at)]))
             for b in blocks]         # what a carry follows with certainty has no coordinates
    parts = [(held, at) for held, at in parts if len(at)]
    if len(parts) == 1 and not parts[0][0]:
        return [*_moments(joint, posterior, exact.mean, np.diag(exact.cov),
                          np.ones(joint.size, bool), tol),
                *_free_energy(posterior, -exact.evidence, tol)]
    seen = np.concatenate([np.zeros(0, int), *(at for _, at in parts)])
    rest = np.setdiff1d(np.arange(joint.size), seen)
    across = np.linalg.solve(exact.H[np.ix_(rest, rest)], exact.H[np.ix_(rest, seen)])
    H = np.zeros((joint.size, joint.size))
    H[np.ix_(seen, seen)] = (exact.H[np.ix_(seen, seen)]
                             - exact.H[np.ix_(rest, seen)].T @ across)
    inside = Quadratic(exact.mean[seen], H[np.ix_(seen, seen)], 0.0)
    mean, V = np.array(exact.mean), np.zeros_like(H)
    held = np.zeros(joint.size, bool)
    for name, fn in joint.beliefs.items():
        at = joint.coordinates(name)
        if any(h and np.isin(at, p).any() for h, p in parts):
            held[at], mean[at] = True, np.asarray(fn.mean).ravel()
            V[at, at] = np.asarray(fn.variance).ravel()
    free = seen[~held[seen]]
    gap = mean[held] - exact.mean[held]
    mean[free] -= np.linalg.solve(H[np.ix_(free, free)], H[np.ix_(free, held.nonzero()[0])] @ gap)
    F = inside.evidence - exact.evidence + 0.5 * (mean - exact.mean) @ H @ (mean - exact.mean)
    for is_held, at in parts:
        if not is_held:
            V[np.ix_(at, at)] = np.linalg.inv(H[np.ix_(at, at)])
        own = V[np.ix_(at, at)]
        F += 0.5 * np.trace(H[np.ix_(at, at)] @ own)
        F -= Quadratic(at, np.linalg.inv(own), 0.0).evidence + 0.5 * len(at)
    V[rest, rest] = np.diag(exact.cov)[rest]
    mean[rest] -= across @ (mean[seen] - exact.mean[seen])
    return [*_moments(joint, posterior, mean, np.diag(V), np.isin(np.arange(joint.size), seen),
                      tol), *_free_energy(posterior, F, tol)]


def _moments(joint: LogJoint, posterior: Any, mean: np.ndarray, var: np.ndarray,
             trusted: np.ndarray, tol: float) -> list[str]:
    faults = []
    for name in posterior.sites:
        found, spread = (np.asarray(x, float) for x in (posterior.mean(name),
                                                        posterior.variance(name)))
        at = joint.at[name]
        if found.shape != at.shape:
            faults.append(f"{name}: shape {found.shape} for {at.shape}")
            continue
        known = at < 0
        if not np.allclose(found[known], joint.data[name][known], rtol=max(tol, 1e-12), atol=tol):
            faults.append(f"{name}: what is known came back as {found[known]}")
        if (spread[known] != 0).any():
            faults.append(f"{name}: what is known has a variance")
        here = at[~known]
        sd = np.sqrt(var[here])
        off = np.abs(found[~known] - mean[here]) / (sd + np.abs(mean[here]))
        wide = np.abs(spread[~known] / var[here] - 1)[trusted[here]]
        if not (off <= tol).all():
            faults.append(f"{name}: mean {found[~known]} for {mean[here]}")
        if not (wide <= tol).all():
            faults.append(f"{name}: variance {spread[~known]} for {var[here]}")
    return faults


def _free_energy(posterior: Any, F: float, tol: float) -> list[str]:
    found = float(posterior.free_energy[-1])
    fine = abs(found - F) <= max(tol, 1e-9) * max(1.0, abs(F))
    return [] if fine else [f"free energy {found} for {F}"]


def _compare_mean_field(joint: LogJoint, posterior: Any, blocks: list, active: dict, tol: float
                        ) -> list[str]:
    """The fixed point next to the beliefs that came back, and its free energy."""
    beliefs = []
    for b in blocks:
        members = [n for n in b.members if n in joint.at]       # as in `_compare_gaussian`
        at = np.concatenate([np.zeros(0, int), *(alive(joint, active, n) for n in members)])
        if not len(at):
            continue
        if b.kind in ("gamma", "wishart"):
            beliefs += _precisions(joint, posterior, b, active)
            continue
        mean, var = np.zeros(joint.size), np.ones(joint.size)
        for n in members:
            here = joint.at[n]
            free = here >= 0
            mean[here[free]] = np.asarray(posterior.mean(n))[free]
            var[here[free]] = np.asarray(posterior.variance(n))[free]
        beliefs.append(Belief("gaussian", at, mean[at], np.diag(var[at]), b.held))

    def f(points: np.ndarray) -> np.ndarray:
        return joint.total(points, active)

    start = list(beliefs)
    found, F = mean_field(f, joint.size, beliefs)
    faults = []
    mean, var = np.full(joint.size, np.nan), np.full(joint.size, np.nan)
    for q, old in zip(found, start):
        if q.family == "gaussian":
            mean[q.at], var[q.at] = q.mean, np.diag(q.spread)
            off = np.abs(old.mean - q.mean) / (np.sqrt(var[q.at]) + np.abs(q.mean))
            wide = np.abs(np.diag(old.spread) / var[q.at] - 1)
        else:
            off = np.abs(old.mean - q.mean) / np.abs(q.mean).max()
            wide = np.abs(old.spread - q.spread) / np.abs(q.spread).max()
        for what, gap in (("mean", off), ("spread", wide)):
            if not (gap <= 10 * tol).all():
                faults.append(f"{q.family} at {q.at}: {what} off by {gap.max():.2g}")
    return faults + _free_energy(posterior, F, tol)


def _precisions(joint: LogJoint, posterior: Any, block: Any, active: dict) -> list[Belief]:
    """The beliefs about Gammas (one a site) or Wisharts (one a matrix) that data reach."""
    name, found = block.name, posterior[block.name]
    at = joint.at[name]
    if block.kind == "gamma":
        keep = np.isin(at, alive(joint, active, name))
        a, b = (np.broadcast_to(np.asarray(x, float), at.shape)[keep]
                for x in (found.concentration, found.rate))
        return [Belief("gamma", at[keep], a / b, np.stack([a, b]), block.held)]
    d = at.shape[-1]
    dof = np.broadcast_to(np.asarray(found.concentration, float), at.shape[:-2])
    rate = dof[..., None, None] * np.linalg.inv(np.asarray(posterior.mean(name), float))
    return [Belief("wishart", at[i].ravel(), np.array([dof[i]]), rate[i].reshape(d, d), block.held)
            for i in np.ndindex(dof.shape) if active[name][i]]
