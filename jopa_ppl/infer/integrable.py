"""Which latents of a program can be integrated out exactly given the others, and which are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import prod
from typing import Any, NamedTuple

import jax
import numpy as np

from jopa_ppl.engine.compiled import Compiled
from jopa_ppl.engine.exact import reasons
from jopa_ppl.engine.signature import Cache, Key, split_call, traced
from jopa_ppl.errors import JopaError, SiteError, StructureError, names
from jopa_ppl.graph.factor import Factor
from jopa_ppl.graph.proving import barren
from jopa_ppl.graph.tables import table
from jopa_ppl.infer.vmp import VMP
from jopa_ppl.language.given import Given
from jopa_ppl.language.query import _Query, condition
from jopa_ppl.program.carry import Reader
from jopa_ppl.program.program import Program, Site


class Split(NamedTuple):
    """The sites of a program, divided.

    Attributes:
        inner: latents that are integrated out.
        kept: latents that are sampled, by the program's own priors.
        unseen: latents that nothing observed depends on; they follow the program.
        hidden: sites whose density the evidence holds.
        factors: theirs. exact: the program with `kept` as data.
        why: by latent that is kept, what keeps it. program: as it was traced.
    """

    inner: tuple[str, ...]
    kept: tuple[str, ...]
    unseen: tuple[str, ...]
    hidden: frozenset[str]
    factors: list[Factor]
    exact: Compiled
    why: dict[str, str]
    program: Program

    def __str__(self) -> str:
        rows = []
        for name, site in self.program.sites.items():
            if name in self.inner:
                block = self.exact.graph.block_of(name)
                role = f"integrated out, drawn back: {block.label} '{block.name}'"
            elif name in self.kept:
                role = "sampled by its prior" + (f": {self.why[name]}" if name in self.why else "")
            elif name in self.unseen:
                role = "drawn by the program: nothing observed depends on it"
            else:
                role = "in the evidence" if name in self.hidden else "as it stands"
            rows.append((name, site.described, role))
        return table(("site", "family", "what becomes of it"), rows)


_SPLITS = Cache(64)


def split(model: Callable, args: tuple, kwargs: dict, over: tuple[str, ...] | None
          ) -> Split | None:
    """Divide the sites of a program, once for given shapes; None where nothing is observed.

    Args:
        over: the latents to integrate out. Default: discrete ones first, which have no gradient,
            then the largest first, each where it and those before it are exact given the rest.

    Raises:
        StructureError: nothing, or not all of `over`, can be integrated out, or a discrete latent
            cannot. SiteError: a name of
            `over` is no latent. As `jp.VMP`, where the program cannot be read.
    """
    model, args, kwargs = jax.tree.map(_still, (freed(model), args, kwargs))
    now = traced(split_call(model, args, kwargs))
    if not any(s.observed for s in now.program.sites.values()):
        return None
    return _SPLITS.get(Key(now.key, over), lambda: _divide(now.program, model, args, kwargs, over))


def freed(model: Any) -> Any:
    """The model with beliefs of `jp.given(.., update=False)` as the priors that they are to every
    sampler."""
    if not isinstance(model, _Query):
        return model
    held = {"held": False} if isinstance(model, Given) else {}
    return replace(model, fn=freed(model.fn), **held)


def _still(x: Any) -> Any:
    """Zeros in place of what JAX traces: structure depends on shapes alone."""
    return np.zeros(x.shape, x.dtype) if isinstance(x, jax.core.Tracer) else x


def _divide(program: Program, model: Callable, args: tuple, kwargs: dict,
            over: tuple[str, ...] | None) -> Split:
    sites = program.sites
    unseen = barren(program, Reader(program))
    latent = [n for n, s in sites.items() if (not s.observed or s.partial) and n not in unseen
              and s.role != "carry"]
    for name in over or ():
        if name not in latent:
            raise SiteError("unknown site in over=", site=name, found=f"'{name}'",
                            expected=f"some of {names(latent)}",
                            fix="name latents that something observed depends on")
    why: dict[str, str] = {}
    attempt = partial(_attempt, program, model, args, kwargs, latent, why)
    # Data in part are no sampler's.
    inner = [n for n in latent if sites[n].partial or n in (over or ())]
    found = attempt(inner) if inner else None
    if inner and found is None:
        name = next((n for n in inner if n in why), inner[0])
        raise StructureError(
            "it cannot be integrated out", site=name,
            found=why.get(name) or next(iter(why.values())),
            expected="latents whose factors are all exact given the others",
            fix="leave it out of over=" if over else "pass all of its data, or none")
    if over is None:
        inner, found = _as_many_as_fit(program, latent, inner, found, attempt, why)
    if found is None:
        raise StructureError(
            "no latent can be integrated out", found="; ".join(
                f"'{n}': {why.get(n, 'neither Gaussian nor discrete')}" for n in latent),
            expected="a Gaussian or discrete latent whose factors are all exact given the others",
            fix="run NUTS on the model itself, or jp.VMP")
    left = [n for n in latent if n not in inner and sites[n].rules.discrete]
    if left:
        raise StructureError(
            "a discrete latent would be left to the sampler", site=left[0],
            found=why.get(left[0], f"over={over}"), expected="discrete latents that are "
            "integrated out, as they have no gradient",
            fix="run jp.VMP, where switches and what they switch are each exact given the other "
                "(starts=20 keeps the best of several), or make it data with jp.condition")
    if (chain := _kernel(found)) != "auto":
        found = attempt(inner, chain=chain) or found
    graph = found.graph
    touching = {f.site.name for f in graph.factors if found.engine.energy.blocks_of(f)}
    hidden = frozenset({*touching, *inner, *unseen})
    return Split(tuple(n for n in latent if n in inner),
                 tuple(n for n in latent if n not in inner), unseen, hidden,
                 [f for f in graph.factors if f.site.name in hidden], found,
                 {n: w for n, w in why.items() if n not in inner}, program)


def _as_many_as_fit(program: Program, latent: list[str], inner: list[str], found: Compiled | None,
                    attempt: Callable[..., Compiled | None], why: dict[str, str]
                    ) -> tuple[list[str], Compiled | None]:
    """Latents taken in one at a time; again once one was, as what follows from it may join it."""
    def order(name: str) -> tuple[bool, int]:
        site = program.sites[name]
        return not site.rules.discrete, -prod(_shape(program, site))

    plain = lambda s: s.rules.discrete or (s.rules.location and s.transform is None)
    todo = sorted((n for n in latent if n not in inner and plain(program.sites[n])), key=order)
    taken = True
    while taken:
        taken = False
        for name in todo:
            new = None if name in inner else attempt([*inner, name], name)
            if new is not None and _widens(program, new, name):
                why[name] = "with the chain it is slower than sampled; over= takes it in"
            elif new is not None:
                found, inner, taken = new, [*inner, name], True
    return inner, found


def _widens(program: Program, found: Compiled, name: str) -> bool:
    """Whether it is a global that a chain carries along from step to step."""
    joined, reader = found.graph.block_of(name).scan is not None, Reader(program)
    return (joined and program.sites[name].scan is None
            and not any(name in reader.heads(scan) for scan in program.scans))


def _kernel(found: Compiled) -> str:
    """The kernel of its chains: few steps of more work, where these are of a few numbers each. It
    takes longer to compile, which "auto" minds, but a sampler runs it a hundred thousand times."""
    width = [sum(b.latents[n].dims for n in b.variables) for b in found.graph.blocks
             if b.scan is not None]
    return "parallel" if any(1 < n <= 4 for n in width) else "auto"


def _shape(program: Program, site: Site) -> tuple[int, ...]:
    lead = (program.length_of(site),) if site.is_series else ()
    return (*lead, *site.shape)


def _attempt(program: Program, model: Callable, args: tuple, kwargs: dict, latent: list[str],
             why: dict[str, str], inner: list[str], name: str | None = None, chain: str = "auto"
             ) -> Compiled | None:
    """The program with all latents but `inner` as data, where these are then exact; else None, and
    in `why` the reason, of `name` where it is given."""
    rest = [n for n in latent if n not in inner]
    data = {n: np.zeros(_shape(program, program.sites[n]),
                        int if program.sites[n].rules.discrete else float) for n in rest}
    try:
        vmp = VMP(condition(model, data) if data else model, chain=chain)
        compiled = vmp.unchecked(args, kwargs)[0]
    except JopaError as error:
        why[name or error.site or inner[0]] = (
            f"{error.what}" + (f", {error.found}" if error.found else ""))
        return None
    faults = reasons(compiled.engine)
    for f in compiled.graph.factors:        # of what is sampled, the prior has to stand alone
        if f.site.name in rest and (blocks := compiled.engine.energy.blocks_of(f)):
            faults[blocks[0].members[0]] = f"the prior of '{f.site.name}' depends on it"
    if faults:
        why |= {name: faults.get(name) or next(iter(faults.values()))} if name else faults
        return None
    return compiled
