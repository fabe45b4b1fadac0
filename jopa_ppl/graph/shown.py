"""A factor graph that can be printed and drawn."""

from __future__ import annotations

from dataclasses import dataclass

from jopa_ppl.graph import drawing, tables
from jopa_ppl.graph.factor import Graph


@dataclass(frozen=True)
class ShownGraph(Graph):
    """A graph whose text is a table of its variables and factors."""

    def __str__(self) -> str:
        return tables.graph_table(self)

    def render(self, path: str) -> str:
        """Draw the graph as SVG: with graphviz where installed, else with Matplotlib."""
        return drawing.render(self, path)
