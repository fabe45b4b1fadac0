"""The proof of structure: claims about a jaxpr hold numerically, blame falls on the right line."""

from __future__ import annotations

import inspect
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from jopa_ppl.graph.structure import Axis, Dependence, analyse, constant, variable

HALF = Fraction(1, 2)
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


def test_controlled_dynamics_are_bilinear_with_the_matmuls_to_blame():
    d = of(lambda A, x, B, u, c: A @ x + B @ u + c, A=A, x=x, B=B, u=u, c=x)
    assert affine(d, "A x", "B u", "c")
    blames = {m: b for m, b in d.monomials.items()}
    assert all((b is None) == (len(m) == 1) for m, b in blames.items())
    assert {b.operation for b in blames.values() if b} == {"dot_general"}
    assert d.axes == (E,)
    assert not d.lost
    assert not d.single


MATMULS = [
    lambda A, X: X @ A.T,
    lambda A, X: jnp.einsum("ij,nj->ni", A, X),
    lambda A, X: jax.vmap(lambda v: A @ v)(X),
    lambda A, X: jnp.einsum("nij,nj->ni", jnp.broadcast_to(A, (5, 3, 3)), X),
    lambda A, X: jax.jit(lambda X: jnp.tensordot(X, A, axes=(1, 1)))(X),
    lambda A, X: jax.checkpoint(lambda X: jnp.sum(A * X[:, None, :], axis=-1))(X),
]


@pytest.mark.parametrize("function", MATMULS)
def test_matmul_keeps_a_plate_of_rows(function):
    d = of(function, A=A, X=ROWS)
    assert affine(d, "A X")
    assert d.axes == (P, E)
    assert not d.lost


def test_contracting_the_plate_loses_it():
    d = of(lambda A, X: X.T @ X @ A, A=A, X=ROWS)
    assert terms(d) == {"A X^2"}
    assert d.lost == {("X", "n")}
    assert d.axes == (E, E)


# Affine in v of shape (3,), with the axes expected and whether the plate on axis 0 survives.
MOVES = {
    "stack": (lambda v: jnp.stack([v, 2 * v]), (E, P), True),
    "concatenate": (lambda v: jnp.concatenate([v, v]), (E,), False),
    "column": (lambda v: jnp.stack([v, v], axis=1)[..., 0], (P,), True),
    "shifted": (lambda v: v[1:], (E,), False),
    "one": (lambda v: v[-1], (), False),
    "take": (lambda v: jnp.take(v, IDX, axis=0), (E,), False),
    "index": (lambda v: v[IDX], (E,), False),
    "paired": (lambda v: jax.vmap(lambda r, i: r[i])(v[:, None] * ones(4), IDX[:3]),
               (Axis("n", True),), True),
    "dynamic": (lambda v: lax.dynamic_slice(v, (1,), (2,)), (E,), False),
    "update": (lambda v: lax.dynamic_update_slice(jnp.zeros(5), v, (1,)), (E,), False),
    "set": (lambda v: jnp.zeros((4, 3)).at[1].set(v), (E, P), True),
    "add": (lambda v: jnp.zeros(5).at[1:4].add(v), (E,), False),
    "diag": (jnp.diag, (Axis("n", True), E), True),
    "eye": (lambda v: jnp.eye(3) * v[:, None], (Axis("n", True), E), True),
    "kron": (lambda v: jnp.kron(v, ones(2)), (E,), False),
    "outer": (lambda v: jnp.outer(v, ones(4)), (P, E), True),  # data may differ, equal or not
    "outer data": (lambda v: jnp.outer(np.arange(4.0), v), (E, P), True),
    "where": (lambda v: jnp.where(np.array([True, False, True]), v, 0.0),
              (Axis("n", True),), True),
    "tril": (lambda v: jnp.tril(v[:, None] + jnp.zeros((3, 3))), (Axis("n", True), E), True),
    "pad": (lambda v: jnp.pad(v, 1), (E,), False),
    "roll": (lambda v: jnp.roll(v, 1), (E,), False),
    "flip": (jnp.flip, (E,), False),
    "tile": (lambda v: jnp.tile(v, 2), (E,), False),
    "repeat": (lambda v: jnp.repeat(v, 2), (E,), False),
    "mean": (jnp.mean, (), False),
    "cumsum": (jnp.cumsum, (E,), False),
    "diff": (jnp.diff, (E,), False),
    "convolve": (lambda v: jnp.convolve(v, np.ones(2)), (E,), False),
    "trace": (lambda v: jnp.trace(jnp.diag(v)), (), False),
    "diagonal": (lambda v: jnp.diagonal(v[:, None] * ones((3, 3))), (E,), False),
    "split": (lambda v: jnp.split(v, 3)[1], (BLANK,), False),
    "solve": (lambda v: jnp.linalg.solve(np.diag([1.0, 2.0, 3.0]), v), (E,), False),
    "triangular": (lambda v: jax.scipy.linalg.solve_triangular(np.eye(3), v), (E,), False),
    "reshape": (lambda v: v.reshape(1, 3, 1), (BLANK, P, BLANK), True),
    "squeeze": (lambda v: jnp.squeeze(v[None, :, None]), (P,), True),
    "swap": (lambda v: jnp.swapaxes(v[None], 0, 1), (P, BLANK), True),
    "expand": (lambda v: jnp.broadcast_to(v[:, None], (3, 4)), (P, BLANK), True),
    "custom": (lambda v: lax.stop_gradient(v) / 2 - v.astype(jnp.float32), (P,), True),
    "cond": (lambda v: lax.cond(jnp.arange(2)[0] > 0, lambda v: v, lambda v: 2 * v, v), (P,), True),
}


@pytest.mark.parametrize("name", MOVES)
def test_linear_operations_transport_axes(name):
    function, axes, kept = MOVES[name]
    d = of(function, v=(x, {0: "n"}))
    assert affine(d, "v")
    assert d.axes == axes
    assert d.lost == (set() if kept else {("v", "n")})


def test_group_index_of_a_latent():
    d = of(lambda mu, z: mu[IDX] + z, mu=x, z=(ones(5), {0: "n"}))
    assert affine(d, "mu", "z")
    assert d.axes == (Axis("n", True),)
    assert not d.lost


def test_reshape_keeps_whole_axes_and_mixes_merged_ones():
    y = (ones((5, 2, 3)), {0: "n"})
    assert of(lambda y: y.reshape(5, 6), y=y).axes == (P, E)
    merged = of(lambda y: y.reshape(10, 1, 3), y=y)
    assert merged.axes == (E, BLANK, E)
    assert merged.lost == {("y", "n")}
    assert of(lambda y: y.reshape(5, 3, 2), y=y).axes == (P, E, E)


def test_plates_that_clash_are_lost():
    two = dict(a=(x, {0: "n"}), b=(x, {0: "m"}))
    d = of(lambda a, b: a + b, **two)
    assert d.axes == (E,)
    assert d.lost == {("a", "n"), ("b", "m")}
    d = of(lambda a: a[:, None] * a[None, :], a=(x, {0: "n"}))  # one plate on two axes
    assert d.axes == (E, E)
    assert d.lost == {("a", "n")}
    d = of(lambda a, b: a[:, None] * b, **two)
    assert d.axes == (P, Axis("m", False))
    assert not d.lost


SCALES = {
    "tau^-1/2": [
        lambda t: 1 / jnp.sqrt(t),
        lambda t: t**-0.5,
        lambda t: lax.rsqrt(t),
        lambda t: jnp.power(t, -0.5),
        lambda t: jnp.power(t, jnp.asarray(-0.5)),
        lambda t: jnp.sqrt(1 / t),
        lambda t: jnp.reciprocal(jnp.sqrt(3 * t)),
        lambda t: jnp.sqrt(jnp.square(t**-0.5)),
        lambda t: dist.Normal(0, 1 / jnp.sqrt(t)).expand([5, 3]).to_event(1).base_dist.base_dist
        .scale,
    ],
    "tau": [
        lambda t: jnp.eye(3) * t,
        lambda t: jnp.diag(jnp.full(3, t)),
        lambda t: (t**0.5) ** 2,
        lambda t: jnp.cbrt(2.0) * t,
        lambda t: jnp.diag(jnp.eye(3) * t),
        lambda t: t**3 / t**2,
    ],
    "tau^-1": [lambda t: t**-1, lambda t: 1 / t, lambda t: (1 / jnp.sqrt(t)) * (1 / jnp.sqrt(t))],
    "tau^2": [lambda t: t**2, jnp.square, lambda t: t * t],
}


@pytest.mark.parametrize(
    ("expected", "function"), [(k, f) for k, functions in SCALES.items() for f in functions]
)
def test_powers_of_a_single_monomial(expected, function):
    d = of(function, tau=1.0)
    assert terms(d) == {expected}
    assert not d.nonlinear
    assert d.single
    assert d.degree("tau") == Fraction(expected.partition("^")[2] or 1)


def test_scale_of_two_precisions():
    d = of(lambda a, b: 1 / jnp.sqrt(a * b[:, None]), a=x, b=(ones(5), {0: "n"}))
    assert terms(d) == {"a^-1/2 b^-1/2"}
    assert d.axes == (P, E)
    assert d.single


# What looks like a power of a monomial and is not.
NOT_POWERS = [
    lambda t: jnp.sqrt(t * t),  # |t|
    lambda t: 1 / jnp.sqrt(jnp.sum(t)),
    lambda t: 1 / (1 + t),
    lambda t: jnp.sqrt(t[0] + t[1]),
    lambda t: jnp.ones((3, 3)) / (jnp.ones((3, 3)) @ t),
    lambda t: (t + 1) ** 0.5,
    lambda t: jnp.cumsum(t) ** -1.0,
    lambda t: jnp.power(2.0, t),
    lambda t: jnp.power(t, np.arange(3.0)),
    lambda t: t.astype(jnp.int32),
    lambda t: jnp.abs(t),
    lambda t: t / t[::-1],  # no constant
    lambda t: jnp.sqrt(t) * jnp.sqrt(t[::-1]),
    lambda t: (t * t[::-1] * t[IDX[:3]]) ** (1 / 3),
    lambda t: jnp.outer(t, t) / t,
]


@pytest.mark.parametrize("function", NOT_POWERS)
def test_roots_of_sums_and_of_squares_are_nonlinear(function):
    assert of(function, t=x).nonlinear.keys() == {"t"}


def test_exponents_add_where_the_elements_are_the_same():
    tau = (ones((5, 3)), {0: "n", 1: "m"})
    d = of(lambda t: (1 / jnp.sqrt(t)).T * t.T**-0.5, t=tau)
    assert terms(d) == {"t^-1"}
    assert not d.lost
    assert of(lambda t: (1 / jnp.sqrt(t)).T * t[::-1].T ** -0.5, t=tau).nonlinear
    sd = lambda t: jnp.diag(lax.rsqrt(t))
    assert terms(of(lambda t: (lambda s: s * s)(sd(t)), t=x)) == {"t^-1"}


def test_inputs_of_one_name_are_not_one_element():
    one = variable("carry", (), {})
    (d,) = analyse(jax.make_jaxpr(lambda a, b: a / b)(1.0, 1.0), [one, one])
    assert d.nonlinear.keys() == {"carry"}


def test_a_root_that_would_cancel_to_a_sign_is_nonlinear():
    d = of(lambda a, b: jnp.sqrt(a * b) * jnp.sqrt(a / b), a=1.0, b=1.0)
    assert d.nonlinear.keys() == {"a", "b"}


def test_numpyro_distributions():
    d = of(lambda W, m: dist.MultivariateNormal(m, precision_matrix=W).precision_matrix, W=A, m=x)
    assert affine(d, "W")
    d = of(lambda W, m: dist.MultivariateNormal(m, precision_matrix=W).loc, W=A, m=ROWS)
    assert affine(d, "m")
    assert d.axes == (P, E)
    hidden = of(lambda W: dist.MultivariateNormal(x, precision_matrix=W).scale_tril, W=A)
    assert hidden.nonlinear["W"].operation == "cholesky"


def line(function) -> int:
    """The one line of the function under test that is marked `# here`."""
    lines, start = inspect.getsourcelines(function)
    return start + next(i for i, text in enumerate(lines) if "# here" in text)


def _sine(A, x):
    y = A @ x
    return jnp.sin(y)  # here


def _softmax(A, x):
    return A @ x + jax.nn.softmax(  # here
        x
    )


@jax.jit
def _helper(x):
    return x + jnp.tanh(x)


def _library_jit(A, x):
    y = 2 * x
    return jnp.convolve(jnp.exp(y), y)  # here


def _scan(A, x):
    y = A @ x
    return lax.scan(lambda c, _: (A @ c, None), y, length=2)[0]  # here


def _norm(A, x):
    return A @ (x / jnp.linalg.norm(x))  # here


@pytest.mark.parametrize(
    ("function", "operation", "nonlinear"),
    [
        (_sine, "sin", {"A", "x"}),
        (_softmax, "reduce_max", {"x"}),
        (_library_jit, "exp", {"x"}),
        (_scan, "scan", {"A", "x"}),
        (_norm, "sqrt", {"x"}),
    ],
)
def test_the_first_nonlinear_operation_and_its_line(function, operation, nonlinear):
    d = of(function, A=A, x=x)
    assert d.nonlinear.keys() == nonlinear
    assert d.degree("x") is None
    for blame in d.nonlinear.values():
        assert blame == (operation, f"{__file__}:{line(function)} ({function.__name__})")


def test_a_cached_trace_of_a_library_blames_the_present_caller():
    def first(x):
        return jnp.linalg.norm(x)

    def second(x):
        return jnp.linalg.norm(x)  # here

    of(first, x=x)
    assert f":{line(second)} (" in of(second, x=x).nonlinear["x"].where


def test_the_users_own_jitted_function_is_blamed():
    assert "(_helper)" in of(lambda x: _helper(2 * x), x=x).nonlinear["x"].where


def _squared(A, x):
    return x * x + A @ x  # here


def _inner(A, x):
    return x @ x  # here


def _twice(A, x):
    y = A @ x
    return A @ y  # here


@pytest.mark.parametrize(
    ("function", "name", "operation", "monomials"),
    [
        (_squared, "x", "mul", {"x^2", "A x"}),
        (_inner, "x", "dot_general", {"x^2"}),
        (_twice, "A", "dot_general", {"A^2 x"}),
    ],
)
def test_products_of_an_input_with_itself(function, name, operation, monomials):
    d = of(function, A=A, x=x)
    assert terms(d) == monomials
    assert d.degree(name) == 2
    assert d.not_affine == {name: (operation, f"{__file__}:{line(function)} ({function.__name__})")}


def test_selection_by_a_latent_is_linear_in_the_rest():
    d = of(lambda x, a, b: jnp.where(x > 0, a, b), x=x, a=x, b=x)
    assert terms(d) == {"a", "b"}
    assert d.nonlinear["x"].operation == "gt"


def test_bilinear_and_constant_outputs():
    assert affine(of(lambda u, x: u * x, u=x, x=x), "u x")
    d = of(lambda x: jnp.exp(jnp.arange(3.0)), x=x)
    assert d.is_constant
    assert terms(d) == {"1"}
    assert d.axes == (E,)
    assert of(lambda x: 0 * x, x=x).monomials == {}
    assert of(lambda x: jnp.zeros((3, 3)), x=x).axes == (BLANK, BLANK)


def test_bad_arguments():
    with pytest.raises(ValueError, match="takes 1 arguments, got 0"):
        analyse(jax.make_jaxpr(jnp.sin)(1.0), [])
    with pytest.raises(ValueError, match="one axis only"):
        variable("x", (2, 2), {0: "n", 1: "n"})
    assert constant((3, 1)).axes == (E, BLANK)


# --- random programs, their claims checked by evaluating them -----------------------------------

N = 3
ROW, COLUMN, BOTH = {0: "n"}, {1: "m"}, {0: "n", 1: "m"}
PLATES = {"a": ROW, "b": ROW, "c": COLUMN, "M": {}, "s": BOTH, "t": BOTH}
DATA = np.random.default_rng(0).uniform(0.5, 2.0, (N, N))
PERM = np.array([2, 0, 1])

UNARY = {
    "scale": lambda z: z * DATA,
    "shift": lambda z: z + DATA,
    "row data": lambda z: z * DATA[0],
    "matmul": lambda z: z @ DATA,
    "left": lambda z: DATA @ z,
    "T": lambda z: z.T,
    "flip": lambda z: z[::-1],
    "take": lambda z: z[:, PERM],
    "take0": lambda z: jnp.take(z, PERM, axis=0),
    "sum": lambda z: jnp.broadcast_to(z.sum(0), (N, N)),
    "sum1": lambda z: jnp.broadcast_to(z.sum(1, keepdims=True), (N, N)),
    "first": lambda z: jnp.broadcast_to(z[:, :1], (N, N)),
    "first0": lambda z: jnp.broadcast_to(z[0], (N, N)),
    "roll": lambda z: jnp.concatenate([z[1:], z[:1]]),
    "stack": lambda z: jnp.stack([z, z * DATA], axis=1).sum(1),
    "stack2": lambda z: jnp.stack([z[:, 0], z[:, 2], z[:, 2]], axis=1),
    "reshape": lambda z: z.reshape(N, 1, N).reshape(N * N).reshape(N, N),
    "flat": lambda z: z.reshape(N, N, 1).transpose(1, 2, 0).squeeze(1),
    "mask": lambda z: jnp.where(DATA > 1, z, 0.0),
    "tril": jnp.tril,
    "cumsum": lambda z: jnp.cumsum(z, axis=1),
    "set": lambda z: z.at[1].set(DATA[1]),
    "add at": lambda z: z.at[:, 1].add(z[:, 0]),
    "pad": lambda z: jnp.pad(z, ((0, 0), (1, 0)))[:, :N],
    "diag": lambda z: jnp.diag(z[:, 1]),
    "vmap": lambda z: jax.vmap(lambda v: DATA @ v)(z),
    "pick": lambda z: jax.vmap(lambda v, i: v[i] * DATA[0])(z, PERM),
    "solve": lambda z: jnp.linalg.solve(DATA + 3 * np.eye(N), z),
    "sin": jnp.sin,
    "abs": jnp.abs,
    "sqrt": jnp.sqrt,
    "rsqrt": lambda z: 1 / jnp.sqrt(z * DATA),
    "cube": lambda z: z**3,
    "invert": lambda z: 1 / z,
    "square": jnp.square,
    "softmax": jax.nn.softmax,
    "jit": jax.jit(lambda z: 2 * z.T),
}
BINARY = {
    "add": jnp.add,
    "sub": jnp.subtract,
    "mul": jnp.multiply,
    "div": jnp.divide,
    "dot": jnp.matmul,
    "dot t": lambda y, z: y @ z.T,
    "batch": lambda y, z: jnp.einsum("ni,nj->nij", y, z).sum(2),
    "outer": lambda y, z: jnp.outer(y[:, 0], z[0]),
    "where": lambda y, z: jnp.where(DATA > 1, y, z),
    "cat": lambda y, z: jnp.concatenate([y[:, :1], z[:, 1:]], axis=1),
    "update": lambda y, z: lax.dynamic_update_slice(y, z[:2], (1, 0)),
}


@st.composite
def programs(draw):
    """A function of all inputs: a chain of operations on a growing pool of (N, N) arrays."""
    powers = ["sqrt", "rsqrt", "invert", "square", "mul", "div"]  # wanted often, and in a row
    leaf = st.sampled_from(sorted(PLATES))
    ops = st.one_of(st.sampled_from([*UNARY, *BINARY, *BINARY]), st.sampled_from(powers))
    steps = draw(st.lists(st.tuples(ops, leaf, st.booleans()), min_size=1, max_size=6))
    start = draw(leaf)

    def function(inputs):
        z = inputs[start]
        for name, other, swap in steps:
            if name in UNARY:
                z = UNARY[name](z)
            else:
                z = BINARY[name](*((inputs[other], z) if swap else (z, inputs[other])))
        return z

    function.__name__ = f"{start}: {steps}"
    return function


def _close(y, z):
    both = np.isfinite(y) & np.isfinite(z)
    scale = max(1.0, np.max(np.abs(z[both]), initial=0.0))
    np.testing.assert_allclose(y[both], z[both], atol=1e-8 * scale)


def _check_monomials(f, d, inputs, rng):
    """Scaling input i by s_i > 0 scales each monomial by the product of s_i ** exponent_i; and
    where x has whole exponents up to D, differences of order D + 1 in x vanish."""
    trusted = [n for n in sorted(inputs) if n not in d.nonlinear]
    s = rng.uniform(0.5, 2.0, (len(d.monomials) + 3, len(trusted)))
    design = np.stack([np.prod([s[:, trusted.index(n)] ** float(e) for n, e in m if n in trusted],
                               axis=0) * np.ones(len(s)) for m in d.monomials] or [0 * s[:, 0]], 1)
    scaled = [f({**inputs, **{n: k * inputs[n] for n, k in zip(trusted, row)}}) for row in s]
    values = np.stack(scaled).reshape(len(s), -1)
    values = values[:, np.isfinite(values).all(0)]
    _close(design @ np.linalg.lstsq(design, values, rcond=None)[0], values)
    for name in trusted:
        exponents = {e for m in d.monomials for n, e in m if n == name}
        if all(e > 0 and e.denominator == 1 for e in exponents):
            order = int(max(exponents, default=0)) + 1
            h = rng.normal(size=(N, N))
            at = [f({**inputs, name: inputs[name] + k * h}) for k in range(order + 1)]
            alternating = [(-1) ** k * math.comb(order, k) * y for k, y in enumerate(at)]
            _close(sum(alternating) + np.max(np.abs(at)), np.full((N, N), np.max(np.abs(at))))


def _check_single(f, d, inputs, rng):
    """One monomial without sums: log |f| is affine in the logarithms of all elements."""
    if d.single and len(d.monomials) == 1:
        w = {n: rng.normal(size=(N, N)) / 2 for n in inputs if n not in d.nonlinear}
        at = [f({n: v * np.exp(k * w.get(n, 0)) for n, v in inputs.items()}) for k in range(3)]
        with np.errstate(divide="ignore"):
            low, middle, high = (np.log(np.abs(y)) for y in at)
        _close(low + high, 2 * middle)


def _check_axes(f, d, inputs, rng):
    base, n = f(inputs), rng.integers(N)
    for name in d.names:
        for axis, plate in PLATES[name].items():
            if (name, plate) in d.lost:
                continue
            where = [i for i, out in enumerate(d.axes) if out.plate == plate]
            assert len(where) == 1  # a plate that is not lost is there
            changed = inputs[name].copy()
            changed[(slice(None),) * axis + (n,)] *= rng.uniform(1.1, 2.0, N)
            moved = f({**inputs, name: changed})
            others = [i for i in range(N) if i != n]
            _close(moved.take(others, where[0]), base.take(others, where[0]))
    for i, axis in enumerate(d.axes):
        if not axis.varies:  # then only its plate can make elements differ
            same = dict(inputs)
            for name, plates in PLATES.items():
                for j, plate in plates.items():
                    if plate == axis.plate:
                        same[name] = same[name].take([0] * N, j)
            flat = f(same)
            _close(flat, flat.take([0] * N, i))


@settings(max_examples=120, deadline=None, derandomize=True)
@given(function=programs(), seed=st.integers(0, 100))
def test_random_programs_keep_every_claim(function, seed):
    rng = np.random.default_rng(seed)
    with jax.enable_x64(True):
        inputs = {name: rng.uniform(0.5, 2.0, (N, N)) for name in sorted(PLATES)}
        jaxpr = jax.make_jaxpr(function)(inputs)
        (d,) = analyse(jaxpr, [variable(n, (N, N), PLATES[n]) for n in sorted(PLATES)])

        def f(values):
            return np.asarray(function({k: jnp.asarray(v) for k, v in values.items()}))

        assert len(d.axes) == 2
        _check_monomials(f, d, inputs, rng)
        _check_single(f, d, inputs, rng)
        _check_axes(f, d, inputs, rng)
