"""The proof of structure: random programs, their claims checked by evaluating them."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from jopa_ppl.proof.analyse import analyse
from jopa_ppl.proof.dependence import variable

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
    "rows apart": lambda z: jnp.stack([2 * row for row in z]),
    "columns apart": lambda z: jnp.stack([*z.T[::-1]], axis=1),
    "polynomial": lambda z: jnp.polyval(z[:, 0], DATA),
    "polynomial of it": lambda z: jnp.polyval(DATA[0], 0.1 * z),
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
    "times at": lambda z: z.at[1].multiply(DATA[1]),
    "map": lambda z: lax.map(lambda v: v * DATA[0], z),
    "loop": lambda z: lax.fori_loop(0, 3, lambda i, v: v @ DATA, z),
    "long loop": lambda z: lax.fori_loop(0, 12, lambda i, v: 0.1 * v @ DATA + z, z),
    "rows": lambda z: lax.scan(lambda s, v: (s + v, s * DATA[0]), jnp.zeros(N), z)[1],
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
    "times at": lambda y, z: y.at[0].multiply(z[0]),
    "map": lambda y, z: lax.map(lambda v: v[0] * v[1], (y, z)),
    "loop": lambda y, z: lax.fori_loop(0, 2, lambda i, v: v * z, y),
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
            # Terms far larger than f, of which the difference cancels all but their rounding.
            rounding = 1e-13 * np.max(np.abs(alternating)) / 1e-8
            size = np.max(np.abs(at)) + rounding
            _close(sum(alternating) + size, np.full((N, N), size))


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


def _keeps_every_claim(function, seed):
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


@settings(max_examples=60, deadline=None, derandomize=True)
@given(function=programs(), seed=st.integers(0, 100))
def test_random_programs_keep_every_claim(function, seed):
    _keeps_every_claim(function, seed)


@pytest.mark.slow
@settings(max_examples=1000, deadline=None, derandomize=True)
@given(function=programs(), seed=st.integers(101, 1000))
def test_many_random_programs_keep_every_claim(function, seed):
    _keeps_every_claim(function, seed)
