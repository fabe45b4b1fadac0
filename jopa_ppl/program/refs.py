"""What a parameter is made of: a `Ref` names a value as a step of the program reads it."""

from __future__ import annotations

from typing import NamedTuple


class Ref(NamedTuple):
    """A value that the proof keeps apart.

    Attributes:
        site: in the role "site" the name of the site, as "input" (data that differ from
            step to step: a slice of an input, a leaf of the carry that is data) its key among the
            program's inputs; else what tells it from others of its kind.
        back: how many steps ago it was, 0 in the step itself; None outside of scans.
        role: "site", "input", "carry" (a leaf of a carry that is not yet followed) or "scan" (what
            a scan returned).
    """

    site: str
    back: int | None = None
    role: str = "site"

    @property
    def is_site(self) -> bool:
        return self.role == "site"

    @property
    def is_input(self) -> bool:
        return self.role == "input"

    @property
    def is_carry(self) -> bool:
        return self.role == "carry"

    @property
    def is_scan(self) -> bool:
        return self.role == "scan"

    def _order(self) -> tuple[str, str, int]:
        return self.role, self.site, -1 if self.back is None else self.back

    def __lt__(self, other: Ref) -> bool:
        return self._order() < other._order()

    def __str__(self) -> str:
        """"A", "x[t]", "x[t-1]"."""
        return self.site if self.back is None else (
            f"{self.site}[t{f'-{self.back}' if self.back else ''}]")
