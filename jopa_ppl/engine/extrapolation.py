"""Sweeps that start ahead of where the last one ended, as far as the sweeps before tell.

The first belief of a sweep is made of the others, so that these are the whole of an iteration. What
they are is told in numbers without bounds (`Belief.coordinates`), so that every place is a belief.
A sweep from ahead counts only where it lowers F; else the next one starts where the last good one
ended. Programs whose sweeps converge fast by themselves are left to,
and compile nothing of this.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jopa_ppl.arrays import where
from jopa_ppl.beliefs import Belief
from jopa_ppl.engine.schedule import Schedule
from jopa_ppl.linalg.extrapolation import Trail

STILL = 1e-8         # moves of a sweep, in spreads, that are rounding
PATIENCE = 10        # sweeps that go by themselves, before it is asked whether they are slow:
SLOW = 0.9           # a move over the one before,
FAR = 1e-4           # where moves are larger than this


class Ahead(NamedTuple):
    """The sweeps before, the place that the next one starts from, and whether it does."""

    trail: Trail
    place: Array
    tried: Array


class Pace(NamedTuple):
    """By how much the last sweep moved, in spreads, and whether sweeps were found to be slow."""

    moved: Array | float = 0.0
    slow: Array | bool = False

    def after(self, sweep: Array, moved: Array) -> Pace:
        """One more sweep, after `sweep` others."""
        creeps = (sweep >= PATIENCE) & (moved > jnp.maximum(SLOW * self.moved, FAR))
        return Pace(moved, self.slow | creeps)


def followed(schedule: Schedule) -> tuple[Belief, ...]:
    """The beliefs that are extrapolated: of conjugate programs those after the first, which is made
    of them. None in others, whose steps look for the least F themselves."""
    if any(f.bends(u.block) for u in schedule.updates for f in u.factors):
        return ()
    return tuple(u.block for u in schedule.updates[1:] if u.block.extrapolates)


def place(blocks: Sequence[Belief], moments: dict[str, Any]) -> tuple[Array, Array]:
    """Where beliefs are, and spreads to measure moves in, (n,) each."""
    found = [b.coordinates(moments[b.name]) for b in blocks]
    return tuple(jnp.concatenate([jnp.zeros(0), *x]) for x in zip(*found, (jnp.zeros(0),) * 2))


def placed(blocks: Sequence[Belief], moments: dict[str, Any], at: Array) -> dict[str, Any]:
    """The beliefs at another place."""
    new = dict(moments)
    for b in blocks:
        size = b.coordinates(moments[b.name])[0].size
        new[b.name], at = b.at_coordinates(moments[b.name], at[:size]), at[size:]
    return new


def beginning(blocks: Sequence[Belief], moments: dict[str, Any]) -> Ahead:
    """No sweep yet."""
    here, _ = jax.eval_shape(lambda q: place(blocks, q), moments)
    return Ahead(Trail.of(here.size), jnp.zeros(here.shape), jnp.zeros((), bool))


def start(blocks: Sequence[Belief], moments: dict[str, Any], ahead: Ahead) -> dict[str, Any]:
    """The beliefs that the next sweep starts from.

    Args:
        blocks: those that are `followed`.
        moments: beliefs by block where the last sweep ended; ahead: what the sweeps tell.
    """
    there = placed(blocks, moments, ahead.place)
    return where(ahead.tried, there, moments)


def after(blocks: Sequence[Belief], old: dict[str, Any], new: dict[str, Any], ahead: Ahead,
          worse: Array, moved: Array) -> Ahead:
    """Where the next sweep starts, once one has led from the beliefs `old` to `new`.

    Args:
        blocks: those that are `followed`.
        old, new: beliefs by block.
        ahead: what the sweeps before told.
        worse: whether it was in vain: the sweeps before are forgotten, which told wrongly.
        moved: how far it went, in spreads.
    """
    result, spreads = place(blocks, new)
    trail = ahead.trail.after(place(blocks, old)[0], result)
    trail = where(worse, Trail.of(result.size), trail)
    far = trail.ahead(spreads)
    return Ahead(trail, result + far, ~worse & (moved > STILL) & (far != 0).any())
