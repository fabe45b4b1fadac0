"""From a traced program to its factor graph: every site is proved, latents fall into blocks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from jopa_ppl.beliefs import Variable
from jopa_ppl.errors import SiteError, StructureError, names
from jopa_ppl.graph.blocks import choose_blocks
from jopa_ppl.graph.borders import borders, with_carries
from jopa_ppl.graph.discrete import by_value
from jopa_ppl.graph.factor import Factor
from jopa_ppl.graph.links import NoSlopeError
from jopa_ppl.graph.proving import barren, check_wanted, factor_of
from jopa_ppl.graph.shown import ShownGraph
from jopa_ppl.program.carry import Reader
from jopa_ppl.program.program import Program
from jopa_ppl.program.recursions import with_borders
from jopa_ppl.program.unconstrained import unconstrained


class Proof(NamedTuple):
    """What is proved of a program's sites: the factors of those that have an update, and of the
    others why not. `dense`: (site, plate) where the plate is none to that latent."""

    reader: Reader
    predicted: tuple[str, ...]
    factors: tuple[Factor, ...]
    dense: frozenset[tuple[str, str]]
    faults: dict[str, StructureError]


def prove(program: Program, messages: Mapping[str, str]) -> Proof:
    """Prove the structure of a traced program, site by site."""
    dense: frozenset[tuple[str, str]] = frozenset()
    while True:
        reader = Reader(program, dense)
        predicted = barren(program, reader)
        alive = set(program.sites) - set(predicted)
        lost: set[tuple[str, str]] = set()
        factors: list[Factor] = []
        faults: dict[str, StructureError] = {}
        for site in program.sites.values():
            if site.name not in alive:
                continue
            try:
                wanted = messages.get(site.name)
                found = [factor_of(reader, site, segment, alive, lost, wanted)
                         for segment in reader.segments_of(site)]
                check_wanted(site, found, wanted)
                factors += [by_value(reader, one) for one in found]
            except StructureError as error:
                faults[site.name] = error
        lost = {(v, p) for v, p in lost if v in program.sites
                and any(q.name == p for q in program.sites[v].axes)}
        if lost <= dense or faults:
            return Proof(reader, predicted, tuple(factors), dense, faults)
        # A plate that some factor mixes is no plate to that latent: it becomes one vector.
        dense |= lost


def prove_whole(program: Program, messages: Mapping[str, str]) -> tuple[Program, Proof]:
    """The proof of a program, Gamma latents and others that have no conjugate update read in
    unconstrained space.

    Where that is no way out, the fault is told as it was.
    """
    first = proof = prove(program, messages)
    read = program
    while proof.faults:
        names_ = {n for name in proof.faults for n in _read_freely(read, proof.reader, name)}
        if not names_:
            break
        read = unconstrained(read, [n for n in read.sites if n in names_])
        proof = prove(read, messages)
    if not proof.faults:
        return read, proof
    same = {n: e if isinstance(e, NoSlopeError) else first.faults.get(n, e)
            for n, e in proof.faults.items()}
    return program, first._replace(faults=same)


def _read_freely(program: Program, reader: Reader, name: str) -> set[str]:
    """The latents that a site is, or is made of, which may be read in unconstrained space."""
    site = program.sites[name]
    likely = () if site.likelihood is None else site.likelihood.leaves
    found = {r.site for segment in reader.segments_of(site)
             for d in reader.dependence((*site.parameters, *likely), segment)
             for r in d.names if r.is_site}
    return {n for n in {name, *found} if program.sites[n].rules.freely
            and not program.sites[n].observed and program.sites[n].scan is None}


def _refuse(proof: Proof) -> None:
    """Raise the first fault, if there is one."""
    for error in proof.faults.values():
        raise error


def build_graph(program: Program, blocks: tuple[tuple[str, ...], ...] | None = None,
                messages: Mapping[str, str] | None = None, chain: str = "auto",
                structured: bool = True) -> ShownGraph:
    """Prove the structure of a traced program and split its latents into blocks.

    Args:
        program: the traced one.
        blocks, messages: as of `jp.VMP`; None: as they are found.
        chain: the kernel of chains, one of `linalg.chain.METHODS`, or "funsor".
        structured: whether matrices may have a belief of their own form (`graph.matrices`).

    Raises:
        StructureError: a factor is not conjugate; names the site, the operation, file and line.
        SiteError: `messages` or `blocks` name no site.
    """
    messages = messages or {}
    for name in messages:
        if name not in program.sites:
            raise SiteError("unknown site in messages=", site=name, found=name,
                            expected=f"one of {names(program.sites)}", fix="check the spelling")
    program, proof = prove_whole(program, messages)
    _refuse(proof)
    if joined := borders(program, proof.reader, proof.factors, blocks):
        program = with_borders(program, joined, proof.dense)
        proof = prove(program, messages)
        _refuse(proof)
    reader, predicted, kept, dense, _ = proof
    blocks = None if blocks is None else with_carries(program, blocks)
    variables = {
        s.name: Variable(s.name, s.rules.belief, s,
                         tuple(p for p in s.axes if (s.name, p.name) not in dense)
                         if s.rules.location or s.rules.discrete else ())
        for s in program.sites.values()
        if s.name not in predicted and (not s.observed or s.partial)}
    sizes = {p.name: p.size for f in kept for p in f.plates}
    chosen = choose_blocks(program, reader, variables, kept, sizes, blocks, chain, structured)
    return ShownGraph(program, reader, variables, kept, chosen, predicted, sizes)
