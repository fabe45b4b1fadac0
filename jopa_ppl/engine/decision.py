"""A decision of a program: where it stands, and what passes backward and forward are made of.

`plan.py` says what is minimised, `value.py` how one site of a step leaves a form, `paths.py` what
is done where steps are not affine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jopa_ppl.beliefs.layout import align
from jopa_ppl.engine.conditional import own_conditional
from jopa_ppl.engine.coordinates import Coordinates
from jopa_ppl.engine.densities import density_of
from jopa_ppl.engine.engine import Engine
from jopa_ppl.engine.evidence import Evidence, FactorArrays
from jopa_ppl.engine.forward import over_time
from jopa_ppl.engine.steps import SiteMap, site_map, to_chain_plates
from jopa_ppl.engine.value import (
    Form,
    Node,
    Rule,
    average,
    cost,
    cost_of_data,
    decision,
    fix_of,
    followed,
    told,
)
from jopa_ppl.errors import ShapeError, SiteError, StructureError, names
from jopa_ppl.graph.factor import Factor
from jopa_ppl.linalg.families import diagonal, symmetric
from jopa_ppl.program.refs import Ref

Policy = list[dict[str, Rule]]          # by segment, for every decision
# How far off the prior plans begin, in its standard deviations, beside what they are given.
OFFSETS = {"prior": 0.0, "high": 0.75, "low": -0.75}


class Split(NamedTuple):
    """The data on either side of the first decision.

    first (*plates,): its place, steps times sites of a step; later: weights of the observed sites
    that come after it, by factor; present: where sites in part are data, on both sides.
    """

    first: Array
    later: dict[str, Array]
    present: dict[str, Array]


class Decision:
    """The planning pass of a compiled program."""

    def __init__(self, engine: Engine, decide: tuple[str, ...]) -> None:
        self.engine, self.decide = engine, decide
        graph = engine.graph
        for name in decide:
            if name not in graph.program.sites:
                raise SiteError("unknown site in decide=", site=name, found=name,
                                expected=f"one of {names(list(graph.variables))}",
                                fix="name the action site of the program")
            if name in graph.predicted:
                raise SiteError("nothing observed depends on the decision", site=name,
                                found="no observed site after it",
                                expected="a goal: an observed site that it influences",
                                fix="pass the goal with jp.sparse(T, {-1: goal})")
            if name not in graph.variables:
                raise SiteError("the decision is data", site=name, found="an observed site",
                                expected="a latent site", fix="do not condition on it")
        blocks = {graph.block_of(n).name: graph.block_of(n) for n in decide}
        block = next(iter(blocks.values()))
        if len(blocks) > 1 or block.scan is None or set(decide) & set(block.head):
            raise StructureError(
                f"{names(decide)} cannot be decided upon", found=f"blocks {list(blocks)}",
                expected="actions drawn inside a scan, in one chain with its states",
                fix="draw the actions in the body of the scan")
        if parts := [n for n in block.members if graph.program.sites[n].window]:
            raise StructureError(
                f"{names(decide)} cannot be decided upon", found="a scan that begins where another "
                f"one ended: {names(parts)} stand in some of their steps", expected="one scan",
                fix="write one scan over all steps, whose body asks which: "
                    "jnp.where(t < T, mean, other_mean), with t among its inputs")
        self.block = block
        self.c = Coordinates(self.block)
        scan = graph.program.scans[block.scan]
        self.segments = graph.reader.segments(scan)
        self.length, self.order = scan.length, list(scan.sites)
        self.in_scan = [f for f in engine.energy.touching(block) if f.segment.scan == block.scan]
        # First states that are not of the chain are used as they are: no evidence may tell of them.
        self.apart = sorted(graph.reader.heads(scan) & graph.variables.keys() - {*block.members})
        self.of_apart = [f for f in graph.factors if f.site.name not in self.apart
                         and {r.site for r in f.latents} & {*self.apart}]
        self.past = Engine(replace(graph, factors=tuple(f for f in graph.factors
                                                        if self._may_be_past(f))))
        self.lengths = [segment.length for segment in self.segments]
        self.curved = any(f.curved for f in self.in_scan)
        self.starts = ("given", *OFFSETS) if self.curved else ()
        for f in self.in_scan:
            bent = sorted({r.site for r in f.spread} & {*block.members})
            if f.fixed or bent:
                what = ("a discrete latent", "or make the discrete latent data") if f.fixed else (
                    f"a scale made of {names(bent)}", "or make its scale data")
                raise StructureError("no plan goes through it", site=f.site.name, found=what[0],
                                     expected="a Gaussian, of states and actions in its mean alone",
                                     fix="linearise it about a trajectory and pass A_t, B_t, c_t "
                                         f"as inputs; {what[1]}")
        for f in graph.factors:
            chains = [b.name for b, _ in engine.energy.slots[f.name]
                      if b is not None and b.scan is not None]
            if len(chains) > 1:
                raise StructureError("planning needs one chain", site=f.site.name,
                                     found=f"chains {chains}", expected="one chain",
                                     fix="join them: VMP(..., blocks=[(...)])")

    def _may_be_past(self, f: Factor) -> bool:
        """Whether data can tell of a factor before the first decision: where no decision can be
        data that is the first one of all. What no decision bends, another chain of the scan, has no
        future."""
        segment, sites = f.segment, self.engine.graph.program.sites
        if f not in self.in_scan or any(sites[n].partial for n in self.decide):
            return True
        begins = min(self.order.index(n) for n in self.decide)
        return segment.start == 0 and self.order.index(f.site.name) < begins

    def begun(self, init: Mapping[str, Any]) -> dict[str, Array]:
        """Actions to begin with by decision, (T, *plates, n), NaN where there are none; nothing
        where one pass is all there is.

        Raises:
            SiteError, ShapeError: `init` names no decision, or holds no value a step.
        """
        variables, found = self.engine.graph.variables, {}
        for name, value in init.items():
            if name not in self.decide:
                raise SiteError("unknown site in init=", site=name, found=name,
                                expected=f"some of {names(self.decide)}, which are decided upon",
                                fix="pass plan.shifted(1), or {site: its actions}")
            want = (self.length, *variables[name].site.shape)
            if np.shape(value) != want:
                raise ShapeError("actions to begin with have another shape", site=name,
                                 found=np.shape(value), expected=f"{want}, a value a step",
                                 fix="pass plan.shifted(1) of a plan of the same length")
            found[name] = variables[name].vectors(np.asarray(value, float))
        return {n: np.asarray(found.get(n, np.full((self.length, *self.block.batch,
                                                    variables[n].dims), np.nan)))
                for n in self.decide if self.curved}

    # -- evidence and preference -----------------------------------------------------------------

    def _first(self, present: dict[str, Array]) -> Array:
        """The place of the first decision to take, (*plates); the end where none is left."""
        sites, places = len(self.order), []
        for name in self.decide:
            free = (~present[name].all(-1) if name in present
                    else jnp.ones((self.length, *self.block.batch), bool))
            at = sites * jnp.argmax(free, 0) + self.order.index(name)
            places.append(jnp.where(free.any(0), at, sites * self.length))
        return jnp.stack(places).min(0)

    def _past(self, f: Factor, first: Array) -> Array:
        """Where a factor stands before the first decision: (steps of its segment, *its plates)."""
        plates = [p.name for p in f.plates]
        times = jnp.arange(self.length)[f.segment.steps]
        place = len(self.order) * times + self.order.index(f.site.name)
        return place.reshape((-1, *(1,) * len(plates))) < align(
            first, 0, self.block.plates, plates, 0)

    def split(self, arrays: dict[str, FactorArrays], present: dict[str, Array]
               ) -> tuple[dict[str, FactorArrays], dict[str, Array], Split]:
        """Arrays and data of the past alone, and what they leave to the future."""
        first, later, evidence, told = self._first(present), {}, dict(arrays), dict(present)
        for f in self.in_scan:
            name, past = f.name, self._past(f, first)[..., None]
            if f.value is None:
                weight = arrays[name].weight
                later[name] = jnp.where(past, 0.0, weight)
                evidence[name] = arrays[name]._replace(weight=jnp.where(past, weight, 0.0))
            elif f.site.name in present:
                at, here = f.segment.steps, told[f.site.name]
                told[f.site.name] = here.at[at].set(here[at] & past)
        return evidence, told, Split(first, later, present)

    # -- backward --------------------------------------------------------------------------------

    def nodes(self, bound: Evidence, moments: dict, split: Split, old: Affine | None = None
              ) -> Affine:
        """The sites of every step and what they cost; those of an `old` program that no path
        changes are as they were."""
        nodes, costs, steady = [], [], []
        c, stats = self.c, self.engine.stats(moments, bound.clamps)
        for i, segment in enumerate(self.segments):
            sites, before = [], {} if old is None else dict(old.nodes[i][1])
            none = jnp.zeros((1, *(1,) * len(self.block.batch), c.size, c.size))
            parts = {True: none, False: none if old is None else old.steady[i]}
            here = {f.site.name: f for f in self.in_scan if f.segment == segment}
            for f in (here[name] for name in self.order if name in here):
                if not density_of(f).gaussian:
                    raise StructureError("only Gaussian sites can follow a decision",
                                         site=f.site.name, found=f.family, expected="normal, mvn",
                                         fix="give it an encoder, jp.Amortized"
                                         if f.scored else "move it out of the scan")
                if old is not None and not f.curved:
                    if f.value is not None:
                        sites.append((f.site.name, before[f.site.name]))
                    continue
                site = site_map(self.engine, c, f, bound, moments)
                logdet = self.engine.energy.noise(f, bound.arrays[f.name], stats)[1]
                if f.value is None:
                    parts[bool(f.curved)] += to_chain_plates(
                        cost(site, split.later[f.name], logdet), f, self.block, 2)
                else:
                    sites.append((f.site.name, self._node(f, site, logdet, bound, split)))
            nodes.append((segment.length, sites))
            costs.append(parts[True] + parts[False])
            steady.append(parts[False])
        return Affine(nodes, costs, steady)

    def _node(self, f: Factor, site: SiteMap, logdet: Array, bound: Evidence, split: Split) -> Node:
        name, n, plates = f.site.name, f.dims, len(self.block.batch)
        where = self.c.of(Ref(name, 0))
        rule, form = own_conditional(site, where), jnp.zeros((1, *(1,) * plates, 1, 1))
        given = value = jnp.zeros((1, *(1,) * plates, n))
        fix = None
        if name in split.present:
            here = split.present[name][f.segment.steps]
            given = here.astype(given.dtype)
            value = jnp.where(here, bound.values[name][f.segment.steps], 0.0)
        if name in self.decide:
            form = cost(site, jnp.ones((1, *(1,) * plates, 1)), logdet)
        elif name in split.present:
            fix = fix_of(site, given, value)
            rule, form = told(rule, fix), cost_of_data(site, logdet, given)
        return Node(rule, form, given, value, self._past(f, split.first), fix)

    def backward(self, nodes: list, costs: list, first: Array, policy: Policy | None = None,
                 watched: bool = True) -> Solved:
        """From the last step to the first decision, taken at the steps `first`: each decision the
        best one, or as a `policy` takes it; `watched`: with what rounding takes."""
        c, found = self.c, []
        inner, size = slice(0, 1 + c.state), (*self.block.batch, c.size, c.size)
        whole = Form(jnp.zeros(size), jnp.zeros(size) if watched else None)
        within = lambda x: x[..., inner, inner]
        carry = jax.tree.map(within, whole), whole.Q, (jnp.zeros(()),) * 2
        opening = jnp.arange(self.length).reshape((-1, *(1,) * first.ndim)) == first
        end = self.length
        rules = policy or [{} for _ in nodes]
        for (steps, sites), total, mine in zip(nodes[::-1], costs[::-1], rules[::-1]):
            def step(carry: tuple, inputs: Any, sites: list = sites) -> tuple[Any, Any]:
                (V, value, (tied, squares)), (total, here, mine, opens) = carry, inputs
                form = jax.tree.map(c.before, V)
                form = form._replace(Q=form.Q + total)
                gains = {}
                for (name, _), node in zip(sites[::-1], here[::-1]):
                    where = c.of(Ref(name, 0))
                    if name in mine:
                        new = followed(form, node, mine[name], where)
                    elif name in self.decide:
                        new, gains[name], (most, square) = decision(form, node, where)
                        tied, squares = jnp.maximum(tied, most), squares + square
                    else:
                        new = average(form, node, where)
                    form = new.where(node.past, form)
                value = jnp.where(opens[..., None, None], form.Q, value)
                V = jax.tree.map(lambda x: symmetric(within(x)), form)
                return (V, value, (tied, squares)), gains

            inputs = (total, [node for _, node in sites], mine, opening[end - steps:end])
            carry, gains = over_time(step, carry, inputs, steps, True)
            found.insert(0, gains)
            end -= steps
        return Solved(carry[1], found, carry[2])

    def precisions(self, data: dict[str, Array], moments: dict) -> dict[str, Array]:
        """By site of the chain the largest precision that it has where it counts."""
        bound, found = self.engine.evidence(data), {}
        stats = self.engine.stats(moments, bound.clamps)
        for f in self.in_scan:
            arrays = bound.arrays[f.name]
            P, _ = self.engine.energy.noise(f, arrays, stats)
            P = P if P.ndim == arrays.weight.ndim else diagonal(P)
            P = (P.max(-1) * arrays.weight.max(-1)).max()
            found[f.site.name] = jnp.maximum(P, found.get(f.site.name, 0.0))
        return found


class Affine(NamedTuple):
    """A program that is affine, or linearised: by segment (steps, latent sites of a step in program
    order), the summed costs of a step, and those `steady` ones that no path changes."""

    nodes: list[tuple[int, list[tuple[str, Node]]]]
    costs: list[Array]
    steady: list[Array]


class Solved(NamedTuple):
    """What a pass backward finds: the value (*plates, H, H) at the first decision, a form in h of
    its step; the policy; how many eps of the decisions' covariances rounding takes."""

    value: Array
    policy: Policy
    tied: tuple[Array, Array]
