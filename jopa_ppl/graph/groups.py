"""Names that belong together."""

from __future__ import annotations


class Groups:
    """Union-find over names that keeps the order of first appearance."""

    def __init__(self, items: list[str]) -> None:
        self.parent = {i: i for i in items}

    def find(self, item: str) -> str:
        while self.parent[item] != item:
            item = self.parent[item]
        return item

    def union(self, a: str, b: str) -> None:
        first, second = self.find(a), self.find(b)
        order = list(self.parent)
        if order.index(second) < order.index(first):
            first, second = second, first
        self.parent[second] = first

    def groups(self) -> list[tuple[str, ...]]:
        found: dict[str, list[str]] = {}
        for item in self.parent:
            found.setdefault(self.find(item), []).append(item)
        return [tuple(g) for g in found.values()]
