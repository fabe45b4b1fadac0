"""What becomes of every site of a program, as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jopa_ppl.engine.signature import split_call, traced
from jopa_ppl.errors import JopaError, names
from jopa_ppl.graph.build import prove_whole
from jopa_ppl.graph.factor import Factor
from jopa_ppl.graph.tables import CURVED, MESSAGES, table, terms
from jopa_ppl.infer.vmp import VMP
from jopa_ppl.program.program import Site

SITES = ("site", "family", "role", "block", "message")


def explain_table(model: Any, args: tuple, kwargs: dict) -> str:
    """One line a site; where a program does not compile, with the reason at every faulty site."""
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
    return "\n\n".join([table(SITES, rows), *(f"block {b.name}: {b.note}" for b in graph.blocks
                                              if b.note)])


def _faulty_table(vmp: Any, args: tuple, kwargs: dict, error: JopaError) -> str:
    """What is known of a program that ended in `error`: its sites where it can be traced."""
    head = f"{getattr(vmp.model, '__name__', 'the model')} does not compile:"
    try:
        program = traced(split_call(vmp.model, args, kwargs)).program
        program, proof = prove_whole(program, dict(vmp.options.messages))
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
    message = (CURVED if factor.curved else MESSAGES)[factor.message]
    if factor.fixed:
        sites = names(sorted({r.site for r, _ in factor.fixed} - {site.name}))
        message += f", once for every value of {sites}" if sites != names([]) else ""
    if not (factor.touched or factor.noise):
        known = site.observed and not site.partial
        return "none: it depends on no latent" if known else "exact, its prior"
    if factor.reason:
        return f"{message}; not exact because of {factor.reason}"
    if factor.message == "exact" and site.rules.location:
        return f"{message}, on {terms(factor)}" + ", last step" * (site.outside == "last")
    return message
