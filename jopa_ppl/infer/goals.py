"""What an agent is to see: one observation, one for each step of a plan, or one for each copy."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from jopa_ppl.errors import DataError, ShapeError


class Goal(NamedTuple):
    """values: of one observation, (..), or of every step of a plan, (horizon, ..); with `each` of
    every copy, (copies, ..)."""

    values: NDArray
    each: bool

    @staticmethod
    def of(values: NDArray, each: bool) -> Goal:
        """The same, looked at.

        Raises:
            DataError: it says nothing, or is infinite.
        """
        if not np.isfinite(values).any():
            raise DataError("a goal that says nothing", found="NaN alone",
                            expected="an observation", fix="pass what is to be seen")
        if np.isinf(values).any():
            raise DataError("a goal is infinite", found="inf", expected="finite numbers, NaN where "
                            "anything will do", fix="pass what is to be seen")
        return Goal(values, each)

    def course(self, horizon: int, frame: NDArray, copies: int | None) -> NDArray:
        """What is to be seen at every step, (horizon, *frame's shape).

        Raises:
            ShapeError: it fits neither one frame nor `horizon` of them.
        """
        one = frame.shape if copies is None else frame.shape[1:]
        fits = (frame.shape,) if self.each else (one, (horizon, *one))
        if self.values.shape not in fits:
            ways = f"{one}, or {horizon} of them" + ("" if copies is None
                                                     else ", or one for each copy with each=True")
            raise ShapeError("the goal does not fit what is seen", found=self.values.shape,
                             expected=frame.shape if self.each else ways,
                             fix="agent.goal(an observation of the environment)")
        values = self.values
        if copies is not None and not self.each and values.ndim == frame.ndim:
            values = values[:, None]                        # of every step, the same for all copies
        return np.broadcast_to(values, (horizon, *frame.shape)).astype(frame.dtype)
