"""The walk over a jaxpr that proves how its outputs depend on named inputs.

The algebra is that of `dependence.py`, and every primitive's rule stands in `rules.py`, with those
of axes in `axes.py` and of loops in `loops.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from jax.errors import ConcretizationTypeError

from jopa_ppl.language.sources import source_of
from jopa_ppl.proof.dependence import Blame, Dependence, Inputs, Op, constant
from jopa_ppl.proof.rules import rule_of


def analyse(closed_jaxpr: Any, inputs: Sequence[Dependence]) -> list[Dependence]:
    """How each output of a closed jaxpr depends on named inputs.

    inputs: one `Dependence` for each of the jaxpr's arguments, mostly `variable` or `constant`.
    Raises ValueError where their number is not the jaxpr's.
    """
    plates: dict[str, frozenset[str]] = {}
    elements: dict[str, bool] = {}
    for var, dep in zip(closed_jaxpr.jaxpr.invars, inputs):
        here = frozenset(axis.plate for axis in dep.axes if axis.plate)
        events = any(n > 1 and not a.plate for n, a in zip(var.aval.shape, dep.axes))
        for name in dep.names:  # a name that stands for several inputs has several elements
            elements[name] = name not in plates and not events
            plates[name] = plates.get(name, frozenset()) | here
    known = Inputs(plates, frozenset(name for name, alone in elements.items() if alone))
    # Copies, because within the walk one and the same object means one and the same array.
    return _walk(closed_jaxpr, [replace(dep) for dep in inputs], known, "unknown")


def _walk(closed: Any, inputs: Sequence[Dependence], known: Inputs, outer: str) -> list[Dependence]:
    jaxpr = getattr(closed, "jaxpr", closed)
    if len(inputs) != len(jaxpr.invars):
        raise ValueError(f"the jaxpr takes {len(jaxpr.invars)} arguments, got {len(inputs)}")
    env = dict(zip(jaxpr.invars, inputs, strict=True))
    env |= {
        v: _data(c) for v, c in zip(jaxpr.constvars, getattr(closed, "consts", ()), strict=True)
    }

    for eqn in jaxpr.eqns:
        where = cache(lambda eqn=eqn: source_of(eqn) or outer)
        op = Op(
            eqn.primitive.name,
            eqn.params,
            tuple(v.aval for v in eqn.invars),
            tuple(v.aval for v in eqn.outvars),
            known,
            lambda eqn=eqn, where=where: Blame(eqn.primitive.name, where()),
            lambda inner, deps, where=where: _walk(inner, deps, known, where()),
        )
        deps = [_data(v.val) if hasattr(v, "val") else env[v] for v in eqn.invars]
        outs = rule_of(op)(op, *deps)
        env |= zip(eqn.outvars, outs if isinstance(outs, list) else [outs], strict=True)
    return [_data(v.val) if hasattr(v, "val") else env[v] for v in jaxpr.outvars]


def _data(array: Any) -> Dependence:
    """A literal or a constant of the jaxpr; the number itself is known where it is one."""
    dep = constant(getattr(array, "shape", ()))
    try:
        value = None if dep.axes else float(array)
    except (TypeError, ConcretizationTypeError):  # a complex number, a key, a traced value
        value = None
    return replace(dep, monomials={} if value == 0 else dep.monomials, value=value)
