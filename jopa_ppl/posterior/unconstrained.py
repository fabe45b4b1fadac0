"""Latents whose belief is about u, x = T(u): what is told of them is about x."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, random
from numpyro.distributions import Distribution
from numpyro.distributions.transforms import (
    AffineTransform,
    ComposeTransform,
    ExpTransform,
    IdentityTransform,
    SigmoidTransform,
    Transform,
)

from jopa_ppl.engine.marginals import Marginal
from jopa_ppl.engine.reading import read_series
from jopa_ppl.errors import JopaError
from jopa_ppl.graph.factor import Graph

POINTS, DRAWS = 64, 4096


def transforms(graph: Graph, data: Callable[[], dict[str, Array]]) -> dict[str, Transform]:
    """T by latent site that has one, from what `data` has of a run."""
    found = {n: v.site.transform for n, v in graph.variables.items()
             if v.site.transform is not None}
    if not found:
        return {}
    given = data()
    known = {f"known/{n}": x for n, x in read_series(graph, given)[0].items()}
    return {n: t.tree.unflatten(graph.program.evaluate(t.leaves, {**given, **known}))
            for n, t in found.items()}


def transformed(m: Marginal, transform: Transform, q: Distribution) -> Marginal:
    """The marginal of x = T(u), u ~ q: moments by Gauss-Hermite points of every element (where T
    mixes elements, by draws), parts those of u."""
    if transform.domain.event_dim:
        mean, variance = _by_draws(m.mean, m.parts["cov"], transform, q)
        return m._replace(mean=mean, variance=variance)
    z, w = np.polynomial.hermite_e.hermegauss(POINTS)
    w = w / w.sum()
    u = m.mean + jnp.sqrt(m.variance) * z.reshape((-1, *(1,) * m.mean.ndim))
    x = transform(u)
    mean = jnp.tensordot(w, x, 1)
    return m._replace(mean=mean, variance=jnp.tensordot(w, (x - mean) ** 2, 1))


def _by_draws(centre: Array, cov: Array, transform: Transform, q: Distribution
              ) -> tuple[Array, Array]:
    """Mean and variance of T(u), u ~ q of this mean and covariance (.., n, n).

    T's tangent at the mean, whose moments are known, serves as a control variate, with the weight
    that a regression gives it: an affine T is exact.
    """
    def tangent(du: Array) -> Array:
        return jax.jvp(transform, (centre,), (du,))[1]

    def corrected(x: Array, by: Array, known: Array) -> Array:
        """The mean of x, from draws of x and of `by`, whose mean is known."""
        gap = by - by.mean(0)
        size = (gap**2).sum(0)
        weight = (x * gap).sum(0) / jnp.where(size > 0, size, 1.0)
        return x.mean(0) - weight * (by.mean(0) - known)

    u = q.sample(random.key(0), (DRAWS,))
    x, line = transform(u), jax.vmap(tangent)(u - centre)
    columns = jnp.moveaxis(jnp.linalg.cholesky(cov), -1, 0)
    spread = (jax.vmap(tangent)(columns.reshape(-1, *centre.shape))**2).sum(0)
    mean = corrected(x, line, jnp.zeros_like(spread))
    square = (x - mean)**2
    variance = corrected(square, line**2, spread)
    return mean, jnp.where(variance > 0, variance, square.mean(0))


MAPS = {"real": IdentityTransform, "exp": ExpTransform, "sigmoid": SigmoidTransform}


def record(transform: Transform) -> dict[str, Any]:
    """A transform as files hold it: loc + scale * map(u), loc and scale of one shape.

    Raises:
        JopaError: it mixes elements, as that of a correlation matrix does.
    """
    if transform.domain.event_dim:
        raise JopaError("this belief cannot be saved", found=f"{type(transform).__name__}, which "
                        "mixes the elements of a latent", expected="latents whose elements are "
                        "real, positive or in an interval", fix="save draws of it: "
                        "posterior.to_arviz().to_netcdf(path)")
    parts = list(getattr(transform, "parts", [transform]))
    affine = parts.pop() if isinstance(parts[-1], AffineTransform) else AffineTransform(0.0, 1.0)
    (inner,) = parts or [IdentityTransform()]
    loc, scale = np.broadcast_arrays(*(np.asarray(x, np.float64)
                                       for x in (affine.loc, affine.scale)))
    return {"map": next(n for n, kind in MAPS.items() if type(inner) is kind),
            "shape": list(loc.shape), "loc": loc.ravel().tolist(), "scale": scale.ravel().tolist()}


def read(record: Mapping[str, Any]) -> Transform:
    """The transform that `record` told of."""
    inner = MAPS[record["map"]]()
    loc, scale = (jnp.asarray(np.reshape(record[k], record["shape"])) for k in ("loc", "scale"))
    return ComposeTransform([inner, AffineTransform(loc, scale, domain=inner.codomain)])


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
