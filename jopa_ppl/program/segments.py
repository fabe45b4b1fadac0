"""The steps of a scan that one factor speaks of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Segment:
    """The steps that one factor speaks of, an axis of its numbers; outside of scans there is none.

    Attributes:
        scan: its index, None outside of scans. start, length: which of its steps.
        order: how many steps it takes until a step sees no more of the first carry.
        early: whether they still see it: where the first carry is not simply made of latents, each
            of the first `order` steps is a segment of its own. All others are one.
    """

    scan: int | None = None
    start: int = 0
    length: int = 1
    order: int = 0
    early: bool = False

    @property
    def depth(self) -> int:
        """How many earlier steps are looked back to."""
        return 0 if self.scan is None else (self.start if self.early else self.order)

    @property
    def steps(self) -> slice:
        """Where its steps lie in a series of the whole scan."""
        return slice(self.start, self.start + self.length)

    def earlier(self, back: int) -> slice:
        """Where the steps lie that are `back` before its own."""
        return slice(self.start - back, self.start - back + self.length)

    @property
    def label(self) -> str:
        return "" if self.scan is None else (f"[{self.start}]" if self.early else "[t]")

    @property
    def record(self) -> list:
        """What files hold of it: its scan, the step of an early one, the order, the first step."""
        return [self.scan, self.start if self.early else None, self.order, self.start]

    @staticmethod
    def read(record: Sequence[int | None], lengths: Mapping[int, int]) -> Segment:
        """The segment of a `record`, from the lengths of all scans."""
        scan, at, order, start = record
        if scan is None:
            return Segment()
        early = at is not None
        return Segment(scan, start, 1 if early else lengths[scan] - start, order, early)


def in_segments(scan: int, length: int, order: int, seeded: bool) -> list[Segment]:
    """The segments of a scan: its first steps, then all others, alike; those alone if `seeded`.

    Args:
        scan: its index; length: its steps.
        order: how many steps it takes until one sees no more of the first carry.
        seeded: whether the first carry is simply made of latents.
    """
    early = 0 if seeded else min(order, length)
    found = [Segment(scan, t, 1, order, True) for t in range(early)]
    return found + [Segment(scan, early, length - early, order)] * (length > early)
