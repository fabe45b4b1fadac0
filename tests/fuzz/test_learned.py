"""Random programs with unknown precisions and products: right or refused, never wrong."""

import pytest

from tests.fuzz.counting import Count

COUNT = Count("learned")
SECONDS = 300      # for a program: the truth of seeds 320 and 438 takes nearly for ever
LONG = (1, 6)      # their truth takes minutes: hundreds of sweeps of the oracle
SEEDS = [*(n for n in range(22) if n not in LONG), 571]     # 571 crashed once


@pytest.mark.slow
@pytest.mark.parametrize("seed", LONG)
def test_a_program_whose_truth_takes_long(seed):
    one = Count("learned", SECONDS)
    one.judge(seed)
    one.skip_if_unjudged()


@pytest.mark.parametrize("seed", SEEDS)
def test_a_program_is_right_or_refused(seed):
    COUNT.judge(seed, deep=seed < 1)


def test_most_are_answered():
    COUNT.judge_all(SEEDS)
    assert COUNT.kinds["right"] >= 17, COUNT


@pytest.mark.slow
@pytest.mark.parametrize("first", range(20, 680, 33))
def test_many_programs(first):
    many = Count("learned", SECONDS)
    many.judge_all(range(first, first + 33), deep=lambda seed: seed % 10 == 0)
    print(many)
    assert not many.kinds["wrong"] and many.kinds["right"] >= 25, many
    many.skip_if_unjudged()
