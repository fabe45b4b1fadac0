"""Where the sites of a chain's step lie on one vector h, and their residuals as rows on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jopa_ppl.beliefs import Belief, ChainBelief
from jopa_ppl.beliefs.layout import align
from jopa_ppl.engine.energy import Energy
from jopa_ppl.engine.evidence import FactorArrays, Slot
from jopa_ppl.graph.factor import Factor
from jopa_ppl.linalg.coefficients import Coefficients, with_constant
from jopa_ppl.program.refs import Ref


class Coordinates:
    """Where sites lie in h."""

    def __init__(self, belief: ChainBelief) -> None:
        self.belief = belief
        self.k, self.width = belief.k, belief.width
        self.head_dims = 0 if belief.seeds else sum(n for _, n in belief.head_at.values())
        self.state = self.head_dims + self.k * self.width
        self.size = 1 + self.state + self.width

    def of(self, ref: Ref) -> np.ndarray:
        """Indices of a latent of the chain in h."""
        if ref.back is None:
            start, size = self.belief.head_at[ref.site]
            start += 1
        else:
            at, size = self.belief.node[ref.site]
            start = 1 + self.head_dims + (self.k - ref.back) * self.width + at
        return np.arange(start, start + size)

    def shift(self) -> np.ndarray:
        """Indices in h_t of the state of step t + 1 (with the leading 1)."""
        nodes = np.arange(1 + self.head_dims + self.width, self.size)
        return np.concatenate([np.arange(1 + self.head_dims), nodes])

    def before(self, form: Array) -> Array:
        """A form in (1, state of step t + 1) as one in h_t, (.., H, H): zero on what it forgets."""
        return with_zeros(form, 1 + self.head_dims, self.width, (-2, -1))


def rows(coordinates: Coordinates, factor: Factor, arrays: FactorArrays, table: Sequence[Slot]
         ) -> Coefficients:
    """The residual of a site as rows on h, (*batch|1, n, slots.., H), from its numbers and the
    slots that they are about.

    Args:
        coordinates: of the chain.
        factor: of a site of its scan; arrays: its numbers.
        table: its slots, the chain's among them or not; those of other blocks stay axes of K.
    """
    names = next((n for b, n in table if b is coordinates.belief), [])
    q = sum(len(coordinates.of(n)) for n in names)
    known, offset = arrays.known, arrays.offset

    def without_known(K: Array) -> Array:
        if not known.shape[-1]:
            return K[..., :1 + q]
        seen = known.reshape((*known.shape[:-1], *(1,) * (K.ndim - known.ndim), known.shape[-1]))
        return with_constant(K[..., :1 + q], (K[..., 1 + q:] * seen).sum(-1))

    K = arrays.K.on_h(without_known)
    if factor.value is None:
        K = K.plus(offset)
    where = np.concatenate([[0], *(coordinates.of(n) for n in names)]).astype(int)
    spread = np.zeros((len(where), coordinates.size))
    spread[np.arange(len(where)), where] = 1
    return K.on_h(lambda K: jnp.einsum("...l,lh->...h", K, spread))


def tied(energy: Energy, block: Belief, mask: Any, arrays: dict[str, FactorArrays]) -> Any:
    """The mask of a chain with how its members follow that are certain given the rest.

    Args:
        energy: of the program; block: the chain.
        mask: what of the chain is inferred.
        arrays: the numbers of every factor, by name.

    Returns:
        the mask itself where nothing of the chain is certain, else what `Belief.tied` makes of it.
    """
    found: dict[str, list[Array]] = {}
    for f in energy.graph.factors:
        if f.site.name not in block.members or not f.site.rules.certain:
            continue
        c, table = Coordinates(block), energy.slots[f.name]
        K = -rows(c, f, arrays[f.name], table).at_mean(())
        K = align(K, 1, [p.name for p in f.plates], block.plates, 2)
        K = K.at[..., c.of(f.site.ref())].set(0.0)
        shape = (f.segment.length, *block.batch, *K.shape[-2:])
        found.setdefault(f.site.name, []).append(jnp.broadcast_to(K, shape))
    if not found:
        return mask
    return block.tied(mask, {n: jnp.concatenate(x) for n, x in found.items()}, c.head_dims)


def with_zeros(array: Array, at: int, count: int, axes: Sequence[int]) -> Array:
    """An array with `count` zeros put in at a place along each of the axes.

    Args:
        array: of any shape; at: the place before which they stand.
        count: how many, 0 for none; axes: along each of which.
    """
    for axis in axes if count else ():              # a scatter goes element by element
        kept, rest = jnp.split(array, [at], axis)
        none = jnp.zeros_like(jax.lax.slice_in_dim(array, 0, 1, axis=axis))
        array = jnp.concatenate([kept, *[none] * count, rest], axis)
    return array
