"""Graphs and schedules as tables and pictures."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jopa_ppl.errors import JopaError
from jopa_ppl.graph.build import prove
from jopa_ppl.graph.factor_graph import Factor, Graph
from jopa_ppl.graph.program import Site
from jopa_ppl.graph.unroll import base_name, lag

if TYPE_CHECKING:
    from jopa_ppl.inference.schedule import Schedule

KINDS = {"chain": "chain (block-tridiagonal Gaussian)", "dense": "joint Gaussian",
         "elimination": "joint Gaussian (Funsor)", "gamma": "Gamma", "wishart": "Wishart"}

MESSAGES = {"exact": "exact", "amortised": "amortised (encoder's Gaussian)",
            "linearise": "linearised at the mean (slope and curvature of log p)",
            "cubature": "cubature (expected slope and curvature of log p)"}


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Left-aligned columns under a header."""
    rows = [tuple(header), *(tuple(r) for r in rows)]
    widths = [max(len(str(r[i])) for r in rows) for i in range(len(header))]
    lines = ["  ".join(str(c).ljust(w) for c, w in zip(r, widths)).rstrip() for r in rows]
    lines.insert(1, "  ".join("-" * w for w in widths))
    return "\n".join(lines)


def pretty(instance: str) -> str:
    """"x@-1" -> "x[t-1]"."""
    back = lag(instance)
    return instance if back is None else (
        f"{base_name(instance)}[t{f'-{back}' if back else ''}]")


def _scope(graph: Graph, name: str) -> str:
    site = graph.program.sites[name]
    parts = [] if site.scan is None else [f"time {graph.program.scans[site.scan].length}"]
    return " x ".join(parts + [f"{p.name} {p.size}" for p in site.plates]) or "-"


def _shape(shape: Sequence[int]) -> str:
    return "(" + ", ".join(map(str, shape)) + ")"


def graph_table(graph: Graph) -> str:
    """Variables, then factors."""
    rows = []
    for name, v in graph.variables.items():
        block = graph.block_of(name)
        rows.append((name, v.family, _shape(v.site.shape), _scope(graph, name), block.name,
                     KINDS[block.kind] + (", held" if block.held else "")))
    variables = table(("variable", "family", "shape", "over", "block", "belief"), rows)
    factors = table(
        ("factor", "family", "of", "depends on", "precision"),
        [(f.name, f.family, "data" if f.site.observed else f.site.name, terms(f),
          ", ".join(f.noise) or ("known" if f.message == "exact" else f.message))
         for f in graph.factors])
    text = f"{variables}\n\n{factors}"
    if graph.predicted:
        text += "\n\npredicted afterwards (nothing observed depends on them): " + ", ".join(
            graph.predicted)
    return text


def terms(factor: Factor) -> str:
    """The residual's products of latents and data, readable."""
    own = factor.value
    inside = [" ".join(pretty(n) for n in p) for p in factor.products if p != (own,)]
    shown = {n for p in factor.products for n in p}
    return " + ".join(inside + [pretty(n) for n in factor.observed if n not in shown]) or "data"


def schedule_table(schedule: Schedule) -> str:
    """The updates of one sweep, in order."""
    rows = [(str(i + 1), u.block.name, KINDS[u.block.kind],
             ", ".join(f.name for f in u.factors)) for i, u in enumerate(schedule.updates)]
    text = table(("", "update", "belief", "takes messages from"), rows)
    if schedule.held:
        text += "\nheld: " + ", ".join(b.name for b in schedule.held)
    return text


SITES = ("site", "family", "role", "block", "message")


def explain_table(model: Any, args: tuple, kwargs: dict) -> str:
    """One line a site; where a program does not compile, with the reason at every faulty site."""
    from jopa_ppl.inference.vmp import VMP
    vmp = model if isinstance(model, VMP) else VMP(model)
    try:
        graph = vmp.compile(*args, **kwargs).graph
    except JopaError as error:
        return _faulty_table(vmp, args, kwargs, error)
    rows = []
    for name, site in graph.program.sites.items():
        if name in graph.predicted:
            rows.append((name, site.family, "predicted", "-", UNSEEN))
            continue
        block = graph.block_of(name).name if name in graph.variables else "-"
        rows.append((name, site.family, _role(site), block, _message(site, graph.factors)))
    return table(SITES, rows)


def _faulty_table(vmp: Any, args: tuple, kwargs: dict, error: JopaError) -> str:
    """What is known of a program that ended in `error`: its sites where it can be traced."""
    from jopa_ppl.inference.signature import split_call, traced
    head = f"{getattr(vmp.model, '__name__', 'the model')} does not compile:"
    try:
        program = traced(split_call(vmp.model, args, kwargs)).program
        proof = prove(program, dict(vmp.options[-1]))
    except JopaError:
        return f"{head}\n{error}"
    rows = []
    for name, site in program.sites.items():
        fault = proof.faults.get(name)
        if name in proof.predicted:
            role, message = "predicted", UNSEEN
        elif fault is None:
            role, message = _role(site), _message(site, proof.factors)
        else:
            role, message = _role(site), f"none: {fault.what}; {fault.found}"
        rows.append((name, site.family, role, "-", message))
    return "\n\n".join([head, table(SITES, rows), *map(str, proof.faults.values() or [error])])


UNSEEN = "none: nothing observed depends on it"


def _role(site: Site) -> str:
    if site.partial:
        return "data where given"
    return "data" if site.observed else "held" if site.held else "latent"


def _message(site: Site, factors: Sequence[Factor]) -> str:
    """What a site sends to its latents; inside a scan, at all but the first steps."""
    factor = next(f for f in factors[::-1] if f.site.name == site.name)
    message = MESSAGES[factor.message]
    if not (factor.latents or factor.noise):
        known = site.observed and not site.partial
        return "none: it depends on no latent" if known else "exact, its prior"
    if factor.reason:
        return f"{message}; not exact because of {factor.reason}"
    if factor.message == "exact" and site.family in ("normal", "mvn"):
        return f"{message}, on {terms(factor)}" + ", last step" * (site.outside == "last")
    return message


def _edges(graph: Graph) -> list[tuple[str, str]]:
    edges: dict[tuple[str, str], None] = {}
    for f in graph.factors:
        names = [base_name(n) for n in (*f.latents, *f.noise)]
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
        lines.append(f'subgraph "cluster_{block.name}" {{ label="{KINDS[block.kind]}"; '
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

    from jopa_ppl import plots
    figure = plots.graph(graph).figure
    figure.savefig(target, format="svg", bbox_inches="tight")
    pyplot.close(figure)
    return str(target)
