"""Block-tridiagonal Gaussians: marginals, log-normaliser and joint samples.

The density is proportional to exp(-1/2 z' J z + v' z), z = (z[0], .., z[G-1]), with

    J[g, g] = diag[g],    J[g+1, g] = off[g] = J[g, g+1]',    zero elsewhere.

Shapes: diag (G, *batch, D, D), off (G-1, *batch, D, D), v (G, *batch, D). Two methods give the
same numbers: "sequential" eliminates one block after the other (G steps), "parallel" cuts the
chain in sqrt(G) chunks and eliminates within all of them at once (4 sqrt(G) steps; the partition
method, Wang 1981). Full odd-even reduction has fewer steps, but compiles log2 G different levels:
half a minute at G = 10,000. A J that is not positive definite gives NaN; nothing is added to its
diagonal.

Inside, the batch comes last: blocks are small and many, so the vector units of a CPU or a GPU
are better used across blocks than within one.
"""

import math
import os
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jopa_ppl.linalg.lanes import (
    cat,
    eliminate,
    from_lanes,
    multiplied,
    pad,
    symmetrised,
    to_lanes,
    transposed,
)

_SHORT = 128  # the parallel method hands a chain this short to the sequential one
METHODS = ("auto", "sequential", "parallel")


class Marginals(NamedTuple):
    """Moments of a block-tridiagonal Gaussian.

    mean (G, *batch, D) = J^-1 v; cov (G, *batch, D, D), the diagonal blocks of J^-1;
    cross (G-1, *batch, D, D), cross[g] = Cov(z[g+1], z[g]); logdet (*batch) = log|J|.
    """

    mean: Array
    cov: Array
    cross: Array
    logdet: Array


def marginals(diag: Array, off: Array, vector: Array, method: str = "auto") -> Marginals:
    """Means, covariances and neighbour covariances of a block-tridiagonal Gaussian.

    With z[o] | its neighbours ~ N(k - K z[neighbours], P^-1), P the block's precision when it is
    eliminated, the way back is

        Cov(z[o], z[n]) = -K S,    Cov(z[o]) = P^-1 + K S K',    S = Cov(z[neighbours]).

    Source: Rauch, Tung & Striebel 1965 in information form.

    Args:
        diag, off: the blocks of J, (G, *batch, D, D) and (G-1, *batch, D, D).
        vector: v, (G, *batch, D).
        method: one of `METHODS`; "auto" takes what is faster for these shapes on this device.

    Raises:
        ValueError: shapes that do not fit together, or an unknown method.
    """
    method = _check(diag, off, vector, method)
    run = _sequential if method == "sequential" else _parallel
    blocks = (to_lanes(x, 1) for x in (diag, off, vector[..., None]))
    mean, cov, cross, logdet = run(*blocks)
    return Marginals(from_lanes(mean, 1)[..., 0], from_lanes(cov, 1), from_lanes(cross, 1), logdet)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def log_normaliser(diag: Array, off: Array, vector: Array, method: str = "auto") -> Array:
    """Log of the integral of exp(-1/2 z' J z + v' z), one value per batch element.

        1/2 v' J^-1 v - 1/2 log|J| + G D / 2 log 2 pi

    Its derivative is made of the expected statistics: E[z] for v, -1/2 E[z z'] for diag and
    -E[z[g+1] z[g]'] for off.

    Args:
        diag, off, vector, method: as in `marginals`, which tells what is raised.

    Returns:
        (*batch).
    """
    return _log_normaliser_forward(diag, off, vector, method)[0]


def _log_normaliser_forward(diag, off, vector, method):
    m = marginals(diag, off, vector, method)
    const = vector.shape[0] * vector.shape[-1] * jnp.log(2 * jnp.pi)
    value = 0.5 * (jnp.sum(vector * m.mean, (0, -1)) - m.logdet + const.astype(vector.dtype))
    return value, m._replace(logdet=None)


def _log_normaliser_backward(method, m, ct):
    mean = m.mean
    ct_block = ct[..., None, None]
    second = m.cov + mean[..., :, None] * mean[..., None, :]
    neighbour = m.cross + mean[1:, ..., :, None] * mean[:-1, ..., None, :]
    return -0.5 * ct_block * second, -ct_block * neighbour, ct[..., None] * mean


log_normaliser.defvjp(_log_normaliser_forward, _log_normaliser_backward)


def sample(
    rng_key: Array,
    diag: Array,
    off: Array,
    sample_shape: tuple[int, ...] = (),
    method: str = "auto",
) -> Array:
    """Joint draws from N(0, J^-1), shape (*sample_shape, G, *batch, D).

    Each eliminated block is drawn given its neighbours, z[o] = L^-T eps - K z[neighbours] with
    P = L L'.

    Args:
        diag, off, method: as in `marginals`, which tells what is raised.
        sample_shape: of independent draws.
    """
    method = _check(diag, off, diag[..., 0], method)
    diag, off = to_lanes(diag, 1), to_lanes(off, 1)
    shape = (*diag.shape[:2], math.prod(sample_shape), *diag.shape[3:])
    noise = jax.random.normal(rng_key, shape, diag.dtype)
    run = _sequential if method == "sequential" else _parallel
    z = run(diag, off, noise, draw=True)[0]  # (G, D, draws, *batch)
    z = jnp.moveaxis(z, (2, 1), (0, -1))
    return z.reshape(*sample_shape, *z.shape[1:])


def _check(diag, off, vector, method):
    """The method to run; ValueError where the shapes do not fit together."""
    blocks, *batch, dim = vector.shape
    expected = (blocks, *batch, dim, dim), (max(blocks - 1, 0), *batch, dim, dim)
    if blocks < 1 or (diag.shape, off.shape) != expected:
        raise ValueError(
            f"a chain of {blocks} blocks with vector {vector.shape} needs diag {expected[0]} and "
            f"off {expected[1]}; found diag {diag.shape} and off {off.shape}"
        )
    if method not in METHODS:
        raise ValueError(f"method is one of {METHODS}, not {method!r}")
    if method == "auto":
        lanes = math.prod(batch)
        wins = _wins_on_cpu(blocks, dim, lanes) if jax.default_backend() == "cpu" else blocks >= 64
        method = "parallel" if wins else "sequential"
    return method


def _wins_on_cpu(blocks, dim, lanes):
    """Whether fewer steps of twice the work pay on a CPU: in long chains of small blocks, whose
    steps cost what starting their operations costs. XLA starts a loop's operations at once where
    all they touch is small: a block of one number, or what XLA_FLAGS lets it take for small."""
    at_once = "small_while_loop_byte_threshold" in os.environ.get("XLA_FLAGS", "")
    return blocks >= 500 and dim > 1 and lanes * dim**2 <= 64 and not at_once


# Blocks are (D, M, *lanes) (`lanes`); a scan's inputs lead with time.


def _forward(diag, following, rhs, left, draw):
    """Eliminate blocks in order, each coupled to the one after it and to one block on the left.

    diag, following (J[o, o+1]) and rhs lead with time; left (D, w, *lanes) is J[first, l], w = 0
    where there is no such block. Returns what is left for the block after the last (its losses
    [precision, rhs] and J[it, l]), l's own losses, and each block's (K, k, P^-1), log|P|.
    """
    d, w, columns = diag.shape[1], left.shape[1], 0 if draw else rhs.shape[2]

    def zeros(rows):
        return jnp.zeros((rows, rows + columns, *left.shape[2:]), left.dtype)

    def step(carry, xs):
        lost, left, left_lost = carry
        diag, following, rhs = xs
        known = rhs[:, :0] if draw else rhs - lost[:, d:]
        y, logdet = eliminate(diag - lost[:, :d], cat(left, following), known)
        gram = multiplied(transposed(y[:, : w + d]), y[:, :-d])
        back = transposed(y[:, -d:])  # L^-T
        k = multiplied(back, y)
        local = multiplied(back, rhs) if draw else k[:, w + d : -d]
        left_lost = left_lost + cat(gram[:w, :w], gram[:w, w + d :])
        carry = gram[w:, w:], -gram[w:, :w], left_lost
        return carry, ((k[:, : w + d], local, k[:, -d:]), logdet)

    ends, (pieces, logdet) = lax.scan(step, (zeros(d), left, zeros(w)), (diag, following, rhs))
    return *ends, pieces, logdet.sum(0)


def _backward(pieces, last, left):
    """Moments of the eliminated blocks, from the block after them and the one on the left.

    last = (z, Cov, Cov(it, l)), left = (z, Cov). Returns z, Cov, Cov(z[o+1], z[o]) for each
    block, and Cov(first, l).
    """

    def step(carry, xs):
        z, cov, cov_left = carry
        k, local, conditional = xs
        w = cov_left.shape[1]
        joint = cat(cat(left[1], transposed(cov_left)), cat(cov_left, cov), axis=0)
        z = local - multiplied(k, cat(left[0], z, axis=0))
        cross = -multiplied(k, joint)
        cov = symmetrised(conditional - multiplied(cross, transposed(k)))
        return (z, cov, cross[:, :w]), (z, cov, transposed(cross[:, w:]))

    (_, _, cov_left), moments = lax.scan(step, last, pieces, reverse=True)
    return *moments, cov_left


def _sequential(diag, off, rhs, draw=False):
    """Moments (or, with noise for rhs, draws in z) of a chain, one block after the other."""
    following = pad(jnp.swapaxes(off, 1, 2), 0, 1)
    *_, pieces, logdet = _forward(diag, following, rhs, diag[0, :, :0], draw)
    nothing = jnp.zeros_like(rhs[0]), jnp.zeros_like(diag[0]), diag[0, :, :0]
    z, cov, cross, _ = _backward(pieces, nothing, (rhs[0, :0], diag[0, :0, :0]))
    return z, cov, cross[:-1], logdet


def _parallel(diag, off, rhs, draw=False):
    """The same, all but the last block of each chunk eliminated in all chunks at once.

    The last blocks are a shorter chain of the same kind.
    """
    blocks, d = diag.shape[:2]
    if blocks <= 2:
        return _sequential(diag, off, rhs, draw)
    size = math.isqrt(blocks - 1) + 1
    chunks = -(-blocks // size)
    spare = chunks * size - blocks  # filled with blocks of their own, of unit precision

    def chunked(x):  # (chunks * size, D, M, *lanes) -> (size, D, M, chunks, *lanes)
        return jnp.moveaxis(x.reshape(chunks, size, *x.shape[1:]), 0, 3)

    def joined(x):
        return jnp.moveaxis(x, 3, 0).reshape(chunks * size, *x.shape[1:3], *x.shape[4:])[:blocks]

    eye = jnp.eye(d, dtype=diag.dtype).reshape(1, d, d, *(1,) * (diag.ndim - 3))
    eye = jnp.broadcast_to(eye, (spare, *diag.shape[1:]))
    diag, off, rhs = cat(diag, eye, axis=0), pad(off, 1, spare), pad(rhs, 0, spare)
    diag, off, rhs = map(chunked, (diag, off, rhs))  # off[m] = J[m, m - 1]
    lost, left, left_lost, pieces, logdet = _forward(
        diag[:-1], jnp.swapaxes(off[1:], 1, 2), rhs[:-1], off[0], draw
    )
    lost = lost + _shift(left_lost, -1)
    known = rhs[-1] if draw else rhs[-1] - lost[:, d:]
    short = (jnp.moveaxis(x, 2, 0) for x in (diag[-1] - lost[:, :d], left[:, :, 1:], known))
    z, cov, cross, rest = (_parallel if chunks > _SHORT else _sequential)(*short, draw)

    z, cov, cross = (jnp.moveaxis(x, 0, 2) for x in (z, cov, pad(cross, 1, 0)))
    moments = _backward(pieces, (z, cov, cross), (_shift(z, 1), _shift(cov, 1)))
    zs, covs, crosses, first = moments
    zs, covs = cat(zs, z[None], axis=0), cat(covs, cov[None], axis=0)
    crosses = cat(first[None], crosses, axis=0)
    return joined(zs), joined(covs), joined(crosses)[1:], rest + logdet.sum(0)


def _shift(x, by):
    """x[.., c - by, ..] along the axis of chunks, zero where there is none."""
    return pad(x[:, :, :-1], 1, 0, axis=2) if by > 0 else pad(x[:, :, 1:], 0, 1, axis=2)
