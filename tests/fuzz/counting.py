"""How many programs of a family are right, refused or wrong, or told to have lost digits."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable, Iterable
from typing import NoReturn

import pytest

from tests.caches import forget
from tests.fuzz.families import single, written
from tests.fuzz.grammar import Program
from tests.fuzz.judge import Verdict, judge


class _Late(BaseException):
    """Time is up; no Exception, which `judge` would take for a fault of the library."""


def in_time(program: Program, single: bool, deep: bool, seconds: int) -> Verdict:
    """The verdict; "unjudged" after so many seconds: a few truths are sums over grids so large, and
    fixed points so slow, that one of them would take as long as all others."""
    def stop(*_: object) -> NoReturn:
        raise _Late

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        return judge(program, single, deep)
    except _Late:
        return Verdict("unjudged", f"after {seconds} s")
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


class Count:
    """Verdicts on the programs of a family, each judged once; in so many seconds, if any."""

    def __init__(self, family: str, seconds: int | None = None) -> None:
        self.family, self.seconds = family, seconds
        self.verdicts: dict[int, Verdict] = {}

    def judge(self, seed: int, deep: bool = False) -> Verdict:
        """The verdict on a seed.

        Raises:
            AssertionError: it is wrong, or told to have lost digits, for which no program of the
                grammar has cause; tells the program.
        """
        if seed not in self.verdicts:
            program = written(self.family, seed)
            found = (in_time(program, single(seed), deep, self.seconds) if self.seconds
                     else judge(program, single(seed), deep))
            self.verdicts[seed] = found
            assert found.kind in ("right", "refused", "unjudged"), (
                f"{found.kind}\n{program}\n\n{found.text}")
            if len(self.verdicts) % 20 == 0:           # a process holds so many programs
                forget()
        return self.verdicts[seed]

    def judge_all(self, seeds: Iterable[int], deep: Callable[[int], bool] = lambda seed: False
                  ) -> None:
        for seed in seeds:
            self.judge(seed, deep(seed))

    def skip_if_unjudged(self) -> None:
        """Tell of seeds without a verdict: the test says nothing of them."""
        late = [seed for seed, v in self.verdicts.items() if v.kind == "unjudged"]
        if late:
            pytest.skip(f"{self.family}, seeds {late} are unjudged: their truth takes more than "
                        f"{self.seconds} s; {self}")

    @property
    def kinds(self) -> Counter[str]:
        return Counter(v.kind for v in self.verdicts.values())

    def __str__(self) -> str:
        kinds = self.kinds
        return f"{self.family}: " + ", ".join(
            f"{kinds[kind]} {kind}" for kind in ("right", "refused", "wrong", "warned", "eaten")
        ) + (f", {kinds['unjudged']} unjudged" if kinds["unjudged"] else "")
