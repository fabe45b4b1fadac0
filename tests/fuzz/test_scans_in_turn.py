"""Random scans that begin where others ended: right or refused, never wrong."""

import pytest

from tests.fuzz.counting import Count

COUNT = Count("continued")
SEEDS = (3, 19)                 # 19: three scans, whose leaves of the carry were once one latent


@pytest.mark.parametrize("seed", SEEDS)
def test_a_program_is_right(seed):
    assert COUNT.judge(seed).kind == "right"


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, 200, 25))
def test_many_programs(first):
    many = Count("continued", 300)
    many.judge_all(range(first, first + 25), deep=lambda seed: seed % 10 == 0)
    print(many)
    assert not many.kinds["wrong"] and many.kinds["right"] >= 20, many
