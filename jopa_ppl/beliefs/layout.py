"""Arrays of sites, seen as vectors over plates, and back."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import jax.numpy as jnp
from jax import Array

from jopa_ppl.program.program import Plate, Site


def split(array: Array, site: Site, local: Sequence[Plate]) -> Array:
    """(*lead, *site.shape) -> (*lead, *local plates, dims).

    Args:
        site: the array's; local: the plates that its vectors stand apart over.
    """
    lead = array.ndim - len(site.shape)
    first = (*range(lead), *(lead + p.axis for p in local))
    rest = (i for i in range(array.ndim) if i not in first)
    moved = array.transpose(*first, *rest)              # of NumPy's or JAX's, as it is one of them
    return moved.reshape((*moved.shape[:lead + len(local)], -1))


def join(vector: Array, site: Site, local: Sequence[Plate], lead: int = 0) -> Array:
    """(*lead, *local plates or 1s, dims) -> (*lead, *site.shape), broadcast over the plates.

    Args:
        site: the vectors'; local: the plates that they stand apart over.
        lead: number of axes in front of these.
    """
    skip = {p.axis for p in local}
    rest = [n for i, n in enumerate(site.shape) if i not in skip]
    array = vector.reshape((*vector.shape[:lead + len(local)], *rest))
    array = jnp.moveaxis(array, range(lead, lead + len(local)), [lead + p.axis for p in local])
    return jnp.broadcast_to(array, (*array.shape[:lead], *site.shape))


def dims(site: Site, local: Sequence[Plate]) -> int:
    """Numbers per element of the plates."""
    return prod(site.shape) // prod(p.size for p in local)


def align(array: Array, lead: int, have: Sequence[str], want: Sequence[str], tail: int) -> Array:
    """Put the plate axes of (*lead, *have, *tail) in the order `want`, size 1 where absent.

    Args:
        array: (*lead, *have, *tail), `lead` and `tail` axes in front and behind.
        have: names of its plates, in order; want: those of the result, `have` among them.
    """
    order = [have.index(p) for p in want if p in have]
    array = jnp.transpose(array, (*range(lead), *(lead + i for i in order),
                                  *range(array.ndim - tail, array.ndim)))
    for i, plate in enumerate(want):
        if plate not in have:
            array = jnp.expand_dims(array, lead + i)
    return array


def take(array: Array, pieces: Sequence[tuple[int, int]], axes: Sequence[int]) -> Array:
    """The given pieces along each of some axes: slices, so that gradients are pads instead of
    scatters.

    Args:
        array: of any shape.
        pieces: (start, size) of each, in the order of the result; axes: counted from the end.
    """
    for axis in axes:
        merged: list[list[int]] = []
        for start, size in pieces:
            if merged and merged[-1][1] == start:
                merged[-1][1] = start + size
            else:
                merged.append([start, start + size])
        if len(merged) == 1 and merged[0] == [0, array.shape[axis]]:
            continue
        index = [slice(None)] * array.ndim
        parts = []
        for start, stop in merged:
            index[axis] = slice(start, stop)
            parts.append(array[tuple(index)])
        array = parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis)
    return array
