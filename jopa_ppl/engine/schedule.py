"""The ordered updates of a sweep, as data."""

from __future__ import annotations

from dataclasses import dataclass

from jopa_ppl.beliefs import Belief
from jopa_ppl.engine.energy import Energy
from jopa_ppl.graph.factor import Factor, Graph
from jopa_ppl.graph.tables import table


@dataclass(frozen=True)
class Update:
    """One step of a sweep: a block and the factors whose messages it takes in."""

    block: Belief
    factors: tuple[Factor, ...]


@dataclass(frozen=True)
class Schedule:
    """The updates of one sweep, in order: states first, then what is shared between them."""

    updates: tuple[Update, ...]
    held: tuple[Belief, ...]

    @property
    def exact(self) -> bool:
        """Whether one sweep is all there is to do: one block, no approximate message."""
        return len(self.updates) <= 1 and all(
            not f.bends(u.block) for u in self.updates for f in u.factors)

    @staticmethod
    def of(graph: Graph, energy: Energy) -> Schedule:
        """Every block that may move, once: chains, local Gaussians, globals, precisions."""
        return Schedule(tuple(Update(b, tuple(energy.touching(b))) for b in graph.blocks
                              if not b.held), tuple(b for b in graph.blocks if b.held))

    def __str__(self) -> str:
        rows = [(str(i + 1), u.block.name, u.block.label,
                 ", ".join(f.name for f in u.factors)) for i, u in enumerate(self.updates)]
        text = table(("", "update", "belief", "takes messages from"), rows)
        if self.held:
            text += "\nheld: " + ", ".join(b.name for b in self.held)
        return text
