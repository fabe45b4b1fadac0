"""Latents that something jumps with and has no slope in, anywhere: floors, comparisons, indices."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import ClosedJaxpr, Literal, jaxpr_as_fun

from jopa_ppl.program.program import Program
from jopa_ppl.program.refs import Ref

# Operations whose slope is zero, one of which is in whatever is flat.
JUMPS = {"floor", "ceil", "round", "sign", "lt", "le", "gt", "ge", "eq", "ne", "argmax", "argmin",
         "convert_element_type", "is_finite"}


def flat(program: Program, outputs: Sequence[int], refs: Iterable[Ref]) -> set[Ref]:
    """Of some latents those that the outputs are made of and have no slope in.

    A slope is one that JAX's forward derivative has: whether a tangent of the latent reaches that
    of an output. Inside loops and calls whatever enters reaches all that leaves. Values of earlier
    steps count as one, the carry.
    """
    refs = list(refs)
    closed, used = program.pruned(outputs) if refs else (None, ())
    if closed is None or not _jumps(closed.jaxpr):
        return set()
    real = {k: i for i, k in enumerate(program.inputs) if i in used
            and jnp.issubdtype(closed.in_avals[i].dtype, jnp.floating)}
    carry = [i for k, i in real.items() if k.startswith("carry/")]
    found = set()
    for ref in refs:
        at = carry if ref.back else [real[k] for k in (f"latent/{ref.site}",) if k in real]
        if at and not any(_has_slope(closed, i) for i in at):
            found.add(ref)
    return found


def _has_slope(closed: ClosedJaxpr, at: int) -> bool:
    """Whether a jaxpr has a derivative in one of its inputs."""
    def tangents(values: list[Array], move: Array) -> list[Array]:
        def of(x: Array) -> list[Array]:
            found = jaxpr_as_fun(closed)(*values[:at], x, *values[at + 1:])
            return [x for x in found if jnp.issubdtype(x.dtype, jnp.floating)]

        return jax.jvp(of, (values[at],), (move,))[1]

    avals = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in closed.in_avals]
    try:
        jaxpr = jax.make_jaxpr(tangents)(avals, avals[at]).jaxpr
    except NotImplementedError:         # of JAX's own operations: told where it is asked for
        return True
    return _reaches(jaxpr, jaxpr.invars[-1])


def _jumps(jaxpr: Any) -> bool:
    """Whether there is an operation without a slope, at any depth."""
    inner = [getattr(p, "jaxpr", p) for e in jaxpr.eqns for x in e.params.values()
             for p in (x if isinstance(x, tuple | list) else (x,))
             if hasattr(getattr(p, "jaxpr", p), "eqns")]
    return any(e.primitive.name in JUMPS for e in jaxpr.eqns) or any(map(_jumps, inner))


def _reaches(jaxpr: Any, var: Any) -> bool:
    """Whether an output is made of an input."""
    made = {var}
    for eqn in jaxpr.eqns:
        if any(not isinstance(v, Literal) and v in made for v in eqn.invars):
            made.update(eqn.outvars)
    return any(not isinstance(v, Literal) and v in made for v in jaxpr.outvars)
