"""How primitives that move, cut or join axes carry a `Dependence`: reshapes, slices, gathers, ..

Every rule lays the axes of its operands along the output's; nothing is computed with the elements.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import isnan, prod

from jopa_ppl.proof.dependence import (
    BLANK,
    CONSTANT,
    MIXED,
    Axis,
    Dependence,
    Op,
    selector,
    union,
)


def blurred(axis: Axis) -> Axis:
    """The axis after its elements were moved, dropped or joined: its plate is gone."""
    return MIXED if axis.plate or axis.varies else BLANK


def kept(axes: Sequence[Axis], mixed: Sequence[int]) -> list[Axis]:
    """The axes, those at places `mixed` after their elements were moved."""
    return [blurred(axis) if i in mixed else axis for i, axis in enumerate(axes)]


def place(rank: int, axes: dict[int, Axis]) -> list[Axis]:
    """A row of `rank` axes: the given ones at their places, blank ones elsewhere."""
    return [axes.get(i, BLANK) for i in range(rank)]


def broadcast(op: Op, dep: Dependence, *_: Dependence) -> Dependence:
    """Axes of full size move to their places; those added or stretched from size 1 are blank."""
    places = op.params["broadcast_dimensions"]
    axes = {p: a for p, a, n in zip(places, dep.axes, op.ins[0].shape) if n == op.shape[p]}
    return replace(union(op, [dep], [place(len(op.shape), axes)]), value=dep.value)


def reshape(op: Op, dep: Dependence, *_: Dependence) -> Dependence:
    """Axes that survive whole are kept; those merged or split are mixed."""
    old, new = op.ins[0].shape, op.shape
    if op.params.get("dimensions") is not None or 0 in old:
        return union(op, [dep], [[MIXED] * len(new)])
    row, i, j = [BLANK] * len(new), 0, 0
    while i < len(old) or j < len(new):
        if i < len(old) and j < len(new) and old[i] == new[j]:  # survives whole
            row[j] = dep.axes[i]
            i, j = i + 1, j + 1
        elif i < len(old) and old[i] == 1:
            i += 1
        elif j < len(new) and new[j] == 1:
            j += 1
        else:  # the shortest runs of axes of equal size: merged, split or both
            i0, j0 = i, j
            i, j = i + 1, j + 1
            while (sizes := prod(old[i0:i]) - prod(new[j0:j])) != 0:
                i, j = (i + 1, j) if sizes < 0 else (i, j + 1)
            if any(axis.plate or axis.varies for axis in dep.axes[i0:i]):
                row[j0:j] = [MIXED] * (j - j0)
    return replace(union(op, [dep], [row]), value=dep.value)


def squeeze(op: Op, dep: Dependence) -> Dependence:
    """Axes of size 1 are dropped, the others close up."""
    rank = len(dep.axes)
    gone = [d % rank for d in op.params["dimensions"]]
    return union(op, [dep], [[axis for i, axis in enumerate(dep.axes) if i not in gone]])


def transpose(op: Op, dep: Dependence) -> Dependence:
    """The axes in another order."""
    return union(op, [dep], [[dep.axes[i] for i in op.params["permutation"]]])


def rev(op: Op, dep: Dependence) -> Dependence:
    """Reversed axes lose their plates: element i is no longer element i."""
    return union(op, [dep], [kept(dep.axes, op.params["dimensions"])])


def resized(op: Op, dep: Dependence, *others: Dependence) -> Dependence:
    """slice, dynamic_slice, split, tile: a whole axis keeps its plate (its start can only be 0)."""
    cut = [i for i, n in enumerate(op.ins[0].shape) if n != op.shape[i]]
    blank = [BLANK] * len(op.shape)
    deps = [dep, *(selector(op, d) for d in others)]
    return union(op, deps, [kept(dep.axes, cut), *[blank] * len(others)])


def pad(op: Op, dep: Dependence, filling: Dependence) -> Dependence:
    """Padded axes are mixed, as they hold the filling too; the others are kept."""
    padded = [i for i, config in enumerate(op.params["padding_config"]) if any(config)]
    row = [MIXED if i in padded else axis for i, axis in enumerate(dep.axes)]
    return union(op, [dep, filling], [row, [BLANK] * len(row)])


def concatenate(op: Op, *deps: Dependence) -> Dependence:
    """The joined axis is mixed (unless there is one operand); the others are kept."""
    along = op.params["dimension"]
    mixed = [] if len(deps) == 1 else [along]
    rows = [[MIXED if i in mixed else axis for i, axis in enumerate(d.axes)] for d in deps]
    return union(op, deps, rows)


def stack(op: Op, *deps: Dependence) -> Dependence:
    """A mixed axis enters; the others are kept and move up."""
    along = op.params["axis"] % len(op.shape)
    return union(op, deps, [[*d.axes[:along], MIXED, *d.axes[along:]] for d in deps])


def split(op: Op, dep: Dependence) -> list[Dependence]:
    """Each piece as a slice: the axis that is cut loses its plate."""
    return [resized(op._replace(outs=(out,)), dep) for out in op.outs]


def unstack(op: Op, dep: Dependence) -> list[Dependence]:
    """Each piece without the axis that it is taken along."""
    along = op.params["axis"] % len(dep.axes)
    row = [axis for i, axis in enumerate(dep.axes) if i != along]
    return [union(op._replace(outs=(out,)), [dep], [row]) for out in op.outs]


def gather(op: Op, dep: Dependence, index: Dependence) -> Dependence:
    """Axes taken whole keep their plates, paired ones too; picked ones give way to the index's."""
    dims, size = op.params["dimension_numbers"], op.ins[0].shape
    paired = dict(zip(dims.start_indices_batching_dims, dims.operand_batching_dims))
    dropped = {*dims.collapsed_slice_dims, *dims.operand_batching_dims}
    window = [d for d in range(len(size)) if d not in dropped]
    cut = [d for d in window if op.params["slice_sizes"][d] != size[d]]
    axes = dict(zip(dims.offset_dims, (kept(dep.axes, cut)[d] for d in window)))
    batch = [o for o in range(len(op.shape)) if o not in dims.offset_dims]
    axes |= {o: dep.axes[paired[i]] for i, o in enumerate(batch) if i in paired}
    rank = len(op.shape)
    rows = [place(rank, axes), place(rank, dict(zip(batch, index.axes)))]
    out = union(op, [dep, selector(op, index)], rows)
    fill = op.params["fill_value"]
    if fill is None or fill == 0 or isnan(fill):
        return out
    return replace(out, monomials={**out.monomials, CONSTANT: None})


def scatter(op: Op, dep: Dependence, index: Dependence, update: Dependence) -> Dependence:
    """The target's axes, united with the update's where these cover them whole; hit ones mix.
    An update that multiplies inputs is a coefficient: data, or else nonlinear in its own."""
    dims, size, new = op.params["dimension_numbers"], op.ins[0].shape, op.ins[2].shape
    dropped = {*dims.inserted_window_dims, *dims.operand_batching_dims}
    window = [d for d in range(len(size)) if d not in dropped]
    axes = dict.fromkeys(dims.scatter_dims_to_operand_dims, MIXED)
    for d, u in zip(window, dims.update_window_dims):
        axes[d] = update.axes[u] if new[u] == size[d] else MIXED
    batch = [u for u in range(len(new)) if u not in dims.update_window_dims]
    for d, i in zip(dims.operand_batching_dims, dims.scatter_indices_batching_dims):
        axes[d] = update.axes[batch[i]]
    rank = len(size)
    alone = op.params["unique_indices"] or prod(new[u] for u in batch) == 1
    times = op.name in ("scatter-mul", "scatter_mul")
    if times and not (alone and dep.is_constant):
        update = selector(op, update)
    deps = [dep, selector(op, index), update]
    adds = not times and op.name != "scatter" and not (alone and not dep.monomials)
    return union(op, deps, [dep.axes, [BLANK] * rank, place(rank, axes)], summed=adds)


def dynamic_update_slice(
    op: Op, dep: Dependence, update: Dependence, *starts: Dependence
) -> Dependence:
    """The target's axes, united with the update's where these are whole; others are mixed."""
    size = zip(op.ins[1].shape, op.shape)
    row = [axis if n == m else MIXED for axis, (n, m) in zip(update.axes, size)]
    blank = [BLANK] * len(row)
    deps = [dep, update, *(selector(op, d) for d in starts)]
    return union(op, deps, [dep.axes, row, *[blank] * len(starts)])
