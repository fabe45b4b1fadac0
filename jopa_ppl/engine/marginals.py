"""Marginal beliefs of every latent site, predicted ones included."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jopa_ppl.compilation import once
from jopa_ppl.engine.complete import complete
from jopa_ppl.engine.engine import Bound, Engine, State
from jopa_ppl.engine.forward import nature, roll, settled
from jopa_ppl.engine.layout import join
from jopa_ppl.engine.steps import Coordinates, site_map
from jopa_ppl.graph.factor import Variable
from jopa_ppl.linalg.families import wishart_variance


class Marginal(NamedTuple):
    """Belief about one site: its mean and variance (site shape) and its parameters."""

    family: str
    event_dim: int
    mean: Array
    variance: Array
    parts: dict[str, Array]


def marginals(variables: Mapping[str, Variable], shaped: dict) -> dict[str, Marginal]:
    """Marginals of all latent sites, from what `parts` found."""
    return {name: Marginal(v.family, _event_dim(v), *shaped[name])
            for name, v in variables.items()}


def compiled_parts(compiled: Any, state: State, bound: Bound, plan: Any) -> tuple[dict, dict]:
    """`parts` of a run that did not return them, compiled once per program."""
    if not hasattr(compiled, "marginals"):
        compiled.marginals = jax.jit(
            partial(parts, compiled.engine, arrays=getattr(compiled, "stored_arrays", None)),
            compiler_options=once())
    return compiled.marginals(state.moments, bound, plan)


def parts(engine: Engine, moments: dict, bound: Bound, plan: Any,
          arrays: Callable | None = None) -> tuple[dict, dict]:
    """By site, the arrays of its marginal (split by plates), and these in the shape of the site."""
    found = (arrays or partial(_arrays, engine))(moments, bound, plan)
    return found, {name: shaped_marginal(v, found[name])
                   for name, v in engine.graph.variables.items()}


def _event_dim(v: Variable) -> int:
    """Elements that are not local to a plate are one event, else the site's own event."""
    return {"gamma": 0, "wishart": 2}.get(v.family, len(v.site.shape) - len(v.local))


def shaped_marginal(v: Variable, parts: dict[str, Array]) -> tuple[Array, Array, dict[str, Array]]:
    """Mean and variance of the site's shape, and the parameters of its distribution."""
    if v.family == "gamma":
        return parts["a"] / parts["b"], parts["a"] / parts["b"]**2, parts
    if v.family == "wishart":
        scale = jnp.linalg.cholesky(parts["mean"] / parts["dof"][..., None, None])
        return parts["mean"], parts["variance"], {"dof": parts["dof"], "rate": parts["rate"],
                                                  "scale_tril": scale}
    site, local, lead = v.site, v.local, 0 if v.site.scan is None else 1
    mean, cov = join(parts["mean"], site, local, lead), parts["cov"]
    variance = join(jnp.diagonal(cov, axis1=-2, axis2=-1), site, local, lead)
    if sorted(p.axis for p in local) == list(range(len(local))):
        cov = jnp.moveaxis(cov, [lead + i for i in range(len(local))],
                           [lead + p.axis for p in local])
    return mean, variance, {"mean": mean, "cov": cov}


def _arrays(engine: Engine, moments: dict, bound: Bound, plan: Any) -> dict[str, dict[str, Array]]:
    found: dict[str, dict[str, Array]] = {}
    moments, bound = complete(engine, moments, bound)
    for block in engine.graph.blocks:
        belief, m = engine.beliefs[block.name], moments[block.name]
        if block.kind == "gamma":
            found[block.name] = {"a": m.a, "b": m.b}
        elif block.kind == "wishart":
            found[block.name] = {"dof": m.dof, "rate": m.rate, "mean": m.mean,
                                 "variance": wishart_variance(m)}
        elif block.kind != "chain":
            for name in block.members:
                mean, cov = belief.site(m, name)
                found[name] = {"mean": mean, "cov": cov}
        else:
            c = Coordinates(belief)
            planned = plan is not None and plan.about(block)
            mean, cov = (plan.mean, plan.cov) if planned else forward(engine, block, moments, bound)
            for name in block.variables:
                at = c.of(f"{name}@0") - (c.size - c.width)
                found[name] = {"mean": mean[..., at], "cov": cov[..., at[:, None], at[None, :]]}
            for name in block.head:
                first, spread = belief.site(m, name)
                found[name] = {"mean": first, "cov": spread}
    return found


def chain_segments(engine: Engine, block: Any, moments: dict, bound: Bound) -> list:
    """The latent sites of every step of a chain, by context: (steps, [(places in h, map)])."""
    belief = engine.beliefs[block.name]
    c = Coordinates(belief)
    scan = engine.graph.program.scans[block.scan]
    out = []
    for ctx in engine.graph.reader.contexts(scan):
        here = {f.site.name: f for f in engine.graph.factors if f.context == ctx}
        sites = [(c.of(f"{n}@0"), site_map(engine, c, here[n], bound, moments))
                 for n in scan.sites if n in block.variables]
        out.append((scan.length - ctx.first if ctx.at is None else 1, sites))
    return out


def forward(engine: Engine, block: Any, moments: dict, bound: Bound) -> tuple[Array, Array]:
    """Smoothed moments of the sites of every step, predicted ones where no observation reaches."""
    c = Coordinates(engine.beliefs[block.name])
    segments = [(n, [(w, nature(s, w)) for w, s in sites])
                for n, sites in chain_segments(engine, block, moments, bound)]
    return roll(settled(engine, block, moments, bound), segments, c)
