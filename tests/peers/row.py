"""One program of a peer's, with its data and its judge."""

from __future__ import annotations

from typing import Any, NamedTuple

from .judges import Judge, Model, draws

EX, NB, DOCS, TEST = "NumPyro ex", "NumPyro nb", "NumPyro docs", "NumPyro test"
DYNAMAX, BAYESPY, RXINFER, STATS, JOPA = "dynamax", "BayesPy", "RxInfer", "statsmodels", "JOPA"


class Row(NamedTuple):
    """A program, and what judges its fit. The name is a need of `table.TABLE`, or one and, after a
    colon, in what way it is written otherwise."""

    name: str
    source: str
    model: Model
    args: tuple[Any, ...]
    judge: Judge = draws()
    options: dict[str, Any] = {}       # noqa: RUF012, of jp.VMP
    nuts: float = 0.0                  # how far means may lie from NUTS's, in its sds; 0: not run
