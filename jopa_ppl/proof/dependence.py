"""Prove from a jaxpr how each output depends on named inputs.

Every array is described as a sum of monomials in the inputs with data for coefficients,

    output = sum_m  c_m * prod_name  name ** exponent_m(name),

together with what is known of its axes: which of them still run, element by element, along a
plate of the inputs, and which vary at all. What is not understood is nonlinear, and the
operation and the user's line that made it so are kept. Nothing is evaluated.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, NamedTuple

Monomial = frozenset[tuple[str, Fraction]]
CONSTANT: Monomial = frozenset()


class Axis(NamedTuple):
    """One axis of an array: the plate it runs along, and whether position along it matters.

    plate:  element n depends, among the inputs of that plate, only on their elements n
            (inputs whose plate is `lost` excepted).
    varies: elements differ along it even where those inputs do not: data, or an event axis.
    """

    plate: str | None
    varies: bool


BLANK = Axis(None, False)
MIXED = Axis(None, True)


class Blame(NamedTuple):
    """The primitive that made a dependence what it is, and "file:line (function)" of it."""

    operation: str
    where: str


@dataclass(frozen=True)
class Dependence:
    """How one array depends on the inputs.

    monomials: sum of products with data coefficients; to each the operation that made it a
               product or changed an exponent (None: plainly linear). {} is the literal zero,
               {frozenset(): None} a constant.
    nonlinear: input -> first operation nonlinear in it; `monomials` treats such an input as
               data and is not to be trusted about it.
    axes:      one `Axis` a dimension.
    lost:      (input, plate) pairs whose plate axis was mixed on the way.
    single:    no element adds up different elements of the inputs, so that one monomial may be
               raised to any power (1 / sqrt(tau) has it, sum(tau) has not).
    chosen:    every element is one of the monomials, picked by data, not a sum of several.
    value:     the number every element is, where the program says so literally.
    """

    monomials: Mapping[Monomial, Blame | None]
    nonlinear: Mapping[str, Blame]
    axes: tuple[Axis, ...]
    lost: frozenset[tuple[str, str]] = frozenset()
    single: bool = True
    chosen: bool = True
    value: float | None = None

    @property
    def names(self) -> frozenset[str]:
        """Every input it depends on."""
        return frozenset(name for m in self.monomials for name, _ in m) | self.nonlinear.keys()

    @property
    def is_constant(self) -> bool:
        """Whether it depends on no input."""
        return not self.names

    def degree(self, name: str) -> Fraction | None:
        """Exponent of `name` that is largest in size (0 where absent); None if nonlinear in it."""
        if name in self.nonlinear:
            return None
        exponents = (exponent for m in self.monomials for n, exponent in m if n == name)
        return max(exponents, key=abs, default=Fraction(0))

    @property
    def not_affine(self) -> dict[str, Blame | None]:
        """The inputs in which, the others held, it is not affine, each with what made it so."""
        blamed: dict[str, Blame | None] = dict(self.nonlinear)
        for monomial, blame in self.monomials.items():
            for name, exponent in sorted(monomial):
                if exponent != 1:
                    blamed.setdefault(name, blame)
        return blamed


def constant(shape: Sequence[int], varies: bool = True) -> Dependence:
    """Data of this shape, differing along every axis longer than 1 unless `varies` is False."""
    return Dependence({CONSTANT: None}, {}, tuple(Axis(None, varies and n > 1) for n in shape))


def variable(
    name: str, shape: Sequence[int], plates: Mapping[int, str] | None = None
) -> Dependence:
    """The input `name` itself; `plates` maps axis -> plate, other axes are its own events.

    Raises ValueError where one plate labels two axes.
    """
    plates = plates or {}
    if len(set(plates.values())) < len(plates):
        raise ValueError(f"{name!r}: a plate can label one axis only, got {dict(plates)}")
    axes = [Axis(plates.get(i), n > 1 and i not in plates) for i, n in enumerate(shape)]
    return Dependence({frozenset({(name, Fraction(1))}): None}, {}, tuple(axes))


# --- the algebra the rules are written in ------------------------------------------------------


class Inputs(NamedTuple):
    """The plates of each input at entry, and the inputs with one element an index of them."""

    plates: Mapping[str, frozenset[str]]
    elements: frozenset[str]


class Op(NamedTuple):
    """One equation as its rule sees it."""

    name: str
    params: Mapping[str, Any]
    ins: tuple[Any, ...]  # abstract values: shape and dtype
    outs: tuple[Any, ...]
    inputs: Inputs
    blame: Callable[[], Blame]
    walk: Callable[[Any, Sequence[Dependence]], list[Dependence]]  # into a jaxpr among the params

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.outs[0].shape)


Row = Sequence[Axis]  # the axes of one operand, laid along those of the output


def settle(
    op: Op, deps: Sequence[Dependence], rows: Sequence[Row]
) -> tuple[tuple[Axis, ...], frozenset]:
    """The output's axes and all that is lost, from each operand's axes laid along the output's.

    A plate survives where it meets no other plate and stands on one axis only.

    Args:
        op: the equation; deps: its operands; rows: the axes of each, as many as the output has.
    """
    axes = []
    for i, size in enumerate(op.shape):
        column = [row[i] for row in rows]
        plates = {axis.plate for axis in column} - {None}
        clash = len(plates) > 1
        varies = size > 1 and (clash or any(axis.varies for axis in column))
        axes.append(Axis(None if clash or not plates else plates.pop(), varies))
    count = Counter(axis.plate for axis in axes)
    axes = [MIXED if axis.plate and count[axis.plate] > 1 else axis for axis in axes]

    lost: set[tuple[str, str]] = set()
    for dep, row in zip(deps, rows, strict=True):
        kept = {a.plate for a, b in zip(row, axes, strict=True) if a.plate == b.plate}
        gone = {axis.plate for axis in dep.axes} - kept - {None}
        lost |= dep.lost | {
            (n, p) for n in dep.names for p in gone & op.inputs.plates.get(n, frozenset())
        }
    return tuple(axes), frozenset(lost)


def _first(mappings: Iterable[Mapping]) -> dict:
    """Union of mappings in which the first entry that is not None counts."""
    merged: dict = {}
    for mapping in mappings:
        for key, item in mapping.items():
            merged[key] = merged.get(key) or item
    return merged


def union(
    op: Op, deps: Sequence[Dependence], rows: Sequence[Row], summed: bool = False
) -> Dependence:
    """The sum (`summed`) of the operands or of their elements, or elements picked from them.

    Args:
        op, deps, rows: as in `settle`.
        summed: whether elements are added up.
    """
    axes, lost = settle(op, deps, rows)
    monomials = _first(d.monomials for d in deps)
    single = not any(monomials) or (not summed and all(d.single for d in deps))
    chosen = len(monomials) < 2 or (not summed and all(d.chosen for d in deps))
    return Dependence(monomials, _first(d.nonlinear for d in deps), axes, lost, single, chosen)


def selector(op: Op, dep: Dependence) -> Dependence:
    """An operand that only chooses (predicate, index): adds nothing, nonlinear in its inputs."""
    nonlinear = dict(dep.nonlinear)
    for name in sorted(dep.names - nonlinear.keys()):
        nonlinear[name] = op.blame()
    return replace(dep, monomials={}, nonlinear=nonlinear, single=True, chosen=True, value=None)


def opaque(op: Op, deps: Sequence[Dependence], rows: Sequence[Row]) -> Dependence:
    """Nonlinear in every input of the operands; a constant if they have none."""
    return replace(union(op, [selector(op, d) for d in deps], rows), monomials={CONSTANT: None})


def product(
    op: Op, a: Dependence, b: Dependence, rows: Sequence[Row], summed: bool = False
) -> Dependence:
    """Products of elements of a and b, added up if `summed`: every monomial times every other.

    Args:
        op: the equation; a, b: its operands; rows: the axes of each, as in `settle`.
        summed: whether products are added up.
    """
    axes, lost = settle(op, [a, b], rows)
    plates, elements = op.inputs
    same = {n for n in elements if not any((n, p) in lost for p in plates[n])}
    monomials: dict[Monomial, Blame | None] = {}
    for m, blame_m in a.monomials.items():
        for n, blame_n in b.monomials.items():
            mn = _times(m, n, same)
            if mn is None:
                return opaque(op, [a, b], rows)
            blame = op.blame() if m and n else blame_m or blame_n
            monomials[mn] = monomials.get(mn) or (blame if mn else None)
    single = not any(monomials) or (not summed and a.single and b.single)
    chosen = len(monomials) < 2 or (not summed and a.chosen and b.chosen)
    return Dependence(monomials, _first([a.nonlinear, b.nonlinear]), axes, lost, single, chosen)


def _times(m: Monomial, n: Monomial, same: set[str]) -> Monomial | None:
    """Exponents added, or None where the result would not be what it says.

    Whole positive exponents always add. Others do for inputs whose element is the `same` on both
    sides: x[0] / x[1] is no x^0. And sqrt(x y) sqrt(x / y) is |x|, not x.
    """
    exponents = dict(m)
    rooted = False
    for name, new in n:
        old = exponents.pop(name, None)
        if old is None:
            exponents[name] = new
            continue
        whole = min(old, new) > 0 and old.denominator == new.denominator == 1
        if not whole and name not in same:
            return None
        rooted |= (old + new).denominator == 1 < new.denominator
        if old + new:
            exponents[name] = old + new
    if rooted and m != n and min(len(m), len(n)) > 1:
        return None
    return frozenset(exponents.items())


def power(op: Op, dep: Dependence, exponent: Fraction) -> Dependence:
    """dep ** exponent: scales the exponents of one monomial, is nonlinear in a sum of several.

    A sum of elements has whole powers only. Under a root an input must stand to a power 1 / k:
    the root of x^2 is |x|, and x^3 may be a product of three different elements of x.
    """
    if exponent == 1 or (not dep.monomials and exponent > 0):
        return dep
    if exponent == 0 or not any(dep.monomials):
        return replace(dep, monomials={CONSTANT: None}, value=None)
    whole = exponent.denominator == 1
    plain = all(abs(e.numerator) == 1 for m in dep.monomials for _, e in m)
    if (
        not dep.chosen
        or not (dep.single or (whole and exponent > 0))
        or not (whole or plain)
    ):
        return opaque(op, [dep], [dep.axes])
    scaled = (frozenset((name, e * exponent) for name, e in m) for m in dep.monomials)
    return replace(dep, monomials={m: op.blame() if m else None for m in scaled})
