"""Random scans of one to three chains, against the truth: right or refused, never wrong."""

import re

import pytest

from tests.fuzz.counting import Count
from tests.fuzz.families import written

COUNT = Count("scan")
FULL = (22, 29, 59)           # of full size, with what small ones lack: three chains, order three
SLOW = (13, 18, 19)           # small, and slow to compile
SEEDS = [*(n for n in range(20) if n not in SLOW), *FULL, 84]       # 84 was wrong once


@pytest.mark.parametrize("seed", SEEDS)
def test_a_program_is_right_or_refused(seed):
    COUNT.judge(seed, deep=seed < 1)


def test_most_are_answered():
    COUNT.judge_all(SEEDS)
    assert COUNT.kinds["right"] >= 18, COUNT


def test_some_have_three_chains_and_some_are_of_order_three():
    """A carry lists the lags of its chains: ((x1_1, x1_2,), (x2_1,),) = carry."""
    lags = [re.findall(r"(x\d+)_(\d+)", re.search(r"\((.*)\) = carry", written("scan", n).text)[1])
            for n in FULL]
    assert {len(dict(found)) for found in lags} >= {1, 3}
    assert {max(int(lag) for _, lag in found) for found in lags} == {3}


@pytest.mark.slow
@pytest.mark.parametrize("seed", SLOW)
def test_a_program_that_compiles_slowly(seed):
    Count("scan").judge(seed)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(20, 680, 33))
def test_many_programs(first):
    many = Count("scan")
    many.judge_all(range(first, first + 33), deep=lambda seed: seed % 10 == 0)
    print(many)
    assert not many.kinds["wrong"] and many.kinds["right"] >= 25, many
