"""Is a learned model fit to plan with? `validate` measures what plans rest on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from jax import Array

from jopa_ppl.errors import DataError, JopaError, ShapeError, SiteError, names, whole
from jopa_ppl.graph.tables import table
from jopa_ppl.infer.vmp import VMP
from jopa_ppl.language.given import given
from jopa_ppl.language.keys import as_key
from jopa_ppl.posterior.posterior import Posterior
from jopa_ppl.settings import under_ours
from jopa_ppl.tools.controllability import reachability
from jopa_ppl.tools.hindcast import Hindcast, last_seen

Bounds = tuple[float, float]

THRESHOLDS: dict[str, float | Bounds] = {
    "reconstruction": 0.5, "one_step": 1.0, "k_step": 1.0, "coverage_50": (0.35, 0.65),
    "coverage_90": (0.8, 1.0)}


class Check(NamedTuple):
    """One line of a report: passed where low <= value <= high."""

    name: str
    value: float
    threshold: Bounds
    passed: bool
    why: str


@dataclass(frozen=True)
class Report:
    """What `jp.validate` found; prints as a table. Immutable.

    Attributes:
        checks: in the order of the table; `report["one_step"]` is one of them.
        horizon: k of the k-step prediction.
        errors: (horizon, 2) rms errors 1, .., k steps ahead: of the model, of persistence.
    """

    checks: tuple[Check, ...]
    horizon: int
    errors: np.ndarray

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(c.passed for c in self.checks)

    def __getitem__(self, name: str) -> Check:
        found = {c.name: c for c in self.checks}
        if name not in found:
            raise SiteError("the report has no such check", found=f"'{name}'",
                            expected=f"one of {names(found)}", fix="check the spelling")
        return found[name]

    def __str__(self) -> str:
        rows = [(c.name, f"{c.value:.4g}", _shown(c.threshold), "pass" if c.passed else "FAIL",
                 c.why) for c in self.checks]
        failed = [c.name for c in self.checks if not c.passed]
        end = f"not fit to plan with: {', '.join(failed)}" if failed else "fit to plan with"
        return f"{table(('check', 'value', 'wanted', '', 'why'), rows)}\n\n{end}"


@under_ours
def validate(model: Callable, posterior: Posterior, *args: Any, site: str = "y",
             horizon: int = 10, origins: int = 10, dynamics: tuple[str, str] | None = ("A", "B"),
             thresholds: Mapping[str, float | Bounds | None] | None = None,
             num_samples: int = 100, rng_key: Array | int | None = None,
             engine: Callable[[Callable], Any] | None = None, **kwargs: Any) -> Report:
    """Is this model fit to plan with? Smooth and predict a series with what was learned, and see.

    The beliefs about global sites are held. From several steps t on, the observed series y is
    hidden and predicted from what came before (actions that are data stay known), k = 1 .. horizon
    steps ahead; draws of the predictions give their mean m and their intervals. On average over t
    and over the elements of y that ever change:

        reconstruction   |m - y|^2 with nothing hidden, over that of y's own mean      <= 0.5
        one_step         |m - y|^2 of the first step, over persistence's               <= 1
        k_step           the same at the last step of the horizon                      <= 1
        coverage_50      share of y within the central 50 % interval             0.35 to 0.65
        coverage_90      share of y within the central 90 % interval               0.8 to 1
        rank             directions of the state that actions move            all d of them
        reachability     least singular value of [B, AB, .., A^(d-1) B]       > its own noise

    Persistence repeats the last value seen. Rank and reachability: `tools.controllability`.
    Data that the model was not learned from make the stronger test. Pixels with one noise for all
    of them cover a still background too well: allow images more, coverage_50=(0.35, 0.95).

    Args:
        model: the program, its actions conditioned: jp.condition(program, {"u": actions}).
        posterior: what was learned, or loaded. args, kwargs: the model's; the series of `site`,
            (T, ...) with NaN where missing, must be one of them as it is.
        site: the observed site, inside a scan.
        horizon: k, in steps. origins: how many t, evenly spaced over the last 3/4 of the series.
        dynamics: sites of A (d, k d), for a carry of the last k states, the oldest first, and of
            B (d, du); None for a program that has none.
        thresholds: by check: a bound (the largest error, or least rank and singular value), a pair
            (low, high), or None to leave the check out.
        num_samples: draws a prediction; the time grows with origins * num_samples * T.
        engine: what runs a program, default jp.VMP: partial(jp.VMP, damping=0.5), for instance.

    Raises:
        ShapeError: the series is too short for the horizon. DataError: the series of `site` is
            not among the arguments. SiteError: a name is not a site, or not a check.
    """
    whole("jp.validate", horizon=horizon, origins=origins, num_samples=num_samples)
    wanted = _bounds(thresholds or {})
    held = given(model, posterior) if posterior.global_sites else model
    key = as_key(rng_key)
    predict = Hindcast(held, args, kwargs, site=site, engine=engine or partial(VMP, progress=False),
                       num_samples=num_samples, rng_key=key)
    T, seen = len(predict.values), predict.values
    first = max(1, T // 4)
    if T - horizon < first:
        raise ShapeError("the series is too short for the horizon", site=site,
                         found=f"{T} steps, horizon={horizon}",
                         expected=f"1 <= horizon <= {T - first}",
                         fix="pass a longer series or a shorter horizon")
    starts = np.unique(np.linspace(first, T - horizon, origins).astype(int))
    changes = np.fmax.reduce(seen) > np.fmin.reduce(seen)
    if not changes.any():
        raise DataError("the series never changes", site=site, found="one value at every step",
                        expected="a series with something to predict", fix="check the data")

    smoothed = predict(T, 0, T, mean=True)[..., changes]
    truth = np.stack([seen[t:t + horizon] for t in starts])[..., changes]
    draws = np.stack([predict(t, t, horizon) for t in starts], 1)[..., changes]
    last = np.stack([last_seen(seen[:t]) for t in starts])[:, None][..., changes]
    seen = seen[..., changes]

    checks = []
    errors = np.stack([_mse(draws.mean(0), truth, (0, 2)), _mse(last, truth, (0, 2))], -1)
    total = _mse(smoothed, seen), _mse(np.nanmean(seen, 0), seen)
    checks.append(_ratio("reconstruction", *total, "the mean"))
    checks.append(_ratio("one_step", *errors[0], "persistence"))
    checks.append(_ratio("k_step", *errors[-1], "persistence", f"{horizon} steps ahead: "))
    checks += [_coverage(draws, truth, share) for share in (50, 90)]
    if dynamics is not None and len(dynamics) != 2:
        raise JopaError("dynamics= is a pair of sites, or None", found=dynamics,
                        expected="the names of A and B", fix="pass ('A', 'B')")
    if dynamics is not None:
        found = reachability(posterior, *dynamics, rng_key=key)
        wanted = {"rank": (found.wanted, np.inf), "reachability": (found.noise, np.inf)} | wanted
        checks += [("rank", found.rank, (f"actions reach {found.rank} of {found.wanted} directions",
                                         f"not moved by them: {found.unreached}")),
                   ("reachability", found.smallest, (
                       f"in the hardest direction, noise {found.noise:.3g}", "hardly moved"))]
    done = tuple(_judge(n, v, wanted[n], why) for n, v, why in checks if wanted[n] is not None)
    return Report(done, horizon, np.sqrt(errors))


def _mse(predicted: np.ndarray, truth: np.ndarray, axis: Any = None) -> np.ndarray:
    return np.nanmean((predicted - truth) ** 2, axis)


def _ratio(name: str, error: float, other: float, whose: str, ahead: str = "") -> tuple:
    value = error / other if other > 0 else np.inf
    why = f"{ahead}rms error {np.sqrt(error):.3g}, {whose}'s {np.sqrt(other):.3g}"
    return name, float(value), (why, "not good enough")


def _coverage(draws: np.ndarray, truth: np.ndarray, share: int) -> tuple:
    low, high = np.percentile(draws, [50 - share / 2, 50 + share / 2], axis=0)
    inside = float(((low <= truth) & (truth <= high))[~np.isnan(truth)].mean())
    kind = "too narrow" if inside < share / 100 else "too wide"
    why = f"{inside:.0%} of what came lies in the {share} % intervals"
    return f"coverage_{share}", inside, (why, f"they are {kind}")


def _bounds(thresholds: Mapping[str, float | Bounds | None]) -> dict[str, Bounds | None]:
    lower = ("rank", "reachability")
    for name in thresholds:
        if name not in THRESHOLDS and name not in lower:
            raise SiteError("there is no such check", found=f"thresholds={{'{name}': ...}}",
                            expected=f"one of {names([*THRESHOLDS, *lower])}",
                            fix="check the spelling")

    def pair(name: str, bound: float | Sequence[float] | None) -> Bounds | None:
        if bound is None:
            return None
        numbers = np.asarray(bound)
        if numbers.shape == (2,) and numbers.dtype.kind in "if":
            return float(bound[0]), float(bound[1])
        if name.startswith("coverage") or numbers.shape != () or numbers.dtype.kind not in "if":
            wanted = THRESHOLDS.get(name, 1.0)
            raise JopaError(f"the threshold of {name} is out of place", found=repr(bound),
                            expected="a pair (low, high)" if isinstance(wanted, tuple)
                            else "a number, or a pair (low, high)", fix=f"pass {wanted}")
        return (float(bound), np.inf) if name in lower else (-np.inf, float(bound))

    return {name: pair(name, bound) for name, bound in {**THRESHOLDS, **thresholds}.items()}


def _judge(name: str, value: float, threshold: Bounds, why: tuple[str, str]) -> Check:
    low, high = threshold
    passed = bool(low <= value <= high)
    return Check(name, value, threshold, passed, why[0] if passed else f"{why[0]}: {why[1]}")


def _shown(threshold: Bounds) -> str:
    low, high = threshold
    if np.isinf(low):
        return f"<= {high:.3g}"
    return f">= {low:.3g}" if np.isinf(high) else f"{low:.3g} to {high:.3g}"
