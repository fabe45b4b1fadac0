"""The proof of structure: exponents of monomials, and what looks like a power and is not."""

from __future__ import annotations

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from jax import lax
from proofs import BLANK, IDX, E, P, affine, of, ones, terms, x

from jopa_ppl.proof.analyse import analyse
from jopa_ppl.proof.dependence import constant, variable

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


def test_what_data_choose_from_has_powers_and_a_sum_has_none():
    chosen = of(lambda t, k: 1 / jnp.sqrt(jnp.where(jnp.arange(3) > 0, t, k)), tau=1.0, kappa=1.0)
    assert terms(chosen) == {"tau^-1/2", "kappa^-1/2"} and chosen.chosen and not chosen.nonlinear
    for added in (lambda t, k: 1 / (t + k), lambda t, k: 1 / jnp.sum(jnp.stack([t, k]))):
        assert of(added, tau=1.0, kappa=1.0).nonlinear


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
