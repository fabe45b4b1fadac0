"""Where a step of a scan looks back to: the order of its carry, found by composing the body.

What a parameter is made of is told by `Ref`s, relative to a step.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import jax
import jax.numpy as jnp
from jax import Array

from jopa_ppl.errors import StructureError
from jopa_ppl.program.program import Program, Scan, Site
from jopa_ppl.program.refs import Ref
from jopa_ppl.program.segments import Segment, in_segments
from jopa_ppl.proof.analyse import analyse
from jopa_ppl.proof.dependence import Dependence, constant, variable

MAX_ORDER = 8


@dataclass(frozen=True)
class CarryForm:
    """How a scan carries its past: order, and which leaves of its carry are data.

    `seeds`: where every leaf of the first carry is itself a latent that stands for an earlier value
    of a site of the step, (latent, what it stands for); then all steps are alike. Others cannot be
    made so: what follows a latent with certainty shares its belief, and a first carry may be made
    of latents whose beliefs are held, of other plates, or multiply one another.
    """

    order: int
    data_leaves: tuple[int, ...]
    seeds: tuple[tuple[str, Ref], ...] = ()


class Reader:
    """Dependences and values of a program's parameters in any segment."""

    def __init__(self, program: Program, dense: frozenset[tuple[str, str]] = frozenset()) -> None:
        self.program = program
        self.dense = dense

    @cached_property
    def forms(self) -> dict[int, CarryForm]:
        """How each scan carries its past."""
        return {scan.index: self._carry_form(scan) for scan in self.program.scans}

    @property
    def seeds(self) -> list[tuple[str, Ref]]:
        """Those of all scans; a latent may begin several."""
        return [seed for form in self.forms.values() for seed in form.seeds]

    # -- dependences -------------------------------------------------------------------------

    def _state(self, key: str, step: int | None) -> Dependence:
        """Dependence of an input: latents and known sites are variables, the rest is data."""
        kind, name = key.split("/", 1)
        shape = self.program.shapes[key]
        if kind in ("latent", "known"):
            site = self.program.sites[name]
            plates = {p.axis: p.name for p in site.axes if (name, p.name) not in self.dense}
            return variable(site.ref(-(step or 0)), shape, plates)
        if kind in ("after", "ys"):
            return variable(Ref(name.split("/")[0], role="scan"), shape, {})
        if kind == "xs":
            return variable(Ref(key, -(step or 0), "input"), shape, {})
        return constant(shape)

    def _analyse(self, outputs: Sequence[int], step: int | None,
                 carry: dict[str, Dependence]) -> list[Dependence]:
        closed, _ = self.program.pruned(outputs)
        states = [carry[k] if k in carry else self._state(k, step) for k in self.program.inputs]
        return analyse(closed, states)

    def _carry_keys(self, scan: Scan) -> list[str]:
        return [f"carry/{scan.index}/{i}" for i in range(len(scan.carry))]

    def _carry_form(self, scan: Scan) -> CarryForm:
        data = self.data_leaves(scan)
        order = self.order(scan, data)
        if order is None:
            raise StructureError(
                "the carry of the scan never forgets its first value",
                found="a whole number in it that is made of latents, step after step",
                expected="real numbers, or the values of the last few steps",
                fix="carry the value of a site itself, or a jnp.float64 array")
        return CarryForm(order, tuple(sorted(data)), self._seeds(scan, data))

    def data_leaves(self, scan: Scan) -> set[int]:
        """The leaves of a carry that nothing latent ever flows into (a counter, a schedule)."""
        init = self._analyse(scan.init, None, {})
        data = {i for i, d in enumerate(init) if all(r.is_input for r in d.names)}
        while True:
            out = self.after_one_step(scan, data)
            kept = {i for i in data if all(r.is_input for r in out[i].names)}
            if kept == data:
                return data
            data = kept

    def after_one_step(self, scan: Scan, data: set[int]) -> list[Dependence]:
        """How every leaf of a carry depends on the leaves a step before."""
        return self._analyse(scan.carry, 0, self._leaves(self._carry_keys(scan), data))

    def order(self, scan: Scan, data: set[int]) -> int | None:
        """After how many steps the first carry is forgotten; None where that is never, or late."""
        keys = self._carry_keys(scan)
        states = self._leaves(keys, data)
        for order in range(MAX_ORDER + 1):
            if not any(r.is_carry for i, k in enumerate(keys) if i not in data
                       for r in states[k].names):
                return order
            out = self._analyse(scan.carry, 0, states)
            states = {k: states[k] if i in data else out[i] for i, k in enumerate(keys)}
        return None

    def _leaves(self, keys: list[str], data: set[int]) -> dict[str, Dependence]:
        """The leaves of a carry, each as one input that is not followed yet."""
        shapes = self.program.shapes
        return {k: constant(shapes[k]) if i in data
                else variable(Ref(str(i), role="carry"), shapes[k], {}) for i, k in enumerate(keys)}

    def axes_of_leaves(self, scan: Scan, data: set[int]) -> list[dict[int, str]]:
        """By leaf of a carry, the plates that its axes run along."""
        keys = self._carry_keys(scan)
        found = [_plates(d) for d in self._analyse(scan.init, None, {})]
        while True:
            states = {k: s if i in data else variable(Ref(str(i), role="carry"),
                                                      self.program.shapes[k], found[i])
                      for (i, (k, s)) in enumerate(self._leaves(keys, data).items())}
            more = [found[i] | {a: p for a, p in _plates(d).items() if p not in found[i].values()}
                    for i, d in enumerate(self._analyse(scan.carry, 0, states))]
            if more == found:
                return found
            found = more

    def _seeds(self, scan: Scan, data: set[int]) -> tuple[tuple[str, Ref], ...]:
        """Latents of the first carry by the value they stand for; empty if it is not so simple."""
        sites, jaxpr = self.program.sites, self.program.jaxpr.jaxpr
        key = dict(zip(map(id, jaxpr.invars), self.program.inputs))
        found: dict[str, Ref] = {}
        for i in range(len(scan.carry)):
            if i in data:
                continue
            back, at = 1, i
            source = key.get(id(jaxpr.outvars[scan.carry[at]]), "")
            while source.startswith("carry/") and back <= MAX_ORDER:
                back, at = back + 1, int(source.rsplit("/", 1)[1])
                source = key.get(id(jaxpr.outvars[scan.carry[at]]), "")
            first = key.get(id(jaxpr.outvars[scan.init[i]]), "")
            if not (source.startswith("latent/") and first.startswith("latent/")):
                return ()
            seed, site = sites[first[7:]], sites[source[7:]]
            plates = [[(p.name, p.axis) for p in s.axes] for s in (seed, site)]
            if (seed.scan is not None or seed.partial or seed.held != site.held
                    or seed.rules.belief != site.rules.belief
                    or (seed.transform is None) != (site.transform is None)
                    or seed.shape != site.shape
                    or plates[0] != plates[1] or site.scan is None
                    or Ref(site.name, back) in found.values() or seed.name in found):
                return ()
            found[seed.name] = Ref(site.name, back)
        seen = self._body_names(scan)
        return () if seen & set(found) else tuple(found.items())

    def _body_names(self, scan: Scan) -> set[str]:
        """Outer sites that the sites of a step see directly, not through the carry."""
        outputs = tuple(i for n in scan.sites for i in self.program.sites[n].parameters)
        opaque = {k: variable(Ref(k, role="carry"), self.program.shapes[k], {})
                  for k in self._carry_keys(scan)}
        return _outer(self._analyse(outputs, 0, opaque))

    def heads(self, scan: Scan) -> set[str]:
        """Outer sites that the first carry is made of and that no step sees directly."""
        return _outer(self._analyse(scan.init, None, {})) - self._body_names(scan)

    def segments(self, scan: Scan) -> list[Segment]:
        """The segments of a scan's sites: its first steps, then all others."""
        form = self.forms[scan.index]
        return in_segments(scan.index, scan.length, form.order, bool(form.seeds))

    def segments_of(self, site: Site) -> list[Segment]:
        """Those of the scan that a site stands in; one without an axis of time outside of them."""
        return [Segment()] if site.scan is None else self.segments(self.program.scans[site.scan])

    def dependence(self, outputs: Sequence[int], segment: Segment) -> list[Dependence]:
        """How the given outputs depend on latents, known sites and data in a segment."""
        if segment.scan is None:
            return self._analyse(outputs, None, {})
        scan = self.program.scans[segment.scan]
        keys, form = self._carry_keys(scan), self.forms[scan.index]

        def moving(states: list[Dependence], step: int) -> dict[str, Dependence]:
            return {k: variable(Ref(k, -step, "input"), self.program.shapes[k], {})
                    if i in form.data_leaves else states[i] for i, k in enumerate(keys)}

        first = (self._analyse(scan.init, None, {}) if segment.early
                 else [constant(self.program.shapes[k]) for k in keys])
        carry = moving(first, -segment.depth)
        for step in range(-segment.depth, 0):
            carry = moving(self._analyse(scan.carry, step, carry), step + 1)
        return self._analyse(outputs, 0, carry)

    # -- values ------------------------------------------------------------------------------

    def values(self, outputs: Sequence[int], segment: Segment, instances: Mapping[Ref, Array],
               data: dict[str, Array], steps: Sequence[dict[str, Array]] = ()) -> list[Array]:
        """The given outputs, from the values of the instances and the data of the steps.

        Args:
            instances: the values of sites, of their full shapes.
            data: the program's data inputs.
            steps: one dict of step inputs (slices, data leaves of the carry) per step looked at,
                the oldest first, this step last.
        """
        program = self.program

        def inputs(step: int | None) -> dict[str, Array]:
            found = dict(data)
            for key in program.inputs:
                kind, name = key.split("/", 1)
                if kind == "latent" or (kind == "known" and not program.sites[name].amortized):
                    value = instances.get(program.sites[name].ref(-(step or 0)))
                    if value is not None:
                        found[key] = value
            return found

        if segment.scan is None:
            return program.evaluate(outputs, inputs(None))
        scan = program.scans[segment.scan]
        keys = self._carry_keys(scan)
        carry = (dict(zip(keys, program.evaluate(scan.init, inputs(None)))) if segment.early
                 else {})
        for step, given in zip(range(-segment.depth, 1), steps):
            carry.update({k: v for k, v in given.items() if k.startswith("carry/")})
            here = {**inputs(step), **given, **carry}
            if step == 0:
                return program.evaluate(outputs, here)
            carry = dict(zip(keys, program.evaluate(scan.carry, here)))
        raise ValueError("no steps given")

    def step_inputs(self, scan: Scan, data: dict[str, Array],
                    known: dict[str, Array]) -> dict[str, Array]:
        """All step inputs of a scan as series: slices (T, ...) and data leaves of the carry."""
        program = self.program
        outer = {**data, **{f"known/{n}": v for n, v in known.items()}}
        series = dict(zip(scan.xs, program.evaluate(tuple(scan.xs.values()), outer)))
        leaves = self.forms[scan.index].data_leaves
        if leaves:
            keys = [f"carry/{scan.index}/{i}" for i in leaves]
            outputs = tuple(scan.carry[i] for i in leaves)
            first = program.evaluate(tuple(scan.init[i] for i in leaves), outer)

            def move(carry: list[Array], step: dict[str, Array]) -> tuple[list[Array], list[Array]]:
                new = program.evaluate(outputs, {**outer, **step, **dict(zip(keys, carry))})
                return [jnp.asarray(n, c.dtype) for n, c in zip(new, carry)], carry

            _, past = jax.lax.scan(move, first, series, length=scan.length)
            series |= dict(zip(keys, past))
        return series


def _plates(dependence: Dependence) -> dict[int, str]:
    """The axes that run along a plate, each plate once."""
    found: dict[int, str] = {}
    for i, axis in enumerate(dependence.axes):
        if axis.plate is not None and axis.plate not in found.values():
            found[i] = axis.plate
    return found


def _outer(dependences: Iterable[Dependence]) -> set[str]:
    """The sites outside of scans that some of them are made of."""
    return {r.site for d in dependences for r in d.names if r.is_site and r.back is None}


def with_free_heads(program: Program) -> Program:
    """The program with first states that are inferred where `given` holds them: a plan starts from
    that belief, and what was seen before the first decision still tells of it."""
    reader = Reader(program)
    heads = {n for scan in program.scans for n in reader.heads(scan)} & program.sites.keys()
    return replace(program, sites={n: replace(s, held=s.held and n not in heads)
                                   for n, s in program.sites.items()})
