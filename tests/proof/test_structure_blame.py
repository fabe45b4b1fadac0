"""The proof of structure: blame falls on the right operation and line."""

from __future__ import annotations

import inspect

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from proofs import A, of, terms, x


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
    return lax.scan(lambda c, _: (jnp.sin(c), None), y, length=2)[0]  # here


def _norm(A, x):
    return A @ (x / jnp.linalg.norm(x))  # here


@pytest.mark.parametrize(
    ("function", "operation", "nonlinear"),
    [
        (_sine, "sin", {"A", "x"}),
        (_softmax, "reduce_max", {"x"}),
        (_library_jit, "exp", {"x"}),
        (_scan, "sin", {"A", "x"}),
        (_norm, "sqrt", {"x"}),
    ],
)
def test_the_first_nonlinear_operation_and_its_line(function, operation, nonlinear):
    d = of(function, A=A, x=x)
    assert d.nonlinear.keys() == nonlinear
    assert d.degree("x") is None
    for blame in d.nonlinear.values():
        assert blame.operation == operation                 # in a lambda of the function, for one
        assert blame.where.startswith(f"{__file__}:{line(function)} ({function.__name__}")


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
