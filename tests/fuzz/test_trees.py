"""Random trees of Gaussians in plates, against the truth: right or refused, never wrong."""

import pytest

from tests.fuzz.counting import Count

COUNT = Count("tree")


@pytest.mark.parametrize("seed", [*range(20), 256])     # it crashed
def test_a_program_is_right_or_refused(seed):
    COUNT.judge(seed, deep=seed < 1)


def test_most_are_answered():
    COUNT.judge_all(range(20))
    assert COUNT.kinds["right"] >= 17, COUNT


@pytest.mark.slow
@pytest.mark.parametrize("first", range(20, 680, 33))
def test_many_programs(first):
    many = Count("tree")
    many.judge_all(range(first, first + 33), deep=lambda seed: seed % 10 == 0)
    print(many)
    assert not many.kinds["wrong"] and many.kinds["right"] >= 25, many
