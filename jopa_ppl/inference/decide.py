"""Planning: decisions minimise the free energy while states follow their prediction.

    min over q(u | past)   E[ -log p(what is observed later) ] + KL(q(u) || p(u)),
    with q(x_{t+1} | x_t, u_t) = p(x_{t+1} | x_t, u_t, theta): states may not bend, only actions.

Backward over the steps with a quadratic value V(h) = 1/2 h' Q h: an observed site adds its
expected -log p, a site drawn by nature is averaged out, a decision is minimised out (its belief is
Gaussian with precision Q_uu). For known dynamics this is stochastic LQR, whatever their noise; for
uncertain ones the expectations use second moments, exact for dynamics drawn afresh at each step.
What is observed before the first decision is evidence and shapes the belief about the present
state; what is observed after it is preference.

Source: Todorov 2009; Levine 2018, "Reinforcement learning and control as probabilistic inference",
section 3 (why states must follow their prediction).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jopa_ppl.errors import SiteError, StructureError, names
from jopa_ppl.graph.factor_graph import Factor
from jopa_ppl.inference.bind import FactorArrays
from jopa_ppl.inference.engine import Bound, Engine, State
from jopa_ppl.inference.forward import Follow, Smoothed, nature, over_time, roll, smoothed
from jopa_ppl.inference.steps import (
    Coordinates,
    SiteMap,
    at_mean,
    quadratic,
    site_map,
    to_chain_plates,
)
from jopa_ppl.messages.factors import LOG_2PI
from jopa_ppl.messages.families import symmetric


class Plan(NamedTuple):
    """Moments of the sites of every step: (T, *plates, w) and (T, *plates, w, w).

    gains: by context, for every decision its gain on h and its covariance; past: the evidence.
    """

    mean: Array
    cov: Array
    gains: list[dict[str, tuple[Array, Array]]]
    past: Smoothed


class Node(NamedTuple):
    """What the backward pass needs of one latent site at a step (time axis first)."""

    site: SiteMap
    prior: Array           # E[K' P K] with its normaliser: the cost of the site's own density
    given: Array           # (.., n): 1 where the decision is data
    value: Array


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
        if len(blocks) > 1 or block.kind != "chain" or set(decide) & set(block.head):
            raise StructureError(
                f"{names(decide)} cannot be decided upon", found=f"blocks {list(blocks)}",
                expected="actions drawn inside a scan, in one chain with its states",
                fix="draw the actions in the body of the scan")
        self.block, self.belief = block, engine.beliefs[block.name]
        self.c = Coordinates(self.belief)
        scan = graph.program.scans[block.scan]
        self.contexts = graph.reader.contexts(scan)
        self.length, self.order = scan.length, list(scan.sites)
        self.first = min(self.order.index(n) for n in decide)
        chosen = {f.name for f in graph.factors if f.context.scan == block.scan}
        self.in_scan = [f for f in graph.factors if f.name in chosen]
        for f in self.in_scan:
            others = [b.name for b, _ in engine.energy.slots[f.name]
                      if b is not None and b.kind == "chain" and b is not block]
            if others:
                raise StructureError("planning needs one chain", site=f.site.name,
                                     found=f"a second chain {others}", expected="one chain",
                                     fix="join them: VMP(..., blocks=[(...)])")

    # -- evidence and preference -----------------------------------------------------------------

    def _start(self, present: dict[str, Array]) -> Array:
        """The first step with a decision to take."""
        starts = []
        for name in self.decide:
            free = (~present[name] if name in present
                    else jnp.ones((self.length, 1), bool)).reshape((self.length, -1)).any(-1)
            starts.append(jnp.where(free.any(), jnp.argmax(free), self.length))
        return jnp.min(jnp.stack(starts))

    def _times(self, f: Factor) -> Array:
        ctx = f.context
        return jnp.arange(ctx.first, self.length) if ctx.at is None else jnp.array([ctx.at])

    def _split(self, f: Factor, weight: Array, start: Array) -> tuple[Array, Array]:
        """Weights of a factor as evidence and as preference (time axis in front)."""
        if f.context.at is not None:
            weight = weight[None]
        before = self.order.index(f.site.name) < self.first
        t = self._times(f)
        past = (t < start) | ((t == start) & before)
        past = past.reshape((-1, *(1,) * (weight.ndim - 1)))
        return jnp.where(past, weight, 0.0), jnp.where(past, 0.0, weight)

    def run(self, data: dict[str, Array], history: Array) -> tuple[Bound, State, Array, Plan]:
        """Evidence, then backward and forward: one pass, nothing iterates."""
        engine, c = self.engine, self.c
        kept: dict[str, Any] = {}

        def weigh(arrays: dict[str, FactorArrays], present: dict[str, Array]
                  ) -> dict[str, FactorArrays]:
            start = kept["start"] = self._start(present)
            kept["present"] = present
            out = dict(arrays)
            for f in self.in_scan:
                if not f.site.observed or f.site.partial:
                    continue
                past, later = self._split(f, arrays[f.name].weight, start)
                kept[f.name] = later
                out[f.name] = arrays[f.name]._replace(
                    weight=past if f.context.at is None else past[0])
            return out

        bound = engine.bind(data, weigh)
        goal = jnp.stack([(kept[f.name] > 0).any() for f in self.in_scan if f.name in kept]).any()
        bound = bound._replace(checks={**bound.checks, "goal": goal})
        moments = engine.start(None, bound).moments
        factors = engine.energy.touching(self.block)
        moments, digits = engine.measured_update(self.block, factors, moments, bound)
        evidence = engine.free_energy(moments, bound)

        nodes, costs = self._nodes(bound, moments, kept)
        value, gains = self._backward(nodes, costs, bound)
        start = kept["start"]
        steps = jnp.arange(self.length)
        plates = self.belief.batch
        alive = bound.clamps[self.block.name].free
        settled = jnp.broadcast_to((steps <= start).reshape((-1, *(1,) * len(plates))),
                                   (self.length, *plates))
        before = (steps < start).reshape((-1, *(1,) * (len(plates) + 1)))
        free = jnp.broadcast_to(before, (self.length, *plates, c.width)).astype(alive.dtype)
        past = smoothed(self.belief, moments[self.block.name], bound.clamps[self.block.name], c,
                        settled, free)
        mean, cov = roll(past, [(n, self._rules(sites, g)) for (n, sites), g in zip(nodes, gains)],
                         c)
        cost = self._expected(value, past, start)
        f = evidence + cost
        state = State(moments, f, jnp.ones((), int), jnp.where(jnp.isfinite(f), -1, 0),
                      jnp.ones((), bool), jax.tree.map(jnp.atleast_1d, digits))
        return bound, state, history.at[0].set(f), Plan(mean, cov, gains, past)

    # -- backward --------------------------------------------------------------------------------

    def _nodes(self, bound: Bound, moments: dict, kept: dict) -> tuple[list, list]:
        """By context: the latent sites of a step in program order, and the summed costs."""
        nodes, costs = [], []
        for ctx in self.contexts:
            sites, cost = [], jnp.zeros((1, *(1,) * len(self.belief.batch), self.c.size,
                                         self.c.size))
            here = {f.site.name: f for f in self.in_scan if f.context == ctx}
            for name in self.order:
                if name not in here:
                    continue
                f = here[name]
                if f.latents == () and f.site.observed:
                    continue
                if f.family not in ("normal", "mvn"):
                    raise StructureError("only Gaussian sites can follow a decision", site=name,
                                         found=f.family, expected="normal, mvn",
                                         fix="give it an encoder, jp.Amortized"
                                         if f.family == "likelihood" else "move it out of the scan")
                site = site_map(self.engine, self.c, f, bound, moments)
                if f.site.observed and not f.site.partial:
                    logdet = self._logdet(f, bound, moments)
                    cost = cost + to_chain_plates(
                        self._cost(site, kept[f.name], logdet, f), f, self.block, 2)
                elif name in self.belief.node:
                    sites.append((name, self._node(f, site, bound, moments, kept)))
            nodes.append((self.length - ctx.first if ctx.at is None else 1, sites))
            costs.append(cost)
        return nodes, costs

    def _logdet(self, f: Factor, bound: Bound, moments: dict) -> Array:
        stats = self.engine.stats(moments, bound.clamps)
        logdet = self.engine.energy.noise(f, bound.arrays[f.name], stats)[1]
        return logdet if f.context.at is None else logdet[None]

    def _cost(self, site: SiteMap, weight: Array, logdet: Array, f: Factor) -> Array:
        """2 E[-log p] as a quadratic form in h."""
        n = f.dims
        if f.family == "normal":
            form = quadratic(site.K, site.slots, site.precision * weight)
            weight = jnp.broadcast_to(weight, (*weight.shape[:-1], n))
            constant = (weight * (LOG_2PI - logdet)).sum(-1)
        else:
            form = quadratic(site.K, site.slots, site.precision * weight[..., None])
            constant = weight[..., 0] * (n * LOG_2PI - logdet)
        return form.at[..., 0, 0].add(constant) if form.shape[:-2] == constant.shape \
            else form + _corner(constant, form.shape[-1])

    def _node(self, f: Factor, site: SiteMap, bound: Bound, moments: dict, kept: dict) -> Node:
        name, n = f.site.name, f.dims
        one = jnp.ones((1, *(1,) * len(self.belief.batch), 1))
        prior = jnp.zeros((1,))
        given = jnp.zeros((1, *(1,) * len(self.belief.batch), n))
        value = given
        if name in self.decide:
            prior = self._cost(site, one, self._logdet(f, bound, moments), f)
        if name in kept["present"]:
            times = np.arange(f.context.first, self.length) if f.context.at is None else [
                f.context.at]
            clamp = bound.clamps[self.block.name]
            steps = self.belief.steps(clamp.value, name, 1)[np.array(times)]
            given = kept["present"][name][np.array(times)].astype(steps.dtype)
            value = steps
        return Node(site, prior, given, value)

    def _backward(self, nodes: list, costs: list, bound: Bound) -> tuple[Array, list]:
        """Value functions (T + 1, *plates, 1 + S, 1 + S) and, by context, the decisions' gains."""
        c = self.c
        shift = c.shift()
        inner = slice(0, 1 + c.state)
        V = jnp.zeros((*self.belief.batch, 1 + c.state, 1 + c.state))
        values, gains = [V[None]], []
        for (length, sites), cost in zip(nodes[::-1], costs[::-1]):
            def step(V: Array, inputs: Any, sites: list = sites) -> tuple[Array, Any]:
                cost, here = inputs
                Q = jnp.zeros((*self.belief.batch, c.size, c.size))
                Q = Q.at[..., shift[:, None], shift[None, :]].set(V) + cost
                found = {}
                for (name, _), node in zip(sites[::-1], here[::-1]):
                    where = c.of(f"{name}@0")
                    if name in self.decide:
                        Q, found[name] = decision(Q, node, where)
                    else:
                        Q = average(Q, node, where)
                V = symmetric(Q[..., inner, inner])
                return V, (V, found)

            V, (past, found) = over_time(step, V, (cost, [n for _, n in sites]), length, True)
            values.insert(0, past)
            gains.insert(0, found)
        return jnp.concatenate(values), gains

    def _rules(self, sites: list, gains: dict[str, tuple[Array, Array]]
               ) -> list[tuple[np.ndarray, Follow]]:
        rules = []
        for name, node in sites:
            where = self.c.of(f"{name}@0")
            rules.append((where, Follow(*gains[name]) if name in gains
                          else nature(node.site, where)))
        return rules

    def _expected(self, value: Array, past: Any, start: Array) -> Array:
        """E[V] of the state before the first decision."""
        V = value[start]
        mean = jnp.concatenate([jnp.ones((*past.state_mean.shape[1:-1], 1)),
                                past.state_mean[jnp.minimum(start, self.length - 1)]], -1)
        cov = past.state_cov[jnp.minimum(start, self.length - 1)]
        second = jnp.einsum("...i,...ij,...j->...", mean, V, mean)
        return 0.5 * jnp.sum(second + (V[..., 1:, 1:] * cov).sum((-1, -2)))


def _corner(constant: Array, size: int) -> Array:
    return constant[..., None, None] * jnp.zeros((size, size)).at[0, 0].set(1.0)


def _substitute(Q: Array, rows: Array, where: np.ndarray) -> Array:
    """The form after z = rows h: T' Q T with T the identity but for the rows of z."""
    T = jnp.broadcast_to(jnp.eye(Q.shape[-1], dtype=Q.dtype), Q.shape)
    T = T.at[..., where, :].set(rows)
    return jnp.einsum("...ab,...ac,...cd->...bd", T, Q, T)


def average(Q: Array, node: Node, where: np.ndarray) -> Array:
    """Average out a site that nature draws: z = M h + noise, M and the noise uncertain."""
    K = node.site.K.at[..., where].set(0.0)
    mean = -at_mean(K, node.site.slots)
    Q_zz = Q[..., where[:, None], where[None, :]]
    out = _substitute(Q, mean, where)
    if node.site.slots:
        flat = quadratic(K, node.site.slots, Q_zz) - quadratic(-mean, (), Q_zz)
        out = out + flat
    return out + _corner((Q_zz * node.site.covariance).sum((-1, -2)), Q.shape[-1])


def decision(Q: Array, node: Node, where: np.ndarray) -> tuple[Array, tuple[Array, Array]]:
    """Minimise a decision out; its gain on h and its covariance Q_uu^-1.

    Elements that are data are substituted first.
    """
    Q = Q + node.prior
    n = len(where)
    eye = jnp.eye(n, dtype=Q.dtype)
    free = 1.0 - node.given
    T = jnp.zeros((*node.given.shape[:-1], n, Q.shape[-1]))
    T = T.at[..., :, where].set(eye * free[..., None]).at[..., 0].set(node.given * node.value)
    Q = _substitute(Q, jnp.broadcast_to(T, (*Q.shape[:-2], *T.shape[-2:])), where)
    Q_uu = symmetric(Q[..., where[:, None], where[None, :]]) + node.given[..., None] * eye
    rows = Q[..., where, :].at[..., where].set(0.0)
    chol = jnp.linalg.cholesky(Q_uu)
    half = solve_lower(chol, rows)
    gain = -solve_lower(chol, half, transpose=True)
    white = solve_lower(chol, jnp.broadcast_to(eye, Q_uu.shape))
    cov = jnp.swapaxes(white, -1, -2) @ white * free[..., :, None] * free[..., None, :]
    logdet = 2 * jnp.log(jnp.diagonal(chol, axis1=-2, axis2=-1)).sum(-1)
    out = _substitute(Q, gain, where)
    # E[cost] of the noise of q(u) and its entropy: n - n log 2 pi e + log|Q_uu|, twice over.
    out = out + _corner(logdet - free.sum(-1) * LOG_2PI, Q.shape[-1])
    gain = gain.at[..., 0].add(node.given * node.value)
    return out, (gain, cov)


def solve_lower(chol: Array, rhs: Array, transpose: bool = False) -> Array:
    """Triangular solve with broadcast batch axes."""
    from jax.scipy.linalg import solve_triangular
    chol = jnp.broadcast_to(chol, (*rhs.shape[:-2], *chol.shape[-2:]))
    return solve_triangular(chol, rhs, lower=True, trans=1 if transpose else 0)
