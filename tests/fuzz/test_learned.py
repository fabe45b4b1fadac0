"""Random programs with unknown precisions and products: right or refused, never wrong."""

import pytest

from tests.fuzz.counting import Count

COUNT = Count("learned")


@pytest.mark.parametrize("seed", range(20))
def test_a_program_is_right_or_refused(seed):
    COUNT.judge(seed, deep=seed < 3)


def test_most_are_answered():
    COUNT.judge_all(range(20))
    assert COUNT.kinds["right"] >= 17, COUNT


@pytest.mark.slow
@pytest.mark.parametrize("first", range(20, 680, 33))
def test_many_programs(first):
    many = Count("learned")
    many.judge_all(range(first, first + 33), deep=lambda seed: seed % 10 == 0)
    print(many)
    assert not many.kinds["wrong"] and many.kinds["right"] >= 25, many
