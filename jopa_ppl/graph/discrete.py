"""Discrete latents: factors with a copy for each of their values, and which have one joint belief,
those that meet in a factor, where it is small."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from math import prod

from jopa_ppl.beliefs import Belief, DiscreteChainBelief, TableBelief, Variable
from jopa_ppl.beliefs.discrete import LARGEST
from jopa_ppl.errors import StructureError, names
from jopa_ppl.graph.factor import Factor
from jopa_ppl.graph.groups import Groups
from jopa_ppl.graph.links import no_recursion
from jopa_ppl.program.carry import Reader
from jopa_ppl.program.program import Program
from jopa_ppl.program.refs import Ref


def discrete_blocks(program: Program, reader: Reader, variables: Mapping[str, Variable],
                    factors: tuple[Factor, ...], sizes: Mapping[str, int], apart: set[str]
                    ) -> list[Belief]:
    """Chains of the discrete sites of scans, and tables of those outside.

    Args:
        program: the traced one; reader: of its scans.
        variables: all latents by name; factors: all of the program; sizes: of plates.
        apart: those that join no other by themselves, as blocks= names them.

    Returns:
        no belief about latents that stand alone outside of scans.
    """
    discrete = [n for n, v in variables.items() if v.site.rules.discrete]
    chains = _chains(program, reader, variables, discrete, factors, sizes, apart)
    inside = {n for b in chains for n in b.members}
    rest = [n for n in discrete if n not in inside and n not in apart]
    return chains + [
        TableBelief({n: variables[n] for n in group}, sizes=sizes,
                    held=variables[group[0]].site.held)
        for group in _tables(rest, variables, factors)]


def _chains(program: Program, reader: Reader, variables: Mapping[str, Variable],
            discrete: list[str], factors: tuple[Factor, ...], sizes: Mapping[str, int],
            apart: set[str]) -> list[Belief]:
    """One chain of the sites of a scan that meet, with what their first carries are, and with
    latents outside that a step sees."""
    scan_of = {n: program.sites[n].scan for n in discrete}
    seeds = {n: r for n, r in reader.seeds if n in scan_of and r.site in scan_of}
    groups = Groups(discrete)

    def lags(members: list[str]) -> dict[str, int]:
        """By site of a step, how many values before its own a state holds."""
        back = {n: 0 for n in members if scan_of[n] is not None}
        for f in factors:
            for n, steps in steps_back([seeds.get(r.site, r) for r, _ in f.fixed
                                        if r.site in members]).items():
                back[n] = max(back[n], steps - 1)
        return back

    def one_chain(members: list[str]) -> bool:
        scans = {scan_of[n] for n in members} - {None}
        count = {n: len(variables[n].site.values) for n in members if n not in seeds}
        back = lags(members)
        states = prod(k**(1 + back.get(n, 0)) for n, k in count.items())
        alike = {(variables[n].plates, variables[n].site.held) for n in members}
        return len(scans) == 1 and len(alike) == 1 and states**2 <= LARGEST

    for seed, ref in seeds.items():
        groups.union(seed, ref.site)
    for f in factors:
        met = [r.site for r, _ in f.fixed if r.site not in apart]
        if f.segment.scan is None or not met:
            continue
        for other in met[1:]:
            roofs = {groups.find(met[0]), groups.find(other)}
            if one_chain([n for n in discrete if groups.find(n) in roofs]):
                groups.union(met[0], other)
    found = []
    for group in groups.groups():
        steps = [n for n in group if scan_of[n] is not None]
        if not steps:
            continue
        own = variables[steps[0]]
        found.append(DiscreteChainBelief(
            {n: variables[n] for n in group}, over=scan_of[steps[0]],
            length=program.scans[scan_of[steps[0]]].length, lags=lags(list(group)),
            seeds={n: seeds[n] for n in group if n in seeds}, sizes=sizes,
            plates=own.plates, held=own.site.held))
    return found


def _tables(discrete: list[str], variables: Mapping[str, Variable], factors: tuple[Factor, ...]
            ) -> list[tuple[str, ...]]:
    """Those that one table holds: all in the same plates, or some in a part of those of the
    others."""
    groups = Groups(discrete)

    def one_table(members: list[str]) -> bool:
        plates = sorted({variables[n].plates for n in members}, key=len)
        nested = len(plates) == 1 or (len(plates) == 2 and set(plates[0]) < set(plates[1]))
        size = prod(len(variables[n].site.values) for n in members)
        return nested and size <= LARGEST and len({variables[n].site.held for n in members}) == 1

    for f in factors:
        met = [r.site for r, _ in f.fixed if r.site in discrete]
        for other in met[1:]:
            roofs = {groups.find(met[0]), groups.find(other)}
            if one_table([n for n in discrete if groups.find(n) in roofs]):
                groups.union(met[0], other)
    return [g for g in groups.groups() if len(g) > 1]


def steps_back(refs: Sequence[Ref]) -> dict[str, int]:
    """By discrete site of a step, how far the latest of `refs` and its earliest are apart."""
    inside = [r for r in refs if r.back is not None]
    latest = min((r.back for r in inside), default=0)
    found: dict[str, int] = {}
    for r in inside:
        found[r.site] = max(found.get(r.site, 0), r.back - latest)
    return found


def by_value(reader: Reader, factor: Factor) -> Factor:
    """A factor with a copy for every combination of the values of the discrete latents that it
    touches."""
    site, sites = factor.site, reader.program.sites
    outputs = (*site.parameters, *(site.likelihood.leaves if site.likelihood else ()))
    refs = {r for d in reader.dependence(outputs, factor.segment) for r in d.names
            if is_discrete(reader.program, r)}
    if is_discrete(reader.program, site.ref()):
        refs.add(site.ref())
    refs = sorted(refs)
    if not refs:
        return factor
    sizes = [range(len(sites[r.site].values)) for r in refs]
    if (count := prod(map(len, sizes))) > LARGEST:
        raise StructureError(
            f"it is made of {len(refs)} discrete latents at once", site=site.name,
            found=f"{count} joint values of {names(sorted({r.site for r in refs}))}",
            expected=f"at most {LARGEST}, as every one of them is summed over",
            fix="let each observed site see fewer of them, make some of them data with "
            "jp.condition, or run NUTS on the same program with these enumerated")
    if site.rules.certain:
        raise no_recursion(site, f"{names(sorted({r.site for r in refs}))}, which takes one of a "
                            "few values")
    own = {p.name for p in factor.plates}
    mixed = {(r.site, p.name) for r in refs for p in sites[r.site].axes if p.name not in own}
    mixed |= {(n, p) for d in reader.dependence(outputs, factor.segment) for n, p in d.lost
              if n in refs}
    if mixed:
        name, plate = sorted((str(n), p) for n, p in mixed)[0]
        raise StructureError(f"its elements see several elements of '{name}'", site=site.name,
                             found=f"the axis '{plate}' of '{name}', which the site has not, or "
                             "mixes", expected="one element of a discrete latent for each of its "
                             "own", fix=f"put '{name}' and '{site.name}' into one numpyro.plate; "
                             "where one element sees several, let each be a site of its own: "
                             f"[jp.latent(f'{name}{{k}}', ..) for k in range(K)], K at most 12")
    for name, steps in steps_back(refs).items():
        if len(sites[name].values)**(2 * steps) > LARGEST:
            raise StructureError(f"it looks back {steps} steps at a discrete latent",
                                 site=site.name, found=names(map(str, refs)),
                                 expected=f"at most {LARGEST} joint values of two states",
                                 fix="carry a summary of the earlier values")
    return replace(factor, fixed=tuple((r, 0) for r in refs), copies=tuple(product(*sizes)))


def is_discrete(program: Program, ref: Ref) -> bool:
    """Whether it is a latent that takes one of a few values."""
    site = program.sites[ref.site] if ref.is_site else None
    return site is not None and site.rules.discrete and not site.observed
