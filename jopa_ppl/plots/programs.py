"""The factor graph and the schedule of a compiled program, as pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jopa_ppl.colours import COLOURS
from jopa_ppl.graph.drawing import draw
from jopa_ppl.graph.tables import terms
from jopa_ppl.plots.style import axes_of
from jopa_ppl.posterior.labels import graph_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from jopa_ppl.beliefs import Belief


def graph(source: Any, *, ax: Axes | None = None) -> Axes:
    """The factor graph: sites in round boxes, factors as squares beside the site they are about.

    Grey sites are data; other colours are blocks, named in the legend with their belief. A frame
    is a scan: one step is drawn, with the earlier values it sees ("x[t-1]") dashed. A dotted link
    goes from a first state to the earlier value that it stands for.

    Args:
        source: `jp.compile(..)`, its `.graph`, or a posterior.
    """
    return draw(graph_of(source), ax)


def schedule(source: Any, *, ax: Axes | None = None) -> Axes:
    """One sweep: a row an update, from top to bottom, a dot where it takes a factor's message.

    Beliefs that are held send messages and take none; they are listed below the updates.

    Args:
        source: `jp.compile(..)`, its `.schedule`, or a posterior.
    """
    found = getattr(source, "compiled", source)
    found = getattr(found, "schedule", found)
    factors = {f.name: f for u in found.updates for f in u.factors}
    column = {name: x for x, name in enumerate(factors)}
    rows = [_row(u.block, f"{i + 1}  ") for i, u in enumerate(found.updates)]
    rows += [_row(b, "held  ") for b in found.held]
    ax = axes_of(ax, (0.9 * len(factors) + 3.2, 0.42 * len(rows) + 1.6))
    for y, update in enumerate(found.updates):
        own = [column[f.name] for f in update.factors]
        colour = COLOURS[y % len(COLOURS)]
        ax.plot([min(own), max(own)], [y, y], color=colour, lw=1.5, alpha=0.5)
        ax.plot(own, [y] * len(own), "o", color=colour, ms=9)
    ax.set_yticks(range(len(rows)), rows)
    ax.set_xticks(range(len(factors)), [_message(f) for f in factors.values()], rotation=40,
                  ha="right", rotation_mode="anchor")
    ax.set(xlim=(-0.6, len(factors) - 0.4), ylim=(len(rows) - 0.5, -0.5))
    ax.set_xlabel("takes messages from")
    ax.set_title("one sweep, from top to bottom", fontsize=10, loc="left")
    ax.tick_params(length=0)
    ax.grid(color="0.92", lw=0.8)
    ax.set_axisbelow(True)
    ax.spines[:].set_visible(False)
    return ax


def _row(block: Belief, number: str) -> str:
    return f"{number}{', '.join(block.members)}  ({block.label.split(' (')[0]})"


def _message(factor: Any) -> str:
    """"p(x | A x[t-1] + B u)", as far as it is readable."""
    parts = [t for t in (terms(factor), ", ".join(factor.noise)) if t not in ("data", "")]
    return f"p({factor.name} | {', '.join(parts)})" if parts else f"p({factor.name})"
