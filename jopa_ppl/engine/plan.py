"""Planning: decisions minimise the free energy while states follow their prediction.

The first decision is the first element of a site of `decide` that is not data. What the program
draws before it is the past: with all that is data there, actions that are given included, it is
evidence about the present state, which no goal bends. What comes after it is the future:

    F  =  -log p(data of the past)
          + E[ -log p(data of the future) ]  +  E[ KL(q(u | past) || p(u)) ],

minimised over q(u | states so far), with q(x_{t+1} | x_t, u_t) = p(x_{t+1} | x_t, u_t): states may
not bend, only actions; p(u) is the prior of what is free, given the rest of its site. Data of the
future are frames and goals, and what is given of actions, disturbances or states there: each has
its log-density in F once, as evidence or as expected cost. Every element of the chain's plates has
a first decision of its own.

Backward over the steps with a quadratic value (see `value.py`): an observed site adds its expected
-log p, a site drawn by nature is averaged out, a decision is minimised out. For known dynamics this
is stochastic LQR, whatever their noise; for uncertain ones the expectations use second moments,
exact for dynamics drawn afresh at each step, and -log p(data of the past) is its bound under
beliefs about what is outside the scan, which are used as they stand (`jp.given`).

Source: Todorov 2009; Levine 2018, "Reinforcement learning and control as probabilistic inference",
section 3 (why states must follow their prediction).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from jopa_ppl.beliefs import Belief
from jopa_ppl.beliefs.layout import align
from jopa_ppl.engine.complete import complete
from jopa_ppl.engine.densities import density_of
from jopa_ppl.engine.engine import Engine, Evidence, State
from jopa_ppl.engine.evidence import FactorArrays
from jopa_ppl.engine.forward import Conditional, over_time, own_conditional, roll, settled
from jopa_ppl.engine.rounding import Digits
from jopa_ppl.engine.steps import Coordinates, SiteMap, site_map, to_chain_plates
from jopa_ppl.engine.value import (
    Form,
    Node,
    average,
    cost,
    cost_of_data,
    decision,
    told,
)
from jopa_ppl.errors import SiteError, StructureError, names
from jopa_ppl.graph.factor import Factor
from jopa_ppl.linalg.families import diagonal, symmetric
from jopa_ppl.program.refs import Ref


class Plan(NamedTuple):
    """Moments of the sites of every step: (T, *plates, w) and (T, *plates, w, w).

    gains: by context, for every decision its gain on h and its covariance; told: for every other
    site that is data in part, where it is data (.., n) and its values.
    """

    mean: Array
    cov: Array
    gains: list[dict[str, tuple[Array, Array]]]
    told: list[dict[str, tuple[Array, Array]]]

    def about(self, block: Belief) -> bool:
        """Whether it is the plan of this chain, and not of another one."""
        return self.gains[0].keys() <= set(block.variables)


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
        self.block = block
        self.c = Coordinates(self.block)
        scan = graph.program.scans[block.scan]
        self.contexts = graph.reader.contexts(scan)
        self.length, self.order = scan.length, list(scan.sites)
        self.in_scan = [f for f in engine.energy.touching(block) if f.context.scan == block.scan]
        # First states that are not of the chain are used as they are: no evidence may tell of them.
        self.apart = sorted(graph.reader.heads(scan) & graph.variables.keys() - {*block.members})
        self.of_apart = [f for f in graph.factors if f.site.name not in self.apart
                         and {r.site for r in f.latents} & {*self.apart}]
        for f in self.in_scan:
            if f.fixed or f.curved:
                what = "a discrete latent" if f.fixed else f.reason
                raise StructureError("no plan goes through it", site=f.site.name,
                                     found=what, expected="states that follow by an affine map",
                                     fix="linearise it about a trajectory and pass A_t, B_t, c_t "
                                         "as inputs; or make the discrete latent data")
        for f in graph.factors:
            chains = [b.name for b, _ in engine.energy.slots[f.name]
                      if b is not None and b.scan is not None]
            if len(chains) > 1:
                raise StructureError("planning needs one chain", site=f.site.name,
                                     found=f"chains {chains}", expected="one chain",
                                     fix="join them: VMP(..., blocks=[(...)])")

    # -- evidence and preference -----------------------------------------------------------------

    def _times(self, f: Factor) -> Array:
        ctx = f.context
        return jnp.arange(ctx.first, self.length) if ctx.at is None else jnp.array([ctx.at])

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
        """Where a factor stands before the first decision: (steps of its context, *its plates)."""
        plates = [p.name for p in f.plates]
        place = len(self.order) * self._times(f) + self.order.index(f.site.name)
        return place.reshape((-1, *(1,) * len(plates))) < align(
            first, 0, self.block.plates, plates, 0)

    def _split(self, arrays: dict[str, FactorArrays], present: dict[str, Array]
               ) -> tuple[dict[str, FactorArrays], dict[str, Array], Split]:
        """Arrays and data of the past alone, and what they leave to the future."""
        first, later, evidence, told = self._first(present), {}, dict(arrays), dict(present)
        for f in self.in_scan:
            name, bulk = f.name, f.context.at is None
            past = self._past(f, first)
            if f.value is None:
                weight = arrays[name].weight if bulk else arrays[name].weight[None]
                later[name] = jnp.where(past[..., None], 0.0, weight)
                weight = jnp.where(past[..., None], weight, 0.0)
                evidence[name] = arrays[name]._replace(weight=weight if bulk else weight[0])
            elif f.site.name in present:
                at = self._times(f)
                here = told[f.site.name]
                told[f.site.name] = here.at[at].set(here[at] & past[..., None])
        return evidence, told, Split(first, later, present)

    def run(self, data: dict[str, Array], history: Array) -> tuple[Evidence, State, Array, Plan]:
        """Evidence, then backward and forward: one pass, nothing iterates."""
        engine, split = self.engine, None

        def weigh(arrays: dict[str, FactorArrays], present: dict[str, Array]
                  ) -> tuple[dict[str, FactorArrays], dict[str, Array]]:
            nonlocal split
            *both, split = self._split(arrays, present)
            return tuple(both)

        bound = engine.bind(data, weigh)
        goal = jnp.stack([(w > 0).any() for w in split.later.values()] or [False]).any()
        free = (split.first < self.length * len(self.order)).any()
        apart = jnp.stack([(bound.arrays[f.name].weight > 0).any() for f in self.of_apart]
                          or [False]).any()
        bound = bound._replace(checks={**bound.checks, "goal": goal, "free": free, "apart": apart})
        moments = engine.start(None, bound).moments
        digits = None
        for block in engine.graph.blocks:
            if block.scan is not None:
                moments, found = engine.measured_update(block, engine.energy.touching(block),
                                                        moments, bound)
                digits = found if block is self.block else digits
        nodes, costs = self._nodes(bound, moments, split)
        step = split.first // len(self.order)
        value, gains, tied = self._backward(nodes, costs, step)
        rules = [(steps, [(self.c.of(Ref(name, 0)),
                           Conditional(*found[name]) if name in found else node.rule)
                          for name, node in sites])
                 for (steps, sites), found in zip(nodes, gains)]
        past = settled(engine, self.block, *complete(engine, moments, bound, (self.block,)))
        mean, cov, second = roll(past, rules, self.c, step)
        f = engine.free_energy(moments, bound) + 0.5 * jnp.sum(value * second)
        decisions = Digits(tied[0], jnp.sqrt(tied[1]), jnp.zeros(()))
        measured = Digits(*map(jnp.stack, zip(digits, decisions)))
        told = [{name: (node.given, node.value) for name, node in sites
                 if name in split.present and name not in self.decide} for _, sites in nodes]
        state = State(moments, f, jnp.ones((), int), jnp.where(jnp.isfinite(f), -1, 0),
                      jnp.ones((), bool), measured)
        return bound, state, history.at[0].set(f), Plan(mean, cov, gains, told)

    # -- backward --------------------------------------------------------------------------------

    def _nodes(self, bound: Evidence, moments: dict, split: Split) -> tuple[list, list]:
        """By context: (steps, latent sites of a step in program order), and the summed costs."""
        nodes, costs = [], []
        c, stats = self.c, self.engine.stats(moments, bound.clamps)
        for ctx in self.contexts:
            sites, total = [], jnp.zeros((1, *(1,) * len(self.block.batch), c.size, c.size))
            here = {f.site.name: f for f in self.in_scan if f.context == ctx}
            for f in (here[name] for name in self.order if name in here):
                if not density_of(f).gaussian:
                    raise StructureError("only Gaussian sites can follow a decision",
                                         site=f.site.name, found=f.family, expected="normal, mvn",
                                         fix="give it an encoder, jp.Amortized"
                                         if f.scored else "move it out of the scan")
                site = site_map(self.engine, c, f, bound, moments)
                logdet = self.engine.energy.noise(f, bound.arrays[f.name], stats)[1]
                logdet = logdet if ctx.at is None else logdet[None]
                if f.value is None:
                    total = total + to_chain_plates(cost(site, split.later[f.name], logdet), f,
                                                    self.block, 2)
                else:
                    sites.append((f.site.name, self._node(f, site, logdet, bound, split)))
            nodes.append((self.length - ctx.first if ctx.at is None else 1, sites))
            costs.append(total)
        return nodes, costs

    def _node(self, f: Factor, site: SiteMap, logdet: Array, bound: Evidence, split: Split) -> Node:
        name, n, plates = f.site.name, f.dims, len(self.block.batch)
        where = self.c.of(Ref(name, 0))
        rule, form = own_conditional(site, where), jnp.zeros((1, *(1,) * plates, 1, 1))
        given = value = jnp.zeros((1, *(1,) * plates, n))
        if name in split.present:
            here = split.present[name][self._times(f)]
            given = here.astype(given.dtype)
            value = jnp.where(here, bound.values[name][self._times(f)], 0.0)
        if name in self.decide:
            form = cost(site, jnp.ones((1, *(1,) * plates, 1)), logdet)
        elif name in split.present:
            rule = told(site, rule, given, value)
            form = cost_of_data(site, logdet, given)
        return Node(rule, form, given, value, self._past(f, split.first))

    def _backward(self, nodes: list, costs: list, first: Array
                  ) -> tuple[Array, list, tuple[Array, Array]]:
        """The value (*plates, H, H) at the first decision, a form in h of its step `first`, by
        context the decisions' gains, and how many eps of their covariances rounding takes."""
        c, found = self.c, []
        shift, inner, size = c.shift(), slice(0, 1 + c.state), (*self.block.batch, c.size, c.size)
        whole = Form(jnp.zeros(size), jnp.zeros(size))
        carry = Form(*(x[..., inner, inner] for x in whole)), whole.Q, (jnp.zeros(()),) * 2
        opening = jnp.arange(self.length).reshape((-1, *(1,) * first.ndim)) == first
        end = self.length
        for (steps, sites), total in zip(nodes[::-1], costs[::-1]):
            def step(carry: tuple, inputs: Any, sites: list = sites) -> tuple[Any, Any]:
                (V, value, (tied, squares)), (total, here, opens) = carry, inputs
                Q, lost = (x.at[..., shift[:, None], shift[None, :]].set(v)
                           for x, v in zip(whole, V))
                form = Form(Q + total, lost)
                gains = {}
                for (name, _), node in zip(sites[::-1], here[::-1]):
                    where = c.of(Ref(name, 0))
                    if name in self.decide:
                        new, gains[name], (most, square) = decision(form, node, where)
                        tied, squares = jnp.maximum(tied, most), squares + square
                    else:
                        new = average(form, node, where)
                    form = new.where(node.past, form)
                value = jnp.where(opens[..., None, None], form.Q, value)
                V = Form(*(symmetric(x[..., inner, inner]) for x in form))
                return (V, value, (tied, squares)), gains

            inputs = (total, [node for _, node in sites], opening[end - steps:end])
            carry, gains = over_time(step, carry, inputs, steps, True)
            found.insert(0, gains)
            end -= steps
        return carry[1], found, carry[2]

    def precisions(self, data: dict[str, Array], moments: dict) -> dict[str, Array]:
        """By site of the chain the largest precision that it has where it counts."""
        bound, found = self.engine.bind(data), {}
        for f in self.in_scan:
            site = site_map(self.engine, self.c, f, bound, moments)
            P = site.precision if site.independent else diagonal(site.precision)
            P = (P.max(-1) * bound.arrays[f.name].weight.max(-1)).max()
            found[f.site.name] = jnp.maximum(P, found.get(f.site.name, 0.0))
        return found
