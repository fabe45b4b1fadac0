"""Every public method that draws takes a key or a seed, and refuses anything else alike."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
from faults import mean_only, message
from flax import nnx
from numpy.testing import assert_array_equal

import jopa_ppl as jp
from jopa_ppl.language.keys import as_key

Y = np.array([0.3, np.nan, 0.9])


def line(y=None, *, T=3):
    """A program that `correct` takes: one chain and one precision."""
    tau = jp.latent("tau", dist.Gamma(3.0, 1.0))
    x0 = jp.latent("x0", dist.Normal(0.0, 1.0))

    def step(x, y):
        jp.observe("y", dist.Normal(x, 0.5), y)
        return jp.latent("x", dist.Normal(x, 1 / jnp.sqrt(tau))), None

    jp.scan(step, x0, y, length=T)


def decoded(y, *, net):
    x = jp.latent("x", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
    jp.observe("y", dist.Normal(jp.module("net", net)(x), 1.0).to_event(1), y)


def test_a_key_a_seed_or_nothing():
    key = jax.random.key(7)
    assert as_key(key) is key
    for seed in (7, np.int32(7), np.uint8(7)):
        assert_array_equal(jax.random.key_data(as_key(seed)), jax.random.key_data(key))
    assert_array_equal(jax.random.key_data(as_key(None)), jax.random.key_data(jax.random.key(0)))
    assert_array_equal(as_key(jax.random.PRNGKey(7)), jax.random.PRNGKey(7))


WRONG = [1.5, "seed", True, jax.random.split, np.zeros(2), np.arange(3), ()]


def called(value):
    """A name for a test: not one that holds an address."""
    return getattr(value, "__name__", repr(value))


@pytest.mark.parametrize("wrong", [*map(called, WRONG), "two keys", "two raw keys"])
def test_anything_else_is_refused(wrong):
    values = dict(zip(map(called, WRONG), WRONG))
    values |= {"two keys": jax.random.split(jax.random.key(0)),
               "two raw keys": jax.random.split(jax.random.PRNGKey(0))}
    message(jp.JopaError, lambda: as_key(values[wrong]), "rng_key", "jax.random.key(seed)")


def leaves(found):
    return [np.asarray(x) for x in jax.tree.leaves(found)]


@pytest.fixture(scope="module")
def fitted():
    return jp.VMP(mean_only, progress=False).run(Y)


METHODS = {
    "VMP.run": lambda p, key: jp.VMP(mean_only, progress=False).run(Y, rng_key=key).mean("m"),
    "sample": lambda p, key: p.sample(key, (3,)),
    "predict": lambda p, key: p.predict(rng_key=key, num_samples=3),
    "to_arviz": lambda p, key: p.to_arviz(3, rng_key=key, groups=("posterior",))
    .posterior["m"].values,
    "correct": lambda p, key: jp.correct(jp.VMP(line, progress=False).run(Y), 20,
                                         rng_key=key).draws,
    "compare": lambda p, key: jp.compare(mean_only, Y, engines=("vmp",), rng_key=key, num_draws=3,
                                         progress=False).runs["vmp"].draws,
}


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n == "correct" else n
                                  for n in METHODS])
def test_a_seed_is_its_key_everywhere(fitted, name):
    by_seed, by_key = (METHODS[name](fitted, key) for key in (3, jax.random.key(3)))
    for a, b in zip(leaves(by_seed), leaves(by_key), strict=True):
        assert_array_equal(a, b)
    message(jp.JopaError, lambda: METHODS[name](fitted, 0.5), "rng_key is not a PRNG key")


def test_variational_em_takes_a_seed():
    em = jp.VariationalEM(decoded, optax.adam(0.1), m_steps=1, progress=False)
    net = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    (a, _), (b, _) = (em.run(key, 1, jnp.ones(3), net=net) for key in (3, jax.random.key(3)))
    assert_array_equal(a.free_energy, b.free_energy)
    message(jp.JopaError, lambda: em.run(0.5, 1, jnp.ones(3), net=net), "rng_key")
