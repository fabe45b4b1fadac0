"""From data to the numbers of each factor: coefficients, offsets, weights. Once per run.

The coefficients of a residual are probed by `jax.jacfwd` at zero: exact, since the residual was
proved multi-affine. They are evaluated for every step or plate only where they differ there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import prod

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.linalg import solve_triangular

from jopa_ppl.beliefs.layout import align, dims, join, split
from jopa_ppl.engine.evidence import FactorArrays, Windows
from jopa_ppl.engine.reading import Source, by_step
from jopa_ppl.graph.factor import Factor, Graph
from jopa_ppl.linalg.coefficients import Tensor
from jopa_ppl.linalg.slopes import expand
from jopa_ppl.program.refs import Ref

# Parameters that are symmetric matrices.
SYMMETRIC = ("covariance_matrix", "precision_matrix", "rate_matrix", "scale_matrix")


def gaussian_numbers(factor: Factor, source: Source) -> FactorArrays:
    """The numbers of a factor with a residual."""
    graph, _, _, outer, series = source
    blocks, slots = zip(*source.slots[factor.name])
    site, timed = factor.site, factor.in_time
    names = [p.name for p in factor.plates]
    evaluate, weight = source.evaluator(factor), weight_of(factor, source)
    loc, noise = site.outputs["loc"], site.outputs[factor.noise_key]
    parts = {n: _part(graph, n) for n in (*factor.latents, *factor.knowns)}
    known = [_known(graph, factor, n, outer, series) for n in factor.knowns]
    known_array = _concat(known, (1,) * (timed + len(names)))

    def residual(step: Array | int, *vectors: Array) -> Array:
        values = {}
        for names_, vector in zip((*slots, factor.knowns), vectors):
            at = 0
            for n in names_:
                size, shaped = parts[n]
                values[n] = shaped(vector[at:at + size])
                at += size
        (mean,) = evaluate([loc], values, step)
        own = values[factor.value] if factor.value is not None else 0.0
        return split(own - mean, site, factor.plates)

    *others, main, seen = (sum(parts[n][0] for n in s) for s in (*slots, factor.knowns))

    def coefficients(step: Array | int) -> Array:
        fn = lambda *v: residual(step, *v[:-1], v[-1][:main], v[-1][main:])
        return expand(fn, [*others, main + seen])

    fits, noise_of_form = True, None
    if blocks[0] is not None and blocks[0].checked:
        K, fits, noise_of_form = blocks[0].own_coefficients(
            factor, partial(residual, 0), (main, seen),
            lambda: evaluate([site.outputs["row"], site.outputs["column"]], {}, 0))
    elif factor.curved:                                 # made at every belief (`Bent.linearised`)
        K = jnp.zeros(())
    else:
        K = by_step(factor, factor.varying_in_time, coefficients)
        for i, plate in enumerate(factor.plates):
            if plate.name not in factor.varying:
                K = jax.lax.slice_in_dim(K, 0, 1, axis=timed + i)
        K = Tensor(K)
    offset = own_value(factor, source)
    precision = logdet = None
    if noise_of_form is not None:
        precision, logdet = noise_of_form
    elif not (factor.noise or factor.spread):
        def data_noise(step: Array | int) -> tuple[Array, Array]:
            (given,) = evaluate([noise], {}, step)
            return to_precision(factor, symmetric_or_nan(given) if factor.noise_key in SYMMETRIC
                                else given)
        precision, logdet = by_step(factor, factor.noise_varying, data_noise)
    return FactorArrays(K, offset, weight, known_array, precision, logdet, evaluate.env, fits)


def _part(graph: Graph, ref: Ref) -> tuple[int, Callable[[Array], Array]]:
    """How many numbers an element of its plates has, and the whole made of these (of an input of
    the scan: all of it)."""
    if ref.is_input:
        shape = graph.program.shapes[ref.site]
        return prod(shape), lambda vector: vector.reshape(shape)
    site, local = graph.program.sites[ref.site], _local(graph, ref.site)
    size = dims(site, local)
    return size, lambda vector: join(vector.reshape((1,) * len(local) + (size,)), site, local)


def _local(graph: Graph, name: str) -> tuple:
    site = graph.program.sites[name]
    return tuple(p for p in site.axes if (site.name, p.name) not in graph.reader.dense)


def _concat(arrays: Sequence[Array], batch: tuple[int, ...]) -> Array:
    if not arrays:
        return jnp.zeros((*batch, 0))
    shape = jnp.broadcast_shapes(*(a.shape[:-1] for a in arrays))
    return jnp.concatenate([jnp.broadcast_to(a, (*shape, a.shape[-1])) for a in arrays], -1)


def _known(graph: Graph, factor: Factor, ref: Ref, outer: dict, series: list[Windows]) -> Array:
    """Values of an observed site or an input as part of the main slot, (*batch|1, dims)."""
    segment, want = factor.segment, [p.name for p in factor.plates]
    if ref.is_input:
        values = series[segment.scan].steps[ref.site][segment.earlier(ref.back)].astype(float)
        return values.reshape((segment.length, *(1,) * len(want), -1))
    site, local = graph.program.sites[ref.site], _local(graph, ref.site)
    have = [p.name for p in local]
    if site.scan is None:
        array = align(split(outer[site.name], site, local), 0, have, want, 1)
        return array[None] if factor.in_time else array
    values = series[site.scan].known[site.name][segment.earlier(ref.back)]
    return align(split(values, site, local), 1, have, want, 1)


def own_value(factor: Factor, source: Source, filler: Array | float = 0.0) -> Array:
    """The data of the site itself, (*batch, n); zeros where it is latent.

    Args:
        factor: of the site; source: the data of the run.
        filler: what stands where data are missing, which weigh nothing: any value that can be, of a
            shape that broadcasts to the site's.
    """
    site, segment = factor.site, factor.segment
    if not site.observed or site.partial or "value" not in site.outputs:
        return jnp.zeros((*source.batch(factor), factor.dims))
    if segment.scan is None:
        value = source.outer[site.name]
    else:
        value = source.series[segment.scan].known[site.name][segment.steps]
    value = jnp.where(jnp.isnan(value), filler, value)
    return split(value.astype(jnp.result_type(float)), site, factor.plates)


def weight_of(factor: Factor, source: Source) -> Array:
    """(*batch, n) where elements have weights of their own, else (*batch, 1)."""
    evaluate = source.evaluator(factor)
    site = factor.site
    batch = tuple(p.size for p in factor.plates)
    if not site.weighted:
        return jnp.ones((*source.batch(factor), 1))

    def one(step: Array | int) -> Array:
        weight = jnp.ones(())
        if "weight" in site.outputs:
            (weight,) = evaluate([site.outputs["weight"]], {}, step)
        if site.window is not None:
            at = step + factor.segment.start
            weight = jnp.where(site.nearest(at) == at, weight, 0.0)
        weight = weight.reshape((1,) * (len(site.shape) - weight.ndim) + weight.shape)
        axes = {p.axis for p in factor.plates}
        if all(n == 1 for i, n in enumerate(weight.shape) if i not in axes):
            moved = jnp.moveaxis(weight, [p.axis for p in factor.plates], range(len(axes)))
            return jnp.broadcast_to(moved.reshape((*moved.shape[:len(axes)], 1)), (*batch, 1))
        return split(jnp.broadcast_to(weight, site.shape), site, factor.plates)

    return by_step(factor, True, one)


def asymmetry(matrix: Array) -> Array:
    """Where a matrix differs from its transpose by more than single precision explains."""
    size = jnp.sqrt(jnp.abs(jnp.diagonal(matrix, axis1=-2, axis2=-1)))
    gap = jnp.abs(matrix - jnp.swapaxes(matrix, -1, -2))
    return gap > 1e-4 * size[..., :, None] * size[..., None, :]


def symmetric_or_nan(matrix: Array) -> Array:
    """The matrix; NaN where it is not symmetric, which the run then finds and reports."""
    return jnp.where(asymmetry(matrix), jnp.nan, matrix)


def to_precision(factor: Factor, noise: Array) -> tuple[Array, Array]:
    """(precision, log-precision), split by plates, from the parameter the user gave."""
    site = factor.site
    if factor.noise_key == "scale":
        scale = split(jnp.broadcast_to(noise, site.shape), site, factor.plates)
        return scale**-2, -2 * jnp.log(scale)
    n = noise.shape[-1]
    matrix = jnp.moveaxis(noise, [p.axis for p in factor.plates], range(len(factor.plates)))
    matrix = matrix.reshape((*matrix.shape[:len(factor.plates)], n, n))
    if factor.noise_key == "precision_matrix":
        chol = jnp.linalg.cholesky(matrix)
        return matrix, 2 * jnp.log(jnp.diagonal(chol, axis1=-2, axis2=-1)).sum(-1)
    chol = matrix if factor.noise_key == "scale_tril" else jnp.linalg.cholesky(matrix)
    eye = jnp.broadcast_to(jnp.eye(n, dtype=matrix.dtype), chol.shape)
    white = solve_triangular(chol, eye, lower=True)
    precision = jnp.swapaxes(white, -1, -2) @ white
    return precision, -2 * jnp.log(jnp.diagonal(chol, axis1=-2, axis2=-1)).sum(-1)
