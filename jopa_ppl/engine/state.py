"""Beliefs between two sweeps, and what is kept beside them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from jax import Array

from jopa_ppl.engine.extrapolation import Ahead, Pace
from jopa_ppl.engine.rounding import ENERGY, EPS, POLISHED, ROUND, SILENT, Digits
from jopa_ppl.linalg.bfgs import Bfgs


class State(NamedTuple):
    """Beliefs after some sweeps. `bad` is -1, or the position of the update that went wrong.

    `digits`: what rounding works on, by update; `moved`: of a program that one pass solves, the
    error that is left in its means, in spreads; `pace`: how fast sweeps converge, and `ahead`:
    where the next one starts from, once they are slow (`extrapolation`), and `bfgs`, what is known
    of how they turn states (`rotation`); `cancelled`: as `Arithmetic.cancelled` has it.
    """

    moments: dict[str, Any]
    free_energy: Array
    sweep: Array
    bad: Array
    converged: Array
    digits: Digits | None = None
    moved: Array | float = 0.0
    pace: Pace | None = None
    ahead: Ahead | None = None
    bfgs: Bfgs | None = None
    cancelled: tuple[Array | float, Array | float] = (0.0, 0.0)

    @property
    def told(self) -> State:
        """What the host looks at: all but what is large."""
        return self._replace(moments=None, pace=None, ahead=None, bfgs=None)

    @property
    def lost(self) -> tuple[float, float]:
        """The estimated errors of a run on the host: of its beliefs, in spreads, and of F, in
        nats."""
        found, moved = self.digits, float(self.moved)
        error = max(EPS * found.tied.max(initial=0.0), ROUND * found.far.max(initial=0.0))
        nats = max(EPS * float(np.sqrt(np.square(found.total).sum())), self.left_of_size)
        error = max(float(error), moved if moved > POLISHED else 0.0)
        return max(error, self.left_of_sums[0]), max(nats, self.left_of_sums[1])

    @property
    def left_of_sums(self) -> tuple[float, float]:
        """`lost`, by the terms alone that cancel in P r and r' P r."""
        pull, size = map(float, self.cancelled)
        return ROUND * pull * float(self.digits.tied.max(initial=0.0))**0.5, ROUND * size

    @property
    def left_of_size(self) -> float:
        """The error of F in nats that is due to its size alone."""
        return EPS * abs(float(self.free_energy))

    @property
    def serves(self) -> bool:
        """Whether a run on the host came to numbers that rounding has left whole."""
        error, nats = self.lost
        return int(self.bad) < 0 and error <= SILENT and nats <= ENERGY
