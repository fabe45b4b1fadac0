"""Graphs and schedules as text."""

from __future__ import annotations

from collections.abc import Sequence

from jopa_ppl.graph.factor import Factor, Graph

MESSAGES = {"exact": "exact", "amortised": "amortised (encoder's Gaussian)",
            "linearise": "linearised at the mean (slope and curvature of log p; F is Laplace's, "
                         "no bound)",
            "cubature": "cubature (expected slope and curvature of log p)",
            "quadrature": "quadrature (expected slope and curvature of log p)"}
# Of a Gaussian whose mean is not affine.
CURVED = {"linearise": "linearised at the mean (Gauss-Newton; F is Laplace's, no bound)",
          "cubature": "cubature over the latents that its mean is not affine in",
          "quadrature": "quadrature over the latents that its mean is not affine in"}


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Left-aligned columns under a header."""
    rows = [tuple(header), *(tuple(r) for r in rows)]
    widths = [max(len(str(r[i])) for r in rows) for i in range(len(header))]
    lines = ["  ".join(str(c).ljust(w) for c, w in zip(r, widths)).rstrip() for r in rows]
    lines.insert(1, "  ".join("-" * w for w in widths))
    return "\n".join(lines)


def _scope(graph: Graph, name: str) -> str:
    site = graph.program.sites[name]
    parts = [] if site.scan is None else [f"time {graph.program.length_of(site)}"]
    return " x ".join(parts + [f"{p.name} {p.size}" for p in site.plates]) or "-"


def _shape(shape: Sequence[int]) -> str:
    return "(" + ", ".join(map(str, shape)) + ")"


def graph_table(graph: Graph) -> str:
    """Variables, then factors."""
    rows = []
    for name, v in graph.variables.items():
        block = graph.block_of(name)
        rows.append((name, v.family, _shape(v.site.shape), _scope(graph, name), block.name,
                     block.label + (", held" if block.held else "")))
    variables = table(("variable", "family", "shape", "over", "block", "belief"), rows)
    factors = table(
        ("factor", "family", "of", "depends on", "precision"),
        [(f.name, f.family, "data" if f.site.observed else f.site.name, terms(f),
          ", ".join([*f.noise, *map(str, f.spread)])
          or ("known" if f.message == "exact" else f.message))
         for f in graph.factors if f.stands])
    text = f"{variables}\n\n{factors}"
    if graph.predicted:
        text += "\n\npredicted afterwards (nothing observed depends on them): " + ", ".join(
            graph.predicted)
    return text


def terms(factor: Factor) -> str:
    """The residual's products of latents and data, readable."""
    own = factor.value
    inside = [" ".join(str(n) for n in p) for p in factor.products if p != (own,)]
    shown = {n for p in factor.products for n in p}
    return " + ".join(inside + [str(n) for n in factor.observed if n not in shown]) or "data"
