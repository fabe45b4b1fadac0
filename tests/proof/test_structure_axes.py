"""The proof of structure: linear operations carry monomials, axes and plates."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from jax import lax
from proofs import BLANK, IDX, ROWS, A, B, E, P, affine, of, ones, terms, u, x

from jopa_ppl.proof.dependence import Axis


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
    "polynomial": (lambda v: jnp.polyval(v, np.arange(4.0)), (E,), False),
    "unpacked": (lambda v: next(iter(v)), (), False),
    "unpacked, the other axis": (lambda v: [*jnp.stack([v, 2 * v], axis=1).T][1], (P,), True),
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


def test_numpyro_distributions():
    d = of(lambda W, m: dist.MultivariateNormal(m, precision_matrix=W).precision_matrix, W=A, m=x)
    assert affine(d, "W")
    d = of(lambda W, m: dist.MultivariateNormal(m, precision_matrix=W).loc, W=A, m=ROWS)
    assert affine(d, "m")
    assert d.axes == (P, E)
    hidden = of(lambda W: dist.MultivariateNormal(x, precision_matrix=W).scale_tril, W=A)
    assert hidden.nonlinear["W"].operation == "cholesky"
