"""Split the latents of a graph into blocks that each have one joint belief."""

from __future__ import annotations

from collections.abc import Mapping

from jopa_ppl.beliefs import (
    KINDS,
    Belief,
    ChainBelief,
    DenseBelief,
    MatrixBelief,
    RecursionBelief,
    TreeBelief,
    Variable,
)
from jopa_ppl.beliefs.base import block_name
from jopa_ppl.errors import SiteError, StructureError, names
from jopa_ppl.graph.discrete import discrete_blocks
from jopa_ppl.graph.factor import Factor
from jopa_ppl.graph.groups import Groups
from jopa_ppl.graph.matrices import met_by_one, of_a_matrix
from jopa_ppl.program.carry import Reader
from jopa_ppl.program.program import Program
from jopa_ppl.program.refs import Ref


def meetings(factors: tuple[Factor, ...]) -> tuple[set[tuple[Ref, Ref]], set[tuple[Ref, Ref]]]:
    """Pairs of latents that meet additively in a residual, and pairs that multiply."""
    added, multiplied = set(), set()
    for f in factors:
        # E[P r r'] is that of each, of beliefs apart.
        multiplied |= {(min(a, b), max(a, b)) for a in f.spread for b in f.latents}
        products = [[n for n in p if n in f.latents] for p in f.products]
        for i, first in enumerate(products):
            multiplied |= {(a, b) for a in first for b in first if a < b}
            for second in products[i + 1:]:
                added |= {(a, b) for a in first for b in second if a != b}
    return added, multiplied


def choose_blocks(program: Program, reader: Reader, variables: Mapping[str, Variable],
                  factors: tuple[Factor, ...], sizes: Mapping[str, int],
                  override: tuple[tuple[str, ...], ...] | None, method: str,
                  structured: bool) -> tuple[Belief, ...]:
    """Blocks: a chain for the Gaussians of a scan linked in time (with what its first carry is
    made of), one joint block for Gaussian globals that meet additively, one table for discrete
    latents that meet, one each for the rest.

    Args:
        program: the traced one; reader: of its scans.
        variables: the latents by name; factors: all of the program.
        sizes: of plates, by name.
        override: blocks= of `jp.VMP`, or None.
        method: the kernel of chains; structured: whether a matrix may have a belief of its own
            form.

    Returns:
        in the order in which they are updated.

    Raises:
        StructureError: two latents of one block multiply each other, or cannot share one.
        SiteError: `override` names what is no latent, or one twice.
    """
    gaussian = [n for n, v in variables.items() if v.site.rules.location]
    added, multiplied = meetings(factors)
    forbidden = {frozenset((a.site, b.site)) for a, b in multiplied}
    inside = {n for n in gaussian if program.sites[n].scan is not None}
    along = inside | {n for scan in program.scans for n in reader.heads(scan)}
    groups = Groups(gaussian)
    for seed, ref in reader.seeds:
        if seed in groups.parent and ref.site in groups.parent:
            groups.union(seed, ref.site)
    if override is not None:
        _apply_override(override, gaussian, groups, variables, reader)
    else:
        def unite(a: str, b: str) -> None:
            # Never bring two latents that multiply each other under one roof.
            roofs = {groups.find(a), groups.find(b)}
            both = {n for n in gaussian if groups.find(n) in roofs}
            # A held belief is used and not moved, so nothing that moves shares its block.
            alike = len({variables[n].site.held for n in both}) == 1
            if alike and not any(len(pair) == 2 and pair <= both for pair in forbidden):
                groups.union(a, b)

        pairs = {tuple(sorted((a.site, b.site))) for a, b in added}
        # Alike latents first: b of z @ L.T + b goes with L, not with the z of a plate.
        by_plates = lambda p: (variables[p[0]].plates != variables[p[1]].plates, p)
        for x, y in sorted(pairs, key=by_plates):
            alike = variables[x].plates == variables[y].plates
            # What a chain begins with joins it, where its elements are those of the chain.
            if x != y and (x in along) == (y in along) and (
                    alike or (x in inside) == (y in inside)):
                unite(x, y)
    blocks = []
    for group in groups.groups():
        kinds = {variables[n].site.held: n for n in group}
        if len(kinds) > 1:
            raise StructureError(
                f"'{kinds[True]}' is held but '{kinds[False]}' is not", found=f"block {group}",
                expected="blocks that are held or inferred as a whole",
                fix="leave one out of blocks=, or use jp.given(.., update=True)")
        bad = [tuple(p) for p in forbidden if len(p) == 2 and p <= set(group)]
        bad += [tuple(p) * 2 for p in forbidden if len(p) == 1 and p <= set(group)
                and next(iter(p)) in inside]
        if bad:
            raise StructureError(
                f"{names(bad[0])} multiply each other but share a block", found=f"block {group}",
                expected="blocks whose members only meet additively",
                fix="split them: VMP(..., blocks=[(...), (...)])")
        blocks.append(_block(group, variables, program, reader, inside, factors, sizes,
                             method, structured))
    apart = {n for group in override or () for n in group}
    blocks += discrete_blocks(program, reader, variables, factors, sizes, apart)
    together = {n for b in blocks for n in b.members}
    for name, v in variables.items():
        if name not in together:
            blocks.append(KINDS[v.family]({name: v}, held=v.site.held, sizes=sizes,
                                          plates=tuple(p.name for p in v.site.axes)))
    if not all(met_by_one(b, tuple(blocks), factors) for b in blocks if b.checked):
        return choose_blocks(program, reader, variables, factors, sizes, override, method, False)
    # Log-scales after the states that they scale: nothing tells of them before.
    scales = {r.site for f in factors for r in f.spread}
    return tuple(sorted(blocks, key=lambda b: (b.rank, not b.plates, not scales.isdisjoint(
        b.members))))


def _block(group: tuple[str, ...], variables: Mapping[str, Variable], program: Program,
           reader: Reader, inside: set[str], factors: tuple[Factor, ...], sizes: Mapping[str, int],
           method: str, structured: bool) -> Belief:
    plates = {variables[n].plates for n in group}
    steps = tuple(n for n in group if n in inside)
    held = all(variables[n].site.held for n in group)
    own = {n: variables[n] for n in group}
    if not steps and structured and of_a_matrix(own, factors, variables):
        return MatrixBelief(own, held=held, sizes=sizes)
    if not steps and len(plates) == 1:
        return DenseBelief(own, plates=plates.pop(), held=held, sizes=sizes)
    if not steps:
        parts = [f.noise_part for f in factors if f.spread]
        return TreeBelief(own, factors=(*factors, *parts), held=held, sizes=sizes)
    scans = {program.sites[n].scan for n in steps}
    outer = tuple(n for n in group if n not in inside)
    if len(scans) > 1 or len(plates) > 1:
        raise StructureError(
            f"{names(group)} are not one chain", found=f"plates {sorted(plates)}, scans {scans}",
            expected="latents of one scan, all in the same plates",
            fix="put them in one plate, or leave them to separate blocks")
    scan = scans.pop()
    if strangers := [n for n in outer if n not in reader.heads(program.scans[scan])]:
        raise StructureError(
            f"{names(strangers)} cannot join the chain of {names(steps)}",
            found=f"{names(strangers)} drawn outside of the scan, and not part of its first carry",
            expected="the latents of one scan, and those that its first carry is made of",
            fix="leave it out of blocks=: it has a belief of its own beside the chain's")
    form = reader.forms[scan]
    certain = [n for n in steps if variables[n].site.rules.certain]
    for f in factors:
        if f.site.name in certain and (strange := [r for r in f.latents if r.site not in group]):
            raise StructureError(
                "a recursion of the carry multiplies a latent, or sees one of another block",
                site=f.site.name, found=names({r.site for r in strange}),
                expected="data for coefficients, and the latents of its own chain",
                fix="draw what the step carries: x = jp.latent('x', Normal(mean, scale)); or make "
                    f"'{strange[0].site}' data with jp.condition")
    kind = RecursionBelief if certain else ChainBelief
    return kind({n: variables[n] for n in outer + steps}, name=block_name(group), scan=scan,
                       length=program.scans[scan].length, order=max(form.order, 1),
                       seeds=dict(form.seeds), head=outer, plates=plates.pop(), held=held,
                       sizes=sizes, method=method)


def _apply_override(override: tuple[tuple[str, ...], ...], gaussian: list[str], groups: Groups,
                    variables: Mapping[str, Variable], reader: Reader) -> None:
    seen: set[str] = set()
    seeds = {n: r.site for n, r in reader.seeds}
    for group in override:
        for name in group:
            if name not in variables:
                raise SiteError("unknown site in blocks=", site=name, found=name,
                                expected=f"one of {names(list(variables))}",
                                fix="name latent sites of the program")
            if name in seen:
                raise SiteError("a site is in two blocks", site=name, found=override,
                                expected="each site in one block", fix="name it once")
            if name not in gaussian and len(group) > 1:
                raise StructureError("only Gaussian latents can share a block", site=name,
                                     found=variables[name].family, expected="gaussian",
                                     fix="leave it out: it is a block of its own")
            if name in seeds and seeds[name] not in group:
                raise StructureError(f"the first state belongs to the chain of '{seeds[name]}'",
                                     site=name, found=f"block {group}",
                                     expected=f"'{name}' and '{seeds[name]}' in one block",
                                     fix=f"leave '{name}' out of blocks=, or add '{seeds[name]}'")
            seen.add(name)
        for other in group[1:]:
            groups.union(group[0], other)
