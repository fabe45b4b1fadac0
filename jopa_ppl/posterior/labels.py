"""Names of the axes of sites: time, state, action, plates; for tables and pictures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jopa_ppl.errors import ShapeError, SiteError, names
from jopa_ppl.graph.factor import Graph
from jopa_ppl.program.carry import Reader
from jopa_ppl.program.program import Program, Scan, Site
from jopa_ppl.program.refs import Ref


def program_and_reader(source: Any) -> tuple[Program, Reader]:
    """The program behind a posterior, a compiled program, a graph or itself, and its reader."""
    found = graph_of(source)
    return (found, Reader(found)) if isinstance(found, Program) else (found.program, found.reader)


def graph_of(source: Any) -> Graph | Any:
    """The graph of a posterior or a compiled program; anything else is returned as it is."""
    for step in ("compiled", "graph"):
        source = getattr(source, step, source)
    return source


def roles(source: Any) -> dict[str, str]:
    """Which sites are states and which are actions, {site: "state" | "action"}.

    A *state* is a site of a scan that a later step depends on, or an outer latent that only the
    first carry is made of. An *action* is another site of the scan that a state depends on within
    its own step.
    """
    program, reader = program_and_reader(source)
    found: dict[str, str] = {}
    for scan in program.scans:
        seeds = {n: at for n, at in reader.forms[scan.index].seeds if n not in program.borders}
        states = {*seeds, *(r.site for r in seeds.values())}
        if program.jaxpr is None:       # a stored posterior: what it has beliefs about
            kept = source.compiled.graph.variables
            actions = {n for n in scan.sites if n in kept} - states
        else:
            states |= reader.heads(scan) - {*program.borders}
            seen = {n: _seen(program, reader, n, scan) for n in scan.sites}
            states |= {r.site for refs in seen.values() for r in refs if r.back}
            actions = {r.site for s in states for r in seen.get(s, ()) if r.back == 0}
        found |= dict.fromkeys(actions - states, "action") | dict.fromkeys(states, "state")
    return found


def _seen(program: Program, reader: Reader, name: str, scan: Scan) -> set[Ref]:
    """The sites that the parameters of a site of a scan depend on."""
    data = ("value", "present", "weight")
    outputs = [i for k, i in program.sites[name].outputs.items() if k not in data]
    return {r for segment in reader.segments(scan) for d in reader.dependence(outputs, segment)
            for r in d.names if r.is_site}


def time_axis(program: Program, site: Site) -> str:
    """The name of a site's axis of time: scans of one length share it."""
    spans = list(dict.fromkeys(_span(s) for scan in program.scans
                               for s in map(program.sites.get, scan.sites) if s.is_series))
    same = len({s.length for s in program.scans}) == 1 and len({at for _, at in spans}) == 1
    return "time" if same else f"time_{spans.index(_span(site))}"


def _span(site: Site) -> tuple[int, int]:
    """Its scan, and the first step of it that it stands in."""
    return site.scan, site.first


def site_axes(source: Any, ranks: Mapping[str, int] | None = None) -> dict[str, list[str]]:
    """The names of all axes of every site, {site: [name, ..]}.

    `ranks` tells how many axes a site has where the program does not say: what an encoder sees.

    "time" in front inside a scan, a plate's name for a plate, "state" and "action" for vectors of
    these `roles` (where all of a role have one size), "<site>_dim_<i>" for everything else.
    """
    program, _ = program_and_reader(source)
    role = {n: r for n, r in roles(source).items()
            if len(program.sites[n].event_shape) == 1 and r not in program.sites}
    sizes = {r: {program.sites[n].event_shape for n in role if role[n] == r} for r in role.values()}
    axes = {}
    for name, site in program.sites.items():
        lead = [] if not site.is_series else [time_axis(program, site)]
        rank = len(site.batch_shape) + len(site.shown_event)
        if site.amortized and ranks and name in ranks:
            rank = ranks[name] - len(lead)
        own = [f"{name}_dim_{i}" for i in range(rank)]
        for plate in site.plates:
            own[plate.axis] = plate.name
        if name in role and len(sizes[role[name]]) == 1:
            own[-1] = role[name]
        axes[name] = lead + own
    return axes


def renamed(axes: Mapping[str, list[str]], dims: Mapping[str, Sequence[str]] | None
            ) -> dict[str, list[str]]:
    """`axes` with the user's names in place of the default ones.

    Raises:
        ShapeError: `dims` does not name every axis of a site; SiteError: it names no site.
    """
    found = dict(axes)
    for name, own in (dims or {}).items():
        if name not in axes:
            raise SiteError("unknown site in dims=", site=name, found=f"'{name}'",
                            expected=f"one of {names(axes)}", fix="check the spelling")
        if len(own) != len(axes[name]):
            raise ShapeError("dims= does not fit the site", site=name, found=tuple(own),
                             expected=f"{len(axes[name])} names", fix="name every axis, time first")
        found[name] = list(own)
    return found


def step_coords(program: Program, axes: Mapping[str, Iterable[str]]) -> dict[str, np.ndarray]:
    """0, 1, .. along every scan's axis, under the name it has in `axes`."""
    found = {}
    for scan in program.scans:
        for site in (s for s in map(program.sites.get, scan.sites) if s.is_series):
            found[next(iter(axes[site.name]))] = site.first + np.arange(program.length_of(site))
    return found


def elementwise(name: str, *arrays: Any) -> list[tuple[str, ...]]:
    """A row for every element of a site, its label and its number in each of some arrays."""
    return [(name + (f"[{','.join(map(str, index))}]" if index else ""),
             *(f"{float(a[index]):.4g}" for a in arrays)) for index in np.ndindex(arrays[0].shape)]


def in_columns(rows: Sequence[tuple[str, ...]]) -> str:
    """Labels to the left, numbers to the right, the first row their header."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(c.ljust(w) if i == 0 else c.rjust(w)
                               for i, (c, w) in enumerate(zip(row, widths))) for row in rows)
