"""How each JAX primitive carries a `Dependence` from its operands to its results.

A rule takes an `Op` and the operands' dependences. It lays each operand's axes along the output's
(a row), and joins the operands by `union` (linear), `product`, `power` or `opaque` (nonlinear).
A primitive without a rule is constant on constants and otherwise nonlinear, all plates lost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction

import jax.numpy as jnp

from jopa_ppl.proof import axes as axis_rules
from jopa_ppl.proof import loops as loop_rules
from jopa_ppl.proof.axes import place
from jopa_ppl.proof.dependence import (
    BLANK,
    MIXED,
    Axis,
    Dependence,
    Op,
    constant,
    opaque,
    power,
    product,
    selector,
    union,
)

Rule = Callable[..., Dependence | list[Dependence]]


# --- element by element ------------------------------------------------------------------------


def _rows(op: Op, deps: Sequence[Dependence]) -> list[list[Axis]]:
    """Operands of an elementwise operation: the output's shape, scalars, or axes of size 1."""
    rank = len(op.shape)
    rows = []
    for aval, dep in zip(op.ins, deps, strict=True):
        stretched = [i for i, n in enumerate(aval.shape) if n != op.shape[i]]
        axes = {i: axis for i, axis in enumerate(dep.axes) if i not in stretched}
        rows.append(place(rank, axes))
    return rows


def _elementwise(op: Op, *deps: Dependence) -> Dependence:
    return opaque(op, deps, _rows(op, deps))


def _identity(op: Op, *deps: Dependence) -> list[Dependence]:
    return list(deps)


def _negate(op: Op, dep: Dependence) -> Dependence:
    return replace(dep, value=None if dep.value is None else -dep.value)


def _convert(op: Op, dep: Dependence) -> Dependence:
    rounds = jnp.issubdtype(op.ins[0].dtype, jnp.inexact)
    rounds &= not jnp.issubdtype(op.outs[0].dtype, jnp.inexact)
    return _elementwise(op, dep) if rounds else dep


def _add(op: Op, *deps: Dependence) -> Dependence:
    return union(op, deps, _rows(op, deps), summed=sum(bool(d.monomials) for d in deps) > 1)


def _mul(op: Op, a: Dependence, b: Dependence) -> Dependence:
    if a is b and a.monomials and a.chosen:  # an array with itself: element by the same element
        return power(op, a, Fraction(2))
    return product(op, a, b, _rows(op, [a, b]))


def _div(op: Op, a: Dependence, b: Dependence) -> Dependence:
    inverse = power(op._replace(outs=(op.ins[1],)), b, Fraction(-1))
    return product(op, a, inverse, _rows(op, [a, inverse]))


def _pow(op: Op, base: Dependence, exponent: Dependence) -> Dependence:
    if exponent.value is None:
        return _elementwise(op, base, exponent)
    # A float32 literal such as -0.1 is no decimal fraction; the nearest simple one is meant.
    fraction = Fraction(exponent.value).limit_denominator(64)
    if abs(float(fraction) - exponent.value) > 1e-6:
        return _elementwise(op, base, exponent)
    same = union(op, [base], _rows(op, [base, exponent])[:1])
    return power(op, same, fraction)


def _polynomial(op: Op, x: Dependence, *coefficients: Dependence) -> Dependence:
    """By Horner's rule; coefficients in ascending order."""
    at, *avals = op.ins
    (whole,) = op.outs
    found, here = coefficients[-1], avals[-1]
    for coefficient, aval in zip(coefficients[-2::-1], avals[-2::-1]):
        times = _mul(op._replace(ins=(here, at)), found, x)
        found, here = _add(op._replace(ins=(whole, aval)), times, coefficient), whole
    return found if here is whole else union(op, [found], _rows(op._replace(ins=(here,)), [found]))


def _integer_pow(op: Op, base: Dependence) -> Dependence:
    return power(op, base, Fraction(op.params["y"]))


def _power_of(exponent: Fraction) -> Rule:
    return lambda op, base: power(op, base, exponent)


def _select(op: Op, which: Dependence, *cases: Dependence) -> Dependence:
    return union(op, [selector(op, which), *cases], _rows(op, [which, *cases]))


# --- sums and matrices -------------------------------------------------------------------------


def _reduced(op: Op, dep: Dependence) -> list[Axis]:
    return [axis for i, axis in enumerate(dep.axes) if i not in op.params["axes"]]


def _reduce_sum(op: Op, dep: Dependence) -> Dependence:
    summed = any(op.ins[0].shape[i] > 1 for i in op.params["axes"])
    return union(op, [dep], [_reduced(op, dep)], summed)


def _reduce(op: Op, dep: Dependence) -> Dependence:
    return opaque(op, [dep], [_reduced(op, dep)])


def _cumsum(op: Op, dep: Dependence) -> Dependence:
    along = op.params["axis"]
    row = [MIXED if i == along else axis for i, axis in enumerate(dep.axes)]
    return union(op, [dep], [row], summed=op.shape[along] > 1)


def _window_sum(op: Op, dep: Dependence) -> Dependence:
    alone = zip(op.params["window_dimensions"], op.params["padding"], op.ins[0].shape, op.shape)
    row = [axis if (n, tuple(pads)) == (1, (0, 0)) and size == new else MIXED
           for axis, (n, pads, size, new) in zip(dep.axes, alone)]
    return union(op, [dep], [row], summed=True)


def _fft(op: Op, dep: Dependence) -> Dependence:
    kept = len(op.shape) - len(op.params["fft_lengths"])
    return union(op, [dep], [[*dep.axes[:kept], *[MIXED] * (len(op.shape) - kept)]], summed=True)


def _complex(op: Op, *deps: Dependence) -> Dependence:
    return replace(union(op, deps, _rows(op, deps)), chosen=False)


def _dot_general(op: Op, a: Dependence, b: Dependence) -> Dependence:
    (lc, rc), (lb, rb) = op.params["dimension_numbers"]
    left = [axis for i, axis in enumerate(a.axes) if i not in (*lc, *lb)]
    right = [axis for i, axis in enumerate(b.axes) if i not in (*rc, *rb)]
    rows = [
        [*(a.axes[i] for i in lb), *left, *[BLANK] * len(right)],
        [*(b.axes[i] for i in rb), *[BLANK] * len(left), *right],
    ]
    return product(op, a, b, rows, summed=any(op.ins[0].shape[i] > 1 for i in lc))


def _conv(op: Op, a: Dependence, b: Dependence) -> Dependence:
    if op.params["batch_group_count"] != 1:
        return product(op, a, b, [[MIXED] * len(op.shape)] * 2, summed=True)
    spec = op.params["dimension_numbers"]
    left, right = [MIXED] * len(op.shape), [MIXED] * len(op.shape)
    left[spec.out_spec[0]], right[spec.out_spec[0]] = a.axes[spec.lhs_spec[0]], BLANK
    return product(op, a, b, [left, right], summed=True)


def _matrix(op: Op, dep: Dependence) -> Dependence:
    """A nonlinear function of a matrix in the last two axes, batched over the others."""
    return opaque(op, [dep], [[*dep.axes[:-2], MIXED, MIXED]])


def _triangular_solve(op: Op, a: Dependence, b: Dependence) -> Dependence:
    mixed = len(op.shape) - (2 if op.params["left_side"] else 1)
    row = [MIXED if i == mixed else axis for i, axis in enumerate(b.axes)]
    summed = op.shape[mixed] > 1
    return union(op, [selector(op, a), b], [[*a.axes[:-2], BLANK, BLANK], row], summed)


def _iota(op: Op) -> Dependence:
    along = op.params["dimension"]
    axes = tuple(Axis(None, i == along and n > 1) for i, n in enumerate(op.shape))
    return replace(constant(op.shape), axes=axes)


# --- calls -------------------------------------------------------------------------------------


def _call(op: Op, *deps: Dependence) -> list[Dependence]:
    return op.walk(op.params["jaxpr"] if "jaxpr" in op.params else op.params["call_jaxpr"], deps)


def _cond(op: Op, which: Dependence, *deps: Dependence) -> list[Dependence]:
    branches = op.params["branches"]
    if (platforms := op.params.get("branches_platforms")) is not None:
        # The same function written once a platform: the general one (None) tells it best.
        branches = [b for b, p in zip(branches, platforms) if p is None] or branches[:1]
    outs = []
    for i, cases in enumerate(zip(*(op.walk(branch, deps) for branch in branches))):
        here = op._replace(outs=(op.outs[i],))
        rank = len(here.shape)
        rows = [[BLANK] * rank, *(case.axes for case in cases)]
        outs.append(union(here, [selector(op, which), *cases], rows))
    return outs


def _linear_solve(op: Op, *deps: Dependence) -> list[Dependence]:
    """custom_linear_solve: linear in the right-hand sides where the matrix is data."""
    sizes = op.params["const_lengths"]
    if any(d.names for d in deps[: sum(sizes)]):
        return _unknown(op, *deps)
    start = sizes.matvec + sizes.vecmat
    inner = [*deps[start : start + sizes.solve], *deps[sum(sizes) :]]
    return op.walk(op.params["jaxprs"].solve, inner)


def _unknown(op: Op, *deps: Dependence) -> list[Dependence]:
    outs = []
    for out in op.outs:
        here = op._replace(outs=(out,))
        row = [MIXED] * len(out.shape)
        outs.append(opaque(here, deps, [row] * len(deps)) if deps else constant(out.shape))
    return outs


_ELEMENTWISE = """
abs acos acosh and asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt ceil clamp
cos cosh digamma eq eq_to erf erf_inv erfc exp exp2 expm1 floor ge gt igamma igammac is_finite
le le_to lgamma log log1p log2 logistic lt lt_to max min ne nextafter not one_minus_square or
polygamma population_count
regularized_incomplete_beta rem round shift_left shift_right_arithmetic shift_right_logical sign
sin sinh tan tanh xor zeta
"""

_RULES: dict[str, Rule] = {
    **dict.fromkeys(_ELEMENTWISE.split(), _elementwise),
    **dict.fromkeys(
        """conj copy copy_p device_put imag name optimization_barrier real reduce_precision
        stop_gradient""".split(),
        _identity,
    ),
    **dict.fromkeys("add add_any sub".split(), _add),
    **dict.fromkeys(
        "reduce_max reduce_min reduce_prod reduce_and reduce_or reduce_xor argmax argmin".split(),
        _reduce,
    ),
    **dict.fromkeys(
        "scatter scatter-add scatter_add scatter-sub scatter_sub scatter-mul scatter_mul".split(),
        axis_rules.scatter),
    **dict.fromkeys(
        """jit pjit closed_call core_call custom_jvp_call custom_vjp_call custom_vjp_call_jaxpr
        checkpoint remat remat2""".split(),
        _call,
    ),
    "neg": _negate,
    "convert_element_type": _convert,
    "mul": _mul,
    "div": _div,
    "pow": _pow,
    "integer_pow": _integer_pow,
    "polynomial": _polynomial,
    "square": _power_of(Fraction(2)),
    "sqrt": _power_of(Fraction(1, 2)),
    "rsqrt": _power_of(Fraction(-1, 2)),
    "reciprocal": _power_of(Fraction(-1)),
    "select_n": _select,
    "broadcast_in_dim": axis_rules.broadcast,
    "reshape": axis_rules.reshape,
    "squeeze": axis_rules.squeeze,
    "transpose": axis_rules.transpose,
    "rev": axis_rules.rev,
    "slice": axis_rules.resized,
    "dynamic_slice": axis_rules.resized,
    "tile": axis_rules.resized,
    "pad": axis_rules.pad,
    "concatenate": axis_rules.concatenate,
    "stack": axis_rules.stack,
    "split": axis_rules.split,
    "unstack": axis_rules.unstack,
    "gather": axis_rules.gather,
    "dynamic_update_slice": axis_rules.dynamic_update_slice,
    "reduce_sum": _reduce_sum,
    "cumsum": _cumsum,
    "reduce_window_sum": _window_sum,
    "fft": _fft,
    "complex": _complex,
    "dot_general": _dot_general,
    "conv_general_dilated": _conv,
    "cholesky": _matrix,
    "triangular_solve": _triangular_solve,
    "iota": _iota,
    "cond": _cond,
    "scan": loop_rules.scan,
    "while": loop_rules.while_loop,
    "custom_linear_solve": _linear_solve,
}


def rule_of(op: Op) -> Rule:
    """The rule of a primitive."""
    return _RULES.get(op.name, _unknown)
