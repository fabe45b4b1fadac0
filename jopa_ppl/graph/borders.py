"""Gaussian globals that join a chain: they meet its states additively, so that one belief about
both is exact (a level beside a regression). They become a part of the state that does not move.
"""

from __future__ import annotations

from math import prod

from jopa_ppl.graph.blocks import Groups, meetings
from jopa_ppl.graph.factor import Factor
from jopa_ppl.program.carry import Reader
from jopa_ppl.program.program import Program

MOST = 12            # numbers that join by themselves: a step costs the cube of its state


def borders(program: Program, reader: Reader, factors: tuple[Factor, ...],
            override: tuple[tuple[str, ...], ...] | None) -> dict[int, tuple[str, ...]]:
    """By scan, the latents outside of it that join its chain: those that blocks= puts there, or
    without it those that meet its states additively and multiply none of them.

    Args:
        program: the traced one; reader: of its scans; factors: all of them.
        override: blocks=, or None.

    Returns:
        {index of the scan: latents}, without scans that none joins.
    """
    found: dict[int, tuple[str, ...]] = {}
    for scan in program.scans:
        chain = {n for n in scan.sites if _gaussian(program, n)}
        heads, taken = reader.heads(scan), {n for x in found.values() for n in x}
        outer = [n for n, s in program.sites.items()
                 if s.scan is None and _gaussian(program, n) and n not in heads | taken]
        if override is None:
            joined = _additive(program, reader, factors, chain, heads, outer)
            joined -= _read_by_others(program, factors, scan.index)
        else:
            joined = {n for g in override if chain & {*g} for n in g if n in outer}
        if joined:
            found[scan.index] = tuple(n for n in outer if n in joined)
    return found


def with_carries(program: Program, blocks: tuple[tuple[str, ...], ...]
                 ) -> tuple[tuple[str, ...], ...]:
    """blocks= with the leaves of carries, which their author has no names for, in the first block
    that holds a site of their scan."""
    left = {n: s.scan for n, s in program.sites.items() if s.role == "carry"}
    found = []
    for group in blocks:
        scans = {program.sites[n].scan for n in group if n in program.sites} - {None}
        more = [n for n, scan in left.items() if scan in scans and n not in group]
        left = {n: scan for n, scan in left.items() if n not in more}
        found.append((*group, *more))
    return tuple(found)


def _gaussian(program: Program, name: str) -> bool:
    site = program.sites[name]
    return (bool(site.rules.belief and site.rules.location) and site.transform is None
            and (not site.observed or site.partial))


def _additive(program: Program, reader: Reader, factors: tuple[Factor, ...], chain: set[str],
              heads: set[str], outer: list[str]) -> set[str]:
    """Those of `outer` that meet the states of a chain additively, with all that they meet."""
    joined: set[str] = set()
    added, multiplied = meetings(factors)
    pairs = {(a.site, b.site) for x in (added, multiplied) for a, b in x}
    groups = Groups(outer)
    for a, b in pairs:
        if a in groups.parent and b in groups.parent:
            groups.union(a, b)
    loose = {r.site for f in factors for r in f.touched if f.message != "exact" or f.fixed}
    firm = {r.site for f in factors for r in f.touched if f.site.rules.certain}
    times = {frozenset((a.site, b.site)) for a, b in multiplied}
    seen = {frozenset((a.site, b.site)) for a, b in added}
    plates = {_plates(program, reader, n) for n in chain}
    whole = {*chain, *heads}
    for group in groups.groups():
        meets = any(frozenset((g, x)) in seen for g in group for x in chain)
        products = any(p & {*group} and p <= whole | {*group} for p in times)
        alike = (plates == {_plates(program, reader, n) for n in group}
                 and len({program.sites[n].held for n in (*group, *chain)}) == 1)
        size = sum(prod(program.sites[n].shape) for n in group)
        few = size <= MOST or firm & {*group}           # what follows has no other way
        if meets and alike and not products and not loose & {*group} and few:
            joined |= {*group}
    return joined


def _read_by_others(program: Program, factors: tuple[Factor, ...], scan: int) -> set[str]:
    """Latents that steps of other scans read: they are no part of one state."""
    return {r.site for f in factors for r in f.touched if f.segment.scan not in (None, scan)}


def _plates(program: Program, reader: Reader, name: str) -> tuple[str, ...]:
    return tuple(p.name for p in program.sites[name].axes if (name, p.name) not in reader.dense)
