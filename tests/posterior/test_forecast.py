"""What comes after the last step, against the closed form."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from faults import message
from numpy.testing import assert_allclose

import jopa_ppl as jp
from jopa_ppl.errors import DataError, JopaError, StructureError


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def walk(y=None, drift=None, *, T, known=False):
    a = 0.8 if known else jp.latent("a", dist.Normal(0.5, 0.5))
    x0 = jp.latent("x0", dist.Normal(0.0, 1.0))

    def step(x, inputs):
        y, d = inputs
        jp.observe("y", dist.Normal(x, 0.3), y)
        return jp.latent("x", dist.Normal(a * x + (0.0 if d is None else d), 0.2)), None

    jp.scan(step, x0, (y, drift), length=T)


def series(T=20):
    rng, x, y = np.random.default_rng(0), 1.0, []
    for _ in range(T):
        y.append(x + 0.3 * rng.normal())
        x = 0.8 * x + 0.2 * rng.normal()
    return np.array(y)


def test_it_is_the_closed_form_where_that_is_known():
    y, steps = series(), 6
    found = jp.VMP(walk, progress=False).run(y, T=20, known=True)
    mean, var = found.mean("x")[-1], found.variance("x")[-1]        # of the first step to come
    draws = found.forecast(steps, rng_key=1, num_samples=20_000)
    assert draws["y"].shape == draws["x"].shape == (20_000, steps)
    for t in range(steps):
        spread = np.sqrt(var + 0.09)
        assert abs(draws["y"][:, t].mean() - mean) < 4 * spread / np.sqrt(20_000)
        assert_allclose(draws["y"][:, t].std(), spread, rtol=0.03)
        mean, var = 0.8 * mean, 0.64 * var + 0.04


def test_what_is_global_stays_as_it_is_and_draws_go_on_from_the_last_state():
    y = series()
    found = jp.VMP(walk, progress=False).run(y, T=20)
    longer = found._extended(6)
    assert longer.mean("x").shape == (26,)
    assert_allclose(longer.mean("a"), found.mean("a"), rtol=1e-12)
    assert_allclose(longer.variance("a"), found.variance("a"), rtol=1e-12)
    by_hand = jp.VMP(jp.given(walk, found, ["a"]), progress=False).run(
        np.append(y, [np.nan] * 6), T=26)
    assert_allclose(longer.mean("x"), by_hand.mean("x"), rtol=1e-12)


def test_what_cannot_go_on_is_refused_by_name():
    y = series()
    found = jp.VMP(walk, progress=False).run(y, T=20)
    message(DataError, lambda: found.forecast(6, length="N"), "number of steps", "that is 20")
    message(JopaError, lambda: found.forecast(0), "steps")
    driven = jp.VMP(walk, progress=False).run(y, np.full(20, 0.1), T=20)
    message(DataError, lambda: driven.forecast(6), "inputs that are not known", "(20,)")

    def counts(y=None, w=None, *, T):
        def step(x, inputs):
            y, w = inputs
            jp.observe("y", dist.Poisson(jnp.exp(x if w is None else x + w)), y)
            return jp.latent("x", dist.Normal(0.9 * x, 0.2)), None

        jp.scan(step, jp.latent("x0", dist.Normal(0.0, 1.0)), (y, w), length=T)

    ones = np.ones(8)
    driven = jp.VMP(counts, progress=False).run(ones, 0.1 * ones, T=8)
    message(DataError, lambda: driven.forecast(2), "inputs that are not known")
    plain = jp.VMP(counts, progress=False).run(ones, T=8).forecast(2, num_samples=500)["y"]
    assert plain.shape == (500, 2) and (plain >= 0).all() and plain.max() > 1

    def line(y):
        b = jp.latent("b", dist.Normal(0.0, 1.0))
        jp.observe("y", dist.Normal(b * jnp.ones(4), 1.0).to_event(1), y)

    message(StructureError, lambda: jp.VMP(line, progress=False).run(np.ones(4)).forecast(3),
            "0 scans")


def test_a_length_that_data_tell_or_a_place_in_the_call():
    def plain(y):
        x0 = jp.latent("x0", dist.Normal(0.0, 1.0))

        def step(x, y):
            jp.observe("y", dist.Normal(x, 0.3), y)
            return jp.latent("x", dist.Normal(0.8 * x, 0.2)), None

        jp.scan(step, x0, y)

    y = series()
    found = jp.VMP(plain, progress=False).run(y)
    named = jp.VMP(walk, progress=False).run(y, T=20, known=True)
    assert_allclose(found.forecast(5, rng_key=1)["y"], named.forecast(5, rng_key=1)["y"])

    def closed(y, n):
        x0 = jp.latent("x0", dist.Normal(0.0, 1.0))

        def step(x, _):
            x = jp.latent("x", dist.Normal(0.9 * x, 0.1))
            return x, x

        _, xs = jp.scan(step, x0, None, length=n)
        jp.observe("y", dist.Normal(xs, 1.0).to_event(1), y)

    bound = jp.VMP(partial(closed, n=12), progress=False).run(y[:12])
    message(DataError, lambda: bound.forecast(4), "number of steps")
    held = jp.VMP(lambda: plain(jnp.asarray(y)), progress=False).run()
    message(DataError, lambda: held.forecast(4), "number of steps")

    placed = jp.VMP(lambda y, T: plain(y), progress=False).run(y, 20)
    message(DataError, lambda: placed.forecast(5), "by keyword", "T=20")


def test_a_global_that_is_one_with_the_states_stays_so():
    """A level seen with its offset: the sum is known, neither of the two is."""
    def off(y=None, *, T):
        b = jp.latent("b", dist.Normal(0.0, 5.0))

        def step(x, y):
            jp.observe("y", dist.Normal(x + b, 0.1), y)
            return jp.latent("x", dist.Normal(x, 0.2)), None

        jp.scan(step, jp.latent("x0", dist.Normal(0.0, 5.0)), y, length=T)

    y = 5 + np.cumsum(0.2 * np.random.default_rng(0).normal(size=20))
    found = jp.VMP(off, progress=False).run(y, T=20)
    longer = jp.VMP(off, progress=False).run(np.append(y, [np.nan] * 3), T=23)
    assert_allclose(found._extended(3).mean("x"), longer.mean("x"), rtol=1e-9)
    spread = found.forecast(3, num_samples=20_000)["y"].std(0)
    assert_allclose(spread, longer.predict(rng_key=1, num_samples=20_000)["y"][:, 20:].std(0),
                    rtol=0.03)
    assert spread.max() < 0.5
