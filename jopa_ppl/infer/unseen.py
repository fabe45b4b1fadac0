"""Whether a goal is like anything that has been seen: by its distance from the nearest of it."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jopa_ppl.errors import DataError, DataWarning, ShapeError

MOST = 2000         # observations that are compared, evenly chosen
FAR = 2.0           # of the largest distance between an observation and the one nearest to it


class Seen(NamedTuple):
    """Observations (N, ..) as rows, and how far one is from the one nearest to it at most, by the
    root mean square of its elements."""

    rows: NDArray
    shape: tuple[int, ...]
    apart: float

    @staticmethod
    def of(observations: Any) -> Seen:
        """What has been seen, (N, ..); observations with a gap (NaN) are left out.

        Raises:
            DataError: fewer than two are whole.
        """
        found = np.asarray(observations, float)
        rows = found.reshape(len(found), -1)
        rows = rows[np.isfinite(rows).all(1)]
        if len(rows) < 2:
            raise DataError("seen= is what a goal is compared with", found=f"{len(rows)} whole",
                            expected="two observations or more", fix="pass frames (N, ..)")
        rows = rows[np.linspace(0, len(rows) - 1, min(len(rows), MOST)).astype(int)]
        return Seen(rows, found.shape[1:], _apart(rows))

    def compare(self, goals: NDArray) -> None:
        """Warn of goals (n, ..) that are far from all of it; of gaps (NaN) nothing is asked.

        Raises:
            ShapeError: they are of another shape.
        """
        if goals.shape[1:] != self.shape:
            raise ShapeError("the goal does not fit what has been seen", found=goals.shape[1:],
                             expected=self.shape, fix="agent.goal(an observation)")
        for goal in goals.reshape(len(goals), -1):
            told = np.isfinite(goal)
            if not told.any():
                continue
            far = _distances(goal[None, told], self.rows[:, told]).min()
            apart = self.apart if told.all() else _apart(self.rows[:, told])
            if far > FAR * apart:
                warnings.warn(
                    f"the goal is unlike anything that has been seen: {far:.3g} from the nearest "
                    f"of it (root mean square of its elements), where what has been seen is "
                    f"{apart:.3g} apart at most; plans towards it go by what networks and dynamics "
                    "make of it there", DataWarning, stacklevel=4)
                return


def _apart(rows: NDArray) -> float:
    """How far a row is from the one nearest to it, at most."""
    gaps = _distances(rows, rows)
    np.fill_diagonal(gaps, np.inf)
    return float(gaps.min(1).max())


def _distances(a: NDArray, b: NDArray) -> NDArray:
    """Root mean squares of the differences of all rows, (len(a), len(b))."""
    centre = b.mean(0)              # squares of large numbers have no digits left for differences
    a, b = a - centre, b - centre
    square = (a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T
    return np.sqrt(np.maximum(square, 0.0) / a.shape[1])
