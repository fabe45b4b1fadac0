"""The factor graph as a picture: by graphviz, or by Matplotlib."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jopa_ppl.colours import COLOURS
from jopa_ppl.graph.factor import Graph
from jopa_ppl.program.refs import Ref

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Node = str | Ref                        # a site, or what it was some steps before
DATA, WIDE, TALL = "0.86", 2.0, 1.25    # grey of what is known; distances between nodes


class Layout(NamedTuple):
    """Where nodes stand: {node: (x, y)}, links (parent, site), boxes of scans; `starts` links a
    first state to the earlier self it begins."""

    at: dict[Node, tuple[float, float]]
    links: list[tuple[Node, str]]
    boxes: dict[int, tuple[float, float, float, float]]
    starts: list[tuple[str, Ref]]


def draw(found: Graph, ax: Axes | None = None) -> Axes:
    """A graph on the given axes, or on new ones: see `jopa_ppl.plots.graph`."""
    layout = _layout(found)
    xs, ys = (np.array(v) for v in zip(*layout.at.values()))
    size = (0.62 * (np.ptp(xs) + 2.6), 0.62 * (np.ptp(ys) + 2.6) + 0.28 * len(found.blocks))
    if ax is None:
        from matplotlib import pyplot
        ax = pyplot.subplots(figsize=(max(size[0], 4.2), size[1]), layout="constrained")[1]
    for scan, (left, low, right, high) in layout.boxes.items():
        _box(ax, left, low, right, high, f"t = 0 .. {found.program.scans[scan].length - 1}")
    for parent, site in layout.links:
        ax.plot(*zip(layout.at[parent], _square(found, layout, site)), color="0.6", lw=1, zorder=1)
    for head, earlier in layout.starts:
        ax.plot(*zip(layout.at[head], layout.at[earlier]), color="0.6", lw=1.2, ls=":", zorder=1)
    for name in dict.fromkeys(f.site.name for f in found.factors):
        square = _square(found, layout, name)
        ax.plot(*zip(square, layout.at[name]), color="0.6", lw=1, zorder=1)
        ax.plot(*square, "s", color="0.25", ms=6, zorder=2)
    colour = {b.name: COLOURS[i % len(COLOURS)] for i, b in enumerate(found.blocks)}
    for name, place in layout.at.items():
        _node(ax, found, name, place, colour)
    handles = [_patch(colour[b.name], f"{', '.join(b.members)}: {b.label}"
                      + (", held" if b.held else "")) for b in found.blocks]
    if any(s.observed for s in found.program.sites.values()):
        handles.append(_patch(DATA, "data", alpha=1))
    ax.legend(handles=handles, fontsize=8, frameon=False, loc="upper center",
              bbox_to_anchor=(0.5, -0.01), handlelength=1.2)
    ax.set(xlim=(xs.min() - 1.5, xs.max() + 1.1), ylim=(ys.min() - 1.1, ys.max() + 1.1))
    ax.axis("off")
    return ax


def _layout(found: Graph) -> Layout:
    program = found.program
    links: dict[tuple[Node, Node], None] = {}
    for f in found.factors:
        for r in (*f.touched, *f.observed, *map(Ref, f.noise)):
            node = r if r.back else r.site
            if node != f.site.name:
                links[(node, f.site.name)] = None
    alive = [n for n in program.sites if n not in found.predicted]
    parents = {n: {a for a, b in links if b == n} for n in alive}
    at: dict[Node, tuple[float, float]] = {}
    boxes, left = {}, 0.0
    for scan in program.scans:
        inside = [n for n in alive if n in scan.sites]
        earlier = sorted({a for a, b in links if b in inside and isinstance(a, Ref)},
                         key=lambda r: (-r.back, r.site))
        depth: dict[Node, int] = dict.fromkeys(earlier, 0)
        for n in inside:            # program order: parents within the step come first
            depth[n] = max((depth[p] + 1 for p in parents[n] if p in depth), default=0)
        columns = [[n for n in depth if depth[n] == c] for c in range(max(depth.values()) + 1)]
        tallest = max(map(len, columns))
        for c, column in enumerate(columns):
            for r, n in enumerate(column):
                at[n] = (left + WIDE * c, -TALL * (r + 0.5 * (tallest - len(column))))
        right = left + WIDE * (len(columns) - 1)
        boxes[scan.index] = (left - 1.15, -TALL * (tallest - 1) - 0.85, right + 0.85, 0.75)
        left = right + 3.2
    outer = [n for n in alive if program.sites[n].scan is None]
    level: dict[str, int] = {}
    for n in outer:
        level[n] = max((level[p] + 1 for p in parents[n] if p in level), default=0)
    width = max((b[2] for b in boxes.values()), default=0.0)
    starts = [(head, early) for head, early in found.reader.seeds if early in at and head in level]
    below = {n: [at[b][0] for a, b in (*links, *starts) if a == n and b in at] for n in outer}
    deepest = max(level.values(), default=0)
    for depth_ in range(deepest + 1):
        row = sorted((n for n in outer if level[n] == depth_),
                     key=lambda n: np.mean(below[n]) if below[n] else 0)
        # Rows are shifted so that no link from above runs down a column of squares.
        centre = width / 2 + (0.35 if boxes else 0) + 0.8 * (depth_ % 2 if boxes else 0)
        spread = 1.6 * (len(row) - 1)
        for i, n in enumerate(row):
            at[n] = (centre - spread / 2 + 1.6 * i, 2.1 + 1.7 * (deepest - depth_))
    return Layout(at, list(links), boxes, starts)


def _square(found: Graph, layout: Layout, site: str) -> tuple[float, float]:
    x, y = layout.at[site]
    return (x - 0.75, y) if found.program.sites[site].scan is not None else (x, y + 0.62)


def _node(ax: Axes, found: Graph, node: Node, place: tuple[float, float], colour: dict[str, str]
          ) -> None:
    early = isinstance(node, Ref)
    site = found.program.sites[node.site if early else node]
    known = site.observed and not site.partial
    block = None if known else found.block_of(site.name)
    paint = DATA if block is None else _pale(colour[block.name])
    label = str(node if early else site.ref())
    ax.annotate(label, place, ha="center", va="center", fontsize=9, zorder=3, bbox={
        "boxstyle": "round,pad=0.42,rounding_size=0.9", "fc": paint,
        "ec": "0.35" if block is None else colour[block.name], "lw": 1.2,
        "ls": "--" if early else "-"})
    plates = ", ".join(f"{p.name} {p.size}" for p in site.plates)
    if plates and not early:
        ax.annotate(plates, (place[0], place[1] - 0.42), ha="center", va="top", fontsize=7,
                    color="0.4", zorder=3, bbox={"fc": "white", "ec": "none", "pad": 0.5})


def _box(ax: Axes, left: float, low: float, right: float, high: float, label: str) -> None:
    from matplotlib.patches import FancyBboxPatch
    ax.add_patch(FancyBboxPatch((left, low), right - left, high - low, fc="none", ec="0.6", lw=1,
                                boxstyle="round,pad=0,rounding_size=0.15", zorder=0))
    ax.annotate(label, (right - 0.08, low + 0.08), ha="right", va="bottom", fontsize=8, color="0.4")


def _pale(colour: str) -> tuple[float, ...]:
    from matplotlib.colors import to_rgb
    return tuple(0.3 * c + 0.7 for c in to_rgb(colour))


def _patch(colour: str, label: str, alpha: float = 0.6) -> Any:
    from matplotlib.patches import Patch
    return Patch(color=colour, alpha=alpha, label=label)


def _edges(graph: Graph) -> list[tuple[str, str]]:
    edges: dict[tuple[str, str], None] = {}
    for f in graph.factors:
        names = [*(r.site for r in f.touched), *f.noise]
        if f.site.observed and not f.site.partial:
            names.append(f"{f.site.name}\n(data)")
        for name in names:
            edges[(name, f.site.name + " factor")] = None
    return list(edges)


def dot(graph: Graph) -> str:
    """The graph in graphviz's language: variables round, data grey, factors square."""
    lines = ["graph {", "rankdir=LR; node [fontname=Helvetica, fontsize=11];"]
    for block in graph.blocks:
        inside = " ".join(f'"{n}";' for n in block.members)
        lines.append(f'subgraph "cluster_{block.name}" {{ label="{block.label}"; '
                     f'style=dashed; color="#999999"; fontsize=9; fontname=Helvetica; {inside} }}')
    for a, b in _edges(graph):
        if "(data)" in a:
            lines.append(f'"{a}" [style=filled, fillcolor="#dddddd"];')
        lines.append(f'"{b}" [shape=square, label="", width=0.15, style=filled, '
                     f'fillcolor="#333333", xlabel="{b.removesuffix(" factor")}"];')
        lines.append(f'"{a}" -- "{b}";')
    return "\n".join([*lines, "}"])


def render(graph: Graph, path: str) -> str:
    """Write an SVG of the graph: by graphviz where its `dot` is installed, else by Matplotlib."""
    target = Path(path).with_suffix(".svg")
    target.parent.mkdir(parents=True, exist_ok=True)
    if shutil.which("dot"):
        subprocess.run(["dot", "-Tsvg", "-o", str(target)], input=dot(graph), text=True, check=True)
        return str(target)
    from matplotlib import pyplot
    figure = draw(graph).figure
    figure.savefig(target, format="svg", bbox_inches="tight")
    pyplot.close(figure)
    return str(target)
