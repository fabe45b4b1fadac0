"""What engines run, and what they give: `Program`, `Run`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np


class Program(NamedTuple):
    """A model and the arguments it is run on."""

    model: Callable
    args: tuple
    kwargs: dict


@dataclass(frozen=True)
class Run:
    """What one engine gave.

    Attributes:
        draws: {site: (chains, draws, *site shape)}.
        cold, warm: seconds to the result, with and without tracing and compiling.
        steps: sweeps, gradient steps or (all chains together) leapfrog steps.
        times, bounds: seconds (warm) and free energy in nats after some of the steps.
        free_energy, error: -ELBO in nats and its Monte Carlo standard error (0: exact).
        divergences, rhat, ess: NUTS only; the worst element of any site.
        note: what to know; result: the engine's own (posterior, parameters or state).
    """

    name: str
    draws: dict[str, np.ndarray] = field(default_factory=dict, repr=False)
    cold: float = float("nan")
    warm: float = float("nan")
    steps: int = 0
    times: np.ndarray = field(default_factory=lambda: np.zeros(0), repr=False)
    bounds: np.ndarray = field(default_factory=lambda: np.zeros(0), repr=False)
    free_energy: float = float("nan")
    error: float = float("nan")
    divergences: int | None = None
    rhat: float | None = None
    ess: float | None = None
    note: str = ""
    result: Any = field(default=None, repr=False)

    def reach(self, bound: float) -> float:
        """Seconds (warm) until the free energy is at most `bound`; inf if it never was."""
        hit = np.flatnonzero(self.bounds <= bound)
        return float(self.times[hit[0]]) if len(hit) else float("inf")
