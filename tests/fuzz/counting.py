"""How many programs of a family are right, refused or wrong, or told to have lost digits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

from tests.caches import forget
from tests.fuzz.families import single, written
from tests.fuzz.judge import Verdict, judge


class Count:
    """Verdicts on the programs of a family, each judged once."""

    def __init__(self, family: str) -> None:
        self.family = family
        self.verdicts: dict[int, Verdict] = {}

    def judge(self, seed: int, deep: bool = False) -> Verdict:
        """The verdict on a seed.

        Raises:
            AssertionError: it is wrong, or told to have lost digits, for which no program of the
                grammar has cause; tells the program.
        """
        if seed not in self.verdicts:
            program = written(self.family, seed)
            self.verdicts[seed] = found = judge(program, single(seed), deep)
            assert found.kind in ("right", "refused"), (
                f"{found.kind}\n{program}\n\n{found.text}")
            if len(self.verdicts) % 20 == 0:           # a process holds so many programs
                forget()
        return self.verdicts[seed]

    def judge_all(self, seeds: Iterable[int], deep: Callable[[int], bool] = lambda seed: False
                  ) -> None:
        for seed in seeds:
            self.judge(seed, deep(seed))

    @property
    def kinds(self) -> Counter[str]:
        return Counter(v.kind for v in self.verdicts.values())

    def __str__(self) -> str:
        kinds = self.kinds
        return f"{self.family}: " + ", ".join(
            f"{kinds[kind]} {kind}" for kind in ("right", "refused", "wrong", "warned", "eaten"))
