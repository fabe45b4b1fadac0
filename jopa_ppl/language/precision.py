"""What a program computes in float64: everything but its networks, whatever dtypes a caller has.

Single-precision data are exact numbers. What is made of them in single precision is not: a
covariance of correlation 1 - 1e-6 loses its smallest variance, a Gamma of concentration 1e6 its
normaliser. So they become double where they enter the program. Counts of 32 bits or less, of which
JAX makes single precision (log n!, say), become 64 bits wide where a density is made of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, Var, jaxpr_as_fun

from jopa_ppl.language.sources import as_made_by

_NETWORK = (nnx.Module, nnx.State, nnx.Variable)
_CALLS = {"jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr",
          "custom_jvp_call": "call_jaxpr", "custom_vjp_call": "call_jaxpr"}


def is_low(x: Any) -> bool:
    """Whether it is floating, with fewer digits than the default float."""
    return (hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.floating)
            and jnp.finfo(x.dtype).bits < jnp.finfo(float).bits)


def is_narrow(x: Any) -> bool:
    """Whether it is of signed whole numbers, with fewer bits than the default ones."""
    return (hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.signedinteger)
            and jnp.iinfo(x.dtype).bits < jnp.iinfo(int).bits)


def counts_in_full(tree: Any) -> Any:
    """A tree with its arrays of signed whole numbers in the default ones; as it is without such."""
    if not any(map(is_narrow, jax.tree.leaves(tree))):
        return tree
    return jax.tree.map(lambda x: jnp.asarray(x, int) if is_narrow(x) else x, tree)


def in_double(tree: Any) -> Any:
    """A tree with its floating arrays in the default float; networks keep the dtype of theirs."""
    def one(node: Any) -> Any:
        array = isinstance(node, jax.Array | np.ndarray | np.generic)
        return jnp.asarray(node, float) if array and is_low(node) else node

    return jax.tree.map(one, tree, is_leaf=lambda node: isinstance(node, _NETWORK))


def as_network_takes(network: Callable, value: Array) -> Array:
    """`value` in the dtype of the network's weights: that of what it makes of an input with nearly
    no digits. Without weights it is left as it is."""
    for probe in (jnp.bfloat16, jnp.float32):
        try:
            shapes = jax.eval_shape(network, jax.ShapeDtypeStruct(value.shape, probe))
        except (TypeError, NotImplementedError):      # it takes one dtype alone
            continue
        # A constant, such as the scale 0.1, may have more digits.
        found = min((x.dtype for x in jax.tree.leaves(shapes)), key=lambda d: jnp.finfo(d).bits)
        return value if found == jnp.bfloat16 else value.astype(found)
    return value


def constants_in_double(closed: ClosedJaxpr) -> ClosedJaxpr:
    """The jaxpr with the constants of lower precision, and what is made of them, in double.

    Where they meet a value that a network or the program itself made lower, they are as they were.
    """
    if not any(map(is_low, closed.consts)):
        return closed
    jaxpr = jax.make_jaxpr(lambda *args: _evaluate(closed, args))(*closed.in_avals)
    return ClosedJaxpr(jaxpr.jaxpr, jaxpr.consts)


def _evaluate(closed: ClosedJaxpr, args: Sequence[Array]) -> list[Array]:
    """The jaxpr at arguments that may have more digits than it says."""
    jaxpr = closed.jaxpr
    values = dict(zip(jaxpr.invars, args)) | dict(zip(jaxpr.constvars, in_double(closed.consts)))
    read = lambda v: v.val if isinstance(v, Literal) else values[v]
    for eqn in jaxpr.eqns:
        inputs = [read(v) for v in eqn.invars]
        free = not any(isinstance(v, Var) and is_low(x) for v, x in zip(eqn.invars, inputs))
        touched = any(is_low(v.aval) for v in (*eqn.invars, *eqn.outvars))
        found = _double(eqn, inputs) if free and touched else None
        values |= dict(zip(eqn.outvars, _as_traced(jaxpr, eqn, inputs) if found is None else found))
    return [jnp.asarray(read(v)) for v in jaxpr.outvars]


def _double(eqn: Any, inputs: list[Array]) -> Sequence[Array] | None:
    """What an equation makes of inputs in double; None where it has to be done as it was traced."""
    name, wide = eqn.primitive.name, [jnp.asarray(x, float) if is_low(x) else x for x in inputs]
    if name in _CALLS:
        if name.startswith("custom") and not all(is_low(v.aval) for v in eqn.invars):
            return None                         # its derivative is its own
        inside = eqn.params[_CALLS[name]]
        return _evaluate(inside if isinstance(inside, ClosedJaxpr) else ClosedJaxpr(inside, ()),
                         wide)
    if any(isinstance(x, Jaxpr | ClosedJaxpr) for p in eqn.params.values()
           for x in (p if isinstance(p, tuple | list) else (p,))):
        return None
    if name == "bitcast_convert_type":
        return None                             # bits are no number
    if name == "convert_element_type":
        old, new = (v.aval.dtype for v in (eqn.invars[0], eqn.outvars[0]))
        if is_low(eqn.outvars[0].aval) and jnp.issubdtype(old, jnp.floating) and old != new:
            return None                         # the program asks for fewer digits
    params = {k: np.dtype(float) if isinstance(p, np.dtype) and jnp.issubdtype(p, jnp.floating)
              else p for k, p in eqn.params.items()}
    with as_made_by(eqn):
        found = eqn.primitive.bind(*wide, **params)
    return found if eqn.primitive.multiple_results else [found]


def _as_traced(jaxpr: Jaxpr, eqn: Any, inputs: list[Array]) -> Sequence[Array]:
    """What an equation makes of inputs in the dtypes that it was traced with."""
    given = {v: jnp.asarray(x, v.aval.dtype) if is_low(v.aval) else x
             for v, x in zip(eqn.invars, inputs) if isinstance(v, Var)}
    small = jaxpr.replace(constvars=[], invars=list(given), eqns=[eqn], outvars=eqn.outvars)
    return jaxpr_as_fun(ClosedJaxpr(small, ()))(*given.values())
