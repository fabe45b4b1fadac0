"""Latents whose belief is about u, x = T(u): what is told of them is about x."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from numpyro.distributions.transforms import Transform

from jopa_ppl.engine.evidence import read_series
from jopa_ppl.engine.marginals import Marginal
from jopa_ppl.graph.factor import Graph

POINTS = 64


def transforms(graph: Graph, data: dict[str, Array]) -> dict[str, Transform]:
    """T by latent site that has one, from the data of a run."""
    found = {n: v.site.transform for n, v in graph.variables.items()
             if v.site.transform is not None}
    if not found:
        return {}
    known = {f"known/{n}": x for n, x in read_series(graph, data)[0].items()}
    return {n: t.tree.unflatten(graph.program.evaluate(t.leaves, {**data, **known}))
            for n, t in found.items()}


def transformed(m: Marginal, transform: Transform) -> Marginal:
    """The marginal of x = T(u): moments by Gauss-Hermite points of every element, parts those of u.
    """
    z, w = np.polynomial.hermite_e.hermegauss(POINTS)
    w = w / w.sum()
    u = m.mean + jnp.sqrt(m.variance) * z.reshape((-1, *(1,) * m.mean.ndim))
    x = jnp.stack([transform(row) for row in u])
    mean = jnp.tensordot(w, x, 1)
    return m._replace(mean=mean, variance=jnp.tensordot(w, (x - mean) ** 2, 1))


def outside(draws: Mapping[str, Array], maps: Mapping[str, Transform]) -> dict[str, Array]:
    """Draws of u as draws of x."""
    return {n: maps[n](x) if n in maps else x for n, x in draws.items()}


def inside(draws: Mapping[str, Array], maps: Mapping[str, Transform], lead: int
           ) -> tuple[dict[str, Array], Any]:
    """Draws of x (lead axes in front) as draws of u, and log|dT/du| of them all."""
    found, total = dict(draws), 0.0
    for name, transform in maps.items():
        found[name] = transform.inv(draws[name])
        change = transform.log_abs_det_jacobian(found[name], draws[name])
        total = total + change.reshape((*change.shape[:lead], -1)).sum(-1)
    return found, total
