"""The dependence of a function of arrays, and readable claims about it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jopa_ppl.proof.analyse import analyse
from jopa_ppl.proof.dependence import Axis, Dependence, variable

P, E, BLANK = Axis("n", False), Axis(None, True), Axis(None, False)


def of(function, **inputs):
    """The dependence of function's single output; an input is an array, or (array, plates)."""
    pairs = {k: v if isinstance(v, tuple) else (v, {}) for k, v in inputs.items()}
    arrays = [jnp.asarray(array) for array, _ in pairs.values()]
    deps = [variable(k, np.shape(array), plates) for k, (array, plates) in pairs.items()]
    (out,) = analyse(jax.make_jaxpr(function)(*arrays), deps)
    return out


def terms(dep: Dependence) -> set[str]:
    """{'A x', 'tau^-1/2', '1'}: readable monomials."""
    show = lambda n, e: n if e == 1 else f"{n}^{e}"
    return {" ".join(show(n, e) for n, e in sorted(m)) or "1" for m in dep.monomials}


def affine(dep: Dependence, *expected: str) -> bool:
    return terms(dep) == set(expected) and not dep.not_affine


ones = np.ones
IDX = np.array([0, 2, 1, 1, 0])
A, B, x, u, X = ones((3, 3)), ones((3, 2)), ones(3), ones(2), ones((5, 3))
ROWS = (X, {0: "n"})  # five rows, one an element of the plate n
