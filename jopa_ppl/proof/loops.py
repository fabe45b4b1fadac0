"""How loops carry a `Dependence`: lax.scan (lax.map and fori_loop are made of it), while_loop.

Short ones are walked step by step. Of longer ones the carry is joined, step after step, with what
it was, until nothing is added: what then is said of it holds at every step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from jopa_ppl.proof.dependence import BLANK, MIXED, Axis, Dependence, Op, constant, opaque, union

SHORT = 8       # steps that are walked one by one
MOST = 32       # walks in which the carry of a longer loop has to settle

Step = Callable[[Sequence[Dependence]], list[Dependence]]


def scan(op: Op, *deps: Dependence) -> list[Dependence]:
    """lax.scan: the last carry and the stacked outputs; nonlinear where the carry never settles.

    A loop without a carry keeps the plate that it runs along.
    """
    (first, size), length = _counts(op), op.params["length"]
    start = first + size
    consts, series = deps[:first], deps[start:]
    if length == 0:
        return [*deps[len(consts):start], *(constant(out.shape) for out in op.outs[size:])]
    plate = None if size else _plate(consts, series)
    slices = [_slice(op, d, plate) for d in series]

    def step(carry: Sequence[Dependence]) -> list[Dependence]:
        return op.walk(op.params["jaxpr"], [*consts, *carry, *slices])

    carry = deps[len(consts):start]
    if length <= SHORT:
        stacked = []
        for _ in range(length):
            carry, ys = _split(step(carry), size)
            stacked.append(ys)
    else:
        if (settled := _settled(op, step, carry)) is None:
            return _opaque(op, deps)
        carry, stacked = settled, [_split(step(settled), size)[1]]
    outs = list(carry)
    for out, ys in zip(op.outs[size:], zip(*stacked)):
        rows = [[Axis(plate, True), *y.axes] for y in ys]
        outs.append(union(op._replace(outs=(out,)), ys, rows))
    return outs


def _counts(op: Op) -> tuple[int, int]:
    """How many constants and how many leaves of the carry a scan takes, by any version of JAX."""
    if "ft_in" in op.params:
        consts, carry, _ = op.params["ft_in"].unpack()
        return len(consts), len(carry)
    return op.params["num_consts"], op.params["num_carry"]


def while_loop(op: Op, *deps: Dependence) -> list[Dependence]:
    """while_loop: nonlinear where its end depends on an input, or its carry never settles."""
    first, second = op.params["cond_nconsts"], op.params["body_nconsts"]
    tested, consts, carry = deps[:first], deps[first:first + second], deps[first + second:]
    settled = _settled(op, lambda c: op.walk(op.params["body_jaxpr"], [*consts, *c]), carry)
    if settled is None or op.walk(op.params["cond_jaxpr"], [*tested, *settled])[0].names:
        return _opaque(op, deps)
    return settled


def _settled(op: Op, step: Step, carry: Sequence[Dependence]) -> list[Dependence] | None:
    """What holds of the carry after any number of steps; None where each step adds to it."""
    outs = [op._replace(outs=(out,)) for out in op.outs]
    for _ in range(MOST):
        # Copies: leaves that are one array at the first step need not be at the next one.
        before = [replace(d) for d in carry]
        carry = [union(out, [a, b], [a.axes, b.axes])
                 for out, a, b in zip(outs, before, step(before))]
        if carry == before:
            return before
    return None


def _split(outs: Sequence[Dependence], size: int) -> tuple[Sequence, Sequence]:
    return outs[:size], outs[size:]


def _plate(consts: Sequence[Dependence], series: Sequence[Dependence]) -> str | None:
    """The one plate that all series run along and that nothing else has an axis of."""
    along = {d.axes[0].plate for d in series} - {None}
    other = {axis.plate for d in consts for axis in d.axes}
    other |= {axis.plate for d in series for axis in d.axes[1:]}
    return next(iter(along)) if len(along) == 1 and not along & other else None


def _slice(op: Op, dep: Dependence, plate: str | None) -> Dependence:
    """One step of a series: the plate it runs along is lost, but for `plate`."""
    own, lost = dep.axes[0].plate, dep.lost
    if own and own != plate:
        lost |= {(n, own) for n in dep.names if own in op.inputs.plates.get(n, ())}
    return replace(dep, axes=dep.axes[1:], lost=lost)


def _opaque(op: Op, deps: Sequence[Dependence]) -> list[Dependence]:
    outs = []
    for out in op.outs:
        row = [MIXED if n > 1 else BLANK for n in out.shape]
        outs.append(opaque(op._replace(outs=(out,)), deps, [row] * len(deps)))
    return outs
