"""What other systems ship, as programs: fitted, and judged by what knows nothing of the fit."""

from __future__ import annotations

import gc
import itertools
import warnings
from collections.abc import Iterator
from typing import Any

import jax
import pytest

import jopa_ppl as jp
from jopa_ppl.errors import JopaError
from tests.caches import forget

from .__main__ import KINDS, standing
from .judges import nuts
from .open import WHY
from .quick import QUICK
from .row import Row
from .rows import EVERY, OPEN, ROWS, UNTRIED
from .table import TABLE

TESTS = itertools.count(1)


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


@pytest.fixture(autouse=True)
def few_compiled() -> Iterator[None]:
    """A process that keeps hundreds of compiled programs runs out of memory maps."""
    yield
    if next(TESTS) % 20 == 0:
        forget()
        gc.collect()


def fit(row: Row) -> jp.Posterior:
    """Run to where beliefs have settled; one that does not converge is for the judge to say."""
    options: dict[str, Any] = {"tol": 1e-8, "max_iters": 1000, **row.options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", jp.ConvergenceWarning)
        return jp.VMP(row.model, progress=False, **options).run(*row.args)


def cases(rows: tuple[Row, ...]) -> list[Any]:
    return [pytest.param(r, id=r.name, marks=() if r.name in QUICK else pytest.mark.slow)
            for r in rows]


@pytest.mark.parametrize("row", cases(ROWS + UNTRIED))
def test_a_program_of_a_peer_is_right(row: Row) -> None:
    row.judge(fit(row), row.model, row.args)


@pytest.mark.slow
@pytest.mark.parametrize("row", [pytest.param(r, id=r.name) for r in ROWS if r.nuts])
def test_means_are_those_of_nuts(row: Row) -> None:
    said = nuts(fit(row), row.model, row.args, row.nuts)
    print(row.name, *(f"{n}: {off:.2f} sds off, spread {ratio:.2f};"
                      for n, (off, ratio) in said.items()))


@pytest.mark.slow
@pytest.mark.parametrize("row", [pytest.param(r, id=r.name) for r in OPEN])
def test_an_open_program_is_still_open(row: Row) -> None:
    """Refused, short of its judge, or a crash: one that is no longer belongs to ROWS."""
    with pytest.raises((JopaError, AssertionError, TypeError)):
        row.judge(fit(row), row.model, row.args)


def test_names_are_unique_and_the_table_is_whole() -> None:
    """Every reason is of a row; every model of the table is once there, and says how it stands."""
    names = [r.name for r in EVERY]
    assert set(names) >= QUICK and 3 * len(QUICK) >= len(ROWS)
    assert len(names) == len(set(names)) and set(WHY) <= set(names)
    peers = [(p.source, p.name) for p in TABLE]
    assert len(peers) == len(set(peers)) == 145
    assert {standing(p)[0] for p in TABLE} <= set(KINDS)
