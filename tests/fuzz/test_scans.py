"""Random scans of one to three chains, against the truth: right or refused, never wrong."""

import pytest

from tests.fuzz.counting import Count

COUNT = Count("scan")
OPEN = {1: "NumPyro's scan cannot batch a masked MultivariateNormal: the log density of the "
           "program, which the deep check compares with, is not to be had"}


@pytest.mark.parametrize("seed", [pytest.param(n, marks=pytest.mark.xfail(
    n in OPEN, reason=OPEN.get(n, ""), strict=False)) for n in range(20)])
def test_a_program_is_right_or_refused(seed):
    COUNT.judge(seed, deep=seed < 3)


def test_most_are_answered():
    COUNT.judge_all(range(20))
    assert COUNT.kinds["right"] >= 17, COUNT


@pytest.mark.slow
@pytest.mark.parametrize("first", range(20, 680, 33))
def test_many_programs(first):
    many = Count("scan")
    many.judge_all(range(first, first + 33), deep=lambda seed: seed % 10 == 0)
    print(many)
    assert not many.kinds["wrong"] and many.kinds["right"] >= 25, many
