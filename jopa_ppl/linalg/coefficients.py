"""The coefficients of a residual, in whatever form they are held, and what is asked of them.

The residual of a Gaussian site is multi-affine in independent groups of latents ("slots"):

    r = offset + K . (1, v_1) x .. x (1, v_k) x (1, w, known)

with v_i the slots, w the main slot (the states of a step, say) and known data. With means m and
covariances S of the slots, and D_Q r the mixed derivative at the means,

    E[r r'] = r(m) r(m)' + sum over non-empty sets Q of slots  D_Q r [x_{i in Q} S_i] D_Q r'

All moments are centred, so that nothing large cancels. Along batch axes where only the main slot
differs (time, trajectories) its second moments are summed first: no d^2 x d^2 object per step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jopa_ppl.linalg.factors import Moments, augment, batch_einsum

Second = tuple[list[tuple[Array, str]], slice]     # operands with letters "l", "k", and which of L


class Coefficients:
    """K of a residual K h, K affine in each of k slots, h (L,) the rest: (1, w, known), or all that
    a step sees. A pytree of arrays; batch axes, of the factor's or of size 1, in front.

    A form answers the methods below; `Tensor` holds every number, and serves where nothing else is
    known of them. Who holds them asks no more: neither which form they have, nor what is in it. Of
    the prior of a block `square` alone is asked, of what links it to others all of them.

    Attributes:
        shape, ndim: those of the tensor, (*batch|1, n, 1 + p_1, .., 1 + p_k, L).
    """

    shape: tuple[int, ...]

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def at_mean(self, slots: Sequence[Any]) -> Array:
        """E[K], (*batch, n, L), for the moments of the k slots."""
        raise NotImplementedError

    def moving(self, slots: Sequence[Any], seconds: Sequence[Second], keep: Sequence[bool],
               diagonal: bool) -> Array | float:
        """What E[r r'] has more than at the means of the slots, summed over `seconds` of h.

        Args:
            slots: moments of the k slots.
            seconds: operands of `batch_einsum` whose product is a second moment of a slice of h.
            keep, diagonal: as in `square`.
        """
        raise NotImplementedError

    def excess(self, slots: Sequence[Any], precision: Array) -> Array:
        """E[K' P K] less what it is at the mean of K, (*batch, L, L), or 0 without slots; P
        (*batch|1, n) of independent elements or (*batch|1, n, n)."""
        raise NotImplementedError

    def spread_of(self, slots: Sequence[Any], second: Array) -> Array:
        """Covariance of K h that is due to K, (*batch, n, n), or 0 without slots, for E[h h'] =
        second, (*batch, L, L)."""
        raise NotImplementedError

    def on_h(self, fn: Callable[[Array], Array]) -> Coefficients:
        """These with `fn` on the last axis, that of h, of every array that has it."""
        raise NotImplementedError

    def plus(self, constant: Array) -> Coefficients:
        """Those of K h + constant, constant (*batch, n); h begins with 1."""
        raise NotImplementedError

    def after(self, L: Array) -> Coefficients:
        """Those of L K h, L (*batch, n, n)."""
        raise NotImplementedError

    def square(self, offset: Array, weight: Array, slots: Sequence[Any], main: Moments,
               known: Array, keep: Sequence[bool], diagonal: bool) -> Array:
        """Weighted sum of E[r r'] over the batch axes that are not kept, r = offset + K (1, main,
        known).

        Args:
            offset: (*batch, n), the part of the residual that is data alone.
            weight: (*batch, n or 1), full size along the axes that are summed.
            slots: the other slots; main: the slot (q) with the most batch axes.
            known: (*batch, ..).
            keep: for every batch axis whether it is kept; the others are summed and become size 1.

        Returns:
            (*batch, n) if diagonal (the squares alone) else (*batch, n, n).
        """
        q = main.mean.shape[-1]
        elementwise = weight.shape[-1] > 1
        wl = "n" if elementwise else ""
        w = weight if elementwise else weight[..., 0]
        batch = jnp.broadcast_shapes(main.mean.shape[:-1], known.shape[:-1])
        point = augment(jnp.concatenate(
            [jnp.broadcast_to(x, (*batch, x.shape[-1])) for x in (main.mean, known)], -1))

        at_means = self.at_mean(slots)
        residual = offset + batch_einsum([(at_means, "nl"), (point, "l")], "n", [True] * len(keep))
        out = "n" if diagonal else "nm"
        other = "n" if diagonal else "m"
        total = batch_einsum([(w, wl), (residual, "n"), (residual, other)], out, keep)

        # Second moments of the main slot are summed before anything else is done with them, unless
        # coefficients or slots differ along the very axes that are summed.
        varying = [self.shape[:len(keep)], *(s.mean.shape[:-1] for s in slots)]
        early = all(k or all(s[i] == 1 for s in varying) for i, k in enumerate(keep))
        live, seconds = slice(1, 1 + q), []
        if q and early:
            spread = batch_einsum([(w, wl), (main.cov, "lk")], wl + "lk", keep)
            seconds.append(([(spread, wl + "lk")], live))
        elif q:
            seconds.append(([(w, wl), (main.cov, "lk")], live))
        for operands, _ in seconds:
            part = at_means[..., live]
            total += batch_einsum([(part, "nl"), (part, other + "k"), *operands], out, keep)
        if slots and early:
            second = batch_einsum([(w, wl), (point, "l"), (point, "k")], wl + "lk", keep)
            seconds.append(([(second, wl + "lk")], slice(None)))
        elif slots:
            seconds.append(([(w, wl), (point, "l"), (point, "k")], slice(None)))
        return total + self.moving(slots, seconds, keep, diagonal) if slots else total


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Tensor(Coefficients):
    """All coefficients, (*batch|1, n, 1 + p_1, .., 1 + p_k, L)."""

    array: Array

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    def at_mean(self, slots: Sequence[Moments]) -> Array:
        K = self.array
        for slot in slots:
            K = _contract_slot(K, augment(slot.mean))
        return K

    def moving(self, slots: Sequence[Moments], seconds: Sequence[Second], keep: Sequence[bool],
               diagonal: bool) -> Array | float:
        total, other = 0.0, "n" if diagonal else "m"
        for part, a, b, spreads in self._slopes(slots, len(keep)):
            for operands, piece in seconds:
                here = part[..., piece]
                total += batch_einsum([(here, "n" + a + "l"), (here, other + b + "k"), *operands,
                                       *spreads], "n" if diagonal else "nm", keep)
        return total

    def excess(self, slots: Sequence[Moments], precision: Array) -> Array:
        nbatch, total = self.ndim - 2 - len(slots), jnp.zeros(())
        p, other = ("n", "n") if precision.ndim == nbatch + 1 else ("nm", "m")
        for part, a, b, spreads in self._slopes(slots, nbatch):
            total += batch_einsum([(part, "n" + a + "l"), (precision, p), (part, other + b + "k"),
                                   *spreads], "lk", [True] * nbatch)
        return total

    def spread_of(self, slots: Sequence[Moments], second: Array) -> Array:
        nbatch, total = self.ndim - 2 - len(slots), jnp.zeros(())
        for part, a, b, spreads in self._slopes(slots, nbatch):
            total += batch_einsum([(part, "n" + a + "l"), (second, "lk"), (part, "m" + b + "k"),
                                   *spreads], "nm", [True] * nbatch)
        return total

    def on_h(self, fn: Callable[[Array], Array]) -> Tensor:
        return Tensor(fn(self.array))

    def plus(self, constant: Array) -> Tensor:
        slots = self.shape[constant.ndim:-1]
        pads = [(0, 0)] * constant.ndim + [(0, n - 1) for n in slots]
        constant = constant.reshape((*constant.shape, *(1,) * len(slots)))
        return Tensor(with_constant(self.array, jnp.pad(constant, pads)))

    def after(self, L: Array) -> Tensor:
        K, batch = self.array, L.ndim - 2
        flat = L @ K.reshape((*K.shape[:batch], L.shape[-1], -1))
        return Tensor(flat.reshape((*flat.shape[:-1], *K.shape[batch + 1:])))

    def _slopes(self, slots: Sequence[Moments], nbatch: int
                ) -> Iterator[tuple[Array, str, str, list[tuple[Array, str]]]]:
        """D_Q r for every non-empty set Q of slots.

        Args:
            slots: the k of them; nbatch: number of batch axes.

        Yields:
            the derivative, (*batch, n, p of those in Q, L); letters of the axes of Q, and their
            twins; the covariances of Q, each with both letters, as operands of `batch_einsum`.
        """
        for size in range(1, len(slots) + 1):
            for chosen in combinations(range(len(slots)), size):
                part, kept = self.array, 0
                for i, slot in enumerate(slots):
                    axis = nbatch + 1 + kept
                    if i in chosen:
                        part = part[(slice(None),) * axis + (slice(1, None),)]
                        kept += 1
                    else:
                        part = _contract_slot(jnp.moveaxis(part, axis, nbatch + 1),
                                              augment(slot.mean))
                a, b = "abcdefgh"[:kept], "stuvwxyz"[:kept]
                yield part, a, b, [(slots[i].cov, a[j] + b[j]) for j, i in enumerate(chosen)]


def with_constant(K: Array, constant: Array) -> Array:
    """K (.., L) with a constant (..) more in its first place."""
    shape = jnp.broadcast_shapes(K.shape[:-1], constant.shape)
    first = jnp.broadcast_to(K[..., 0], shape) + constant
    rest = jnp.broadcast_to(K[..., 1:], (*shape, K.shape[-1] - 1))
    return jnp.concatenate([first[..., None], rest], -1)


def _contract_slot(K: Array, vector: Array) -> Array:
    """Contract the first slot axis of K (*batch, n, 1 + p, ..., l) with (*batch, 1 + p)."""
    batch = vector.ndim - 1
    rest = "abcdefgh"[:K.ndim - batch - 3]
    return batch_einsum([(K, "nz" + rest + "l"), (vector, "z")], "n" + rest + "l", [True] * batch)
