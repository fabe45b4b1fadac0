"""Latents as inputs of scans, scans that read scans, and globals that join a chain: all exact."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan

import jopa_ppl as jp
from tests.oracles import dense_gaussian

T = 7
RNG = np.random.default_rng(1)
Y, Z, X = RNG.normal(size=T), RNG.normal(size=T), RNG.normal(size=(T, 2))
Y[3] = np.nan
Normal = dist.Normal


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def walk(name: str, seen: str, slope: float = 0.9) -> Callable:
    """A step whose input, its second, pushes the state; what it sees is the first."""
    def step(x: Any, data: Any) -> Any:
        y, push = data
        x = jp.latent(name, Normal(slope * x + push, 0.3))
        jp.observe(seen, Normal(x, 0.5), obs=y)
        return x, 2 * x

    return step


def first(name: str = "x0") -> Any:
    return jp.latent(name, Normal(0, 1))


def a_plate_of_time(y: Any) -> None:
    with numpyro.plate("time", T):
        u = jp.latent("u", Normal(0, 0.5))
    scan(walk("x", "y"), first(), (y, u))


def a_slope(y: Any) -> None:
    scan(walk("x", "y"), first(), (y, jp.latent("b", Normal(0, 1)) * jnp.arange(T)))


def functions_of_latents(y: Any, z: Any) -> None:
    m = jp.latent("m", Normal(0, 1))
    with numpyro.plate("time", T):
        u = jp.latent("u", Normal(m, jnp.linspace(0.5, 1, T)))
        v = jp.latent("v", Normal(2 * u, 0.3))
    scan(walk("x", "y"), first(), (y, v * z + 1))
    jp.observe("z", Normal(u, 1.0), obs=z)


def sums_of_them(y: Any) -> None:
    with numpyro.plate("time", T):
        u = jp.latent("u", Normal(0, 0.5))
    scan(walk("x", "y"), first(), (y, jnp.cumsum(u)))


def states_of_a_scan(y: Any, z: Any) -> None:
    _, xs = scan(walk("x", "y"), first(), (y, jnp.zeros(T)))
    _, zs = scan(walk("z", "w", 0.5), first("z0"), (z, xs))
    jp.observe("end", Normal(zs, 1.0), obs=jnp.ones(T))


def a_scan_of_a_scan_of_a_scan(y: Any, z: Any, x: Any) -> None:
    """Each reads data of its own besides the states of the one before."""
    _, xs = scan(walk("x", "y"), first(), (y, jnp.zeros(T)))
    _, zs = scan(walk("z", "w", 0.5), first("z0"), (z, xs))
    scan(walk("s", "v", 0.7), first("s0"), (x[:, 0], zs))


def an_input_of_two(y: Any, z: Any) -> None:
    with numpyro.plate("time", T):
        u = jp.latent("u", Normal(0, 1))
    scan(walk("x", "y"), first(), (y, u))
    last, _ = scan(walk("z", "w", 0.5), first("z0"), (z, u))
    jp.observe("end", Normal(last, 1.0), obs=1.0)


def regression(y: Any, x: Any) -> None:
    beta = jp.latent("beta", Normal(jnp.zeros(2), 1.0).to_event(1))

    def step(level: Any, data: Any) -> Any:
        y, x = data
        level = jp.latent("l", Normal(level, 0.3))
        jp.observe("y", Normal(level + x @ beta, 0.5), obs=y)
        return level, None

    scan(step, first("l0"), (y, x))


def drift(y: Any) -> None:
    b = jp.latent("b", Normal(jp.latent("m", Normal(0, 1)), 1.0))
    scan(walk("l", "y"), first("l0"), (y, b * jnp.ones(T)))


def drift_of_a_recursion(y: Any) -> None:
    b = jp.latent("b", Normal(0, 1))

    def step(level: Any, y: Any) -> Any:
        level = level + b + jp.latent("w", Normal(0, 0.1))
        jp.observe("y", Normal(level, 0.5), obs=y)
        return level, None

    scan(step, first("l0"), y)


PROGRAMS: dict[str, tuple[Callable, tuple, dict[str, tuple]]] = {
    "a plate of time": (a_plate_of_time, (Y,), {"x0": (), "u": (T,), "x": (T,)}),
    "a slope": (a_slope, (Y,), {"x0": (), "b": (), "x": (T,)}),
    "functions of latents": (functions_of_latents, (Y, Z),
                             {"m": (), "u": (T,), "v": (T,), "x0": (), "x": (T,)}),
    "sums of them": (sums_of_them, (Y,), {"x0": (), "u": (T,), "x": (T,)}),
    "states of a scan": (states_of_a_scan, (Y, Z), {"x0": (), "z0": (), "x": (T,), "z": (T,)}),
    "a scan of a scan of a scan": (
        a_scan_of_a_scan_of_a_scan, (Y, Z, X),
        {"x0": (), "z0": (), "s0": (), "x": (T,), "z": (T,), "s": (T,)}),
    "an input of two": (an_input_of_two, (Y, Z),
                        {"u": (T,), "x0": (), "z0": (), "x": (T,), "z": (T,)}),
    "regression": (regression, (Y, X), {"beta": (2,), "l0": (), "l": (T,)}),
    "drift": (drift, (Y,), {"b": (), "m": (), "l0": (), "l": (T,)}),
    "drift of a recursion": (drift_of_a_recursion, (Y,), {"b": (), "l0": (), "w": (T,)}),
}
QUICK = ("functions of latents", "a scan of a scan of a scan", "regression")


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow)
                                  for n in PROGRAMS])
def test_it_is_exact(name: str) -> None:
    model, args, shapes = PROGRAMS[name]
    found, exact = jp.VMP(model).run(*args), dense_gaussian(model, args, {}, shapes)
    assert found.free_energy[-1] == pytest.approx(-exact.evidence, abs=1e-9)
    assert set(found.sites) == set(shapes)
    for site in shapes:
        np.testing.assert_allclose(found.mean(site), exact.mean[site], atol=1e-9)
        np.testing.assert_allclose(found.variance(site), exact.var[site], atol=1e-9)


@pytest.mark.parametrize(("kind", "F"), [("none", 9.664), ("a plate of time", 9.366),
                                         ("a slope", 11.272)])
def test_the_numbers_that_zeros_in_their_place_once_made(kind: str, F: float) -> None:
    """A walk pushed by latents: F was 9.664 for each, that of a walk that nothing pushes."""
    y = np.random.default_rng(0).normal(size=8)

    def model(y: Any) -> None:
        push: Any = np.zeros(8)
        if kind == "a plate of time":
            with numpyro.plate("time", 8):
                push = jp.latent("u", Normal(0, 1))
        elif kind == "a slope":
            push = jp.latent("b", Normal(0, 1)) * jnp.arange(8)

        def step(x: Any, data: Any) -> Any:
            y, push = data
            jp.observe("y", Normal(x, 0.3), obs=y)
            return jp.latent("x", Normal(x + push, 0.2)), None

        scan(step, first(), (y, push))

    more = {"none": {}, "a plate of time": {"u": (8,)}, "a slope": {"b": ()}}[kind]
    exact = dense_gaussian(model, (y,), {}, {"x0": (), "x": (8,), **more})
    found = jp.VMP(model).run(y)
    assert -exact.evidence == pytest.approx(F, abs=6e-4)
    assert found.free_energy[-1] == pytest.approx(-exact.evidence, abs=1e-9)
    for site in found.sites:
        np.testing.assert_allclose(found.mean(site), exact.mean[site], atol=1e-9)
        np.testing.assert_allclose(found.variance(site), exact.var[site], atol=1e-9)


def test_a_border_is_kept_apart_and_joined_by_name() -> None:
    def scaled(y: Any, x: Any) -> None:        # a multiplies the states: no border
        a, b = jp.latent("a", Normal(1, 0.1)), jp.latent("b", Normal(0, 1))

        def step(level: Any, data: Any) -> Any:
            y, x = data
            level = jp.latent("l", Normal(a * level + b, 0.3))
            jp.observe("y", Normal(level + x.sum(), 0.5), obs=y)
            return level, None

        scan(step, first("l0"), (y, x))

    blocks = lambda model, **options: {b.members for b in jp.VMP(model, **options).compile(
        Y, X).graph.blocks}
    assert blocks(scaled) == {("l0", "l"), ("a", "b")}
    apart = blocks(regression, blocks=(("beta",), ("l0", "l")))
    assert apart == {("beta",), ("l0", "l")}
    joined = blocks(regression, blocks=(("beta", "l0", "l"),))
    assert joined == blocks(regression) and len(joined) == 1


def test_what_is_learnt_of_a_border_is_kept_and_given(tmp_path: Any) -> None:
    found = jp.VMP(regression).run(Y, X)
    assert found.global_sites == ("beta",)
    found.save(tmp_path / "it.safetensors")
    loaded = jp.load_posterior(tmp_path / "it.safetensors")
    assert loaded.global_sites == ("beta",)
    np.testing.assert_array_equal(loaded.mean("l"), found.mean("l"))
    drawn = loaded.sample(0, (4000,))
    exact = dense_gaussian(regression, (Y, X), {}, {"beta": (2,), "l0": (), "l": (T,)})
    np.testing.assert_allclose(np.cov(drawn["beta"].T), exact.cov[:2, :2], atol=0.01)
    # New data of another level: as one regression with the belief for its prior.
    again = jp.VMP(jp.given(regression, found, update=True)).run(Z, X)
    prior = dist.MultivariateNormal(exact.mean["beta"], exact.cov[:2, :2])

    def later(y: Any, x: Any) -> None:
        beta = jp.latent("beta", prior)

        def step(level: Any, data: Any) -> Any:
            y, x = data
            level = jp.latent("l", Normal(level, 0.3))
            jp.observe("y", Normal(level + x @ beta, 0.5), obs=y)
            return level, None

        scan(step, first("l0"), (y, x))

    truth = dense_gaussian(later, (Z, X), {}, {"beta": (2,), "l0": (), "l": (T,)})
    np.testing.assert_allclose(again.mean("beta"), truth.mean["beta"], atol=1e-8)


@pytest.mark.parametrize("first_written", [True, False])
def test_what_joins_a_chain_does_not_depend_on_the_order_of_statements(first_written: bool) -> None:
    def unrelated() -> None:
        jp.observe("w", Normal(jp.latent("a", Normal(0, 1)), 1.0), obs=1.0)

    def model(y: Any) -> None:
        if first_written:
            unrelated()
        b = jp.latent("b", Normal(0, 1))
        scan(walk("x", "y"), first(), (y, b * jnp.ones(T)))
        if not first_written:
            unrelated()

    found = {frozenset(b.members) for b in jp.VMP(model).compile(Y).graph.blocks}
    assert found == {frozenset({"a"}), frozenset({"b", "x0", "x", "carry", "carry.b"})}


def test_a_global_of_two_scans_is_a_part_of_neither() -> None:
    def model(y: Any) -> None:
        b = jp.latent("b", Normal(0, 1))
        scan(walk("x", "y"), first(), (y, b * jnp.ones(T)))
        scan(walk("z", "w"), first("z0"), (y[:4], b * jnp.ones(4)))

    assert ("b",) in {b.members for b in jp.VMP(model).compile(Y).graph.blocks}


def test_what_is_missing_never_depends_on_latents() -> None:
    def model(y: Any) -> None:
        x, m = jp.latent("x", Normal(5.0, 0.1)), jp.latent("m", Normal(0.0, 1.0))
        jp.observe("y", Normal(m, 1.0), obs=jnp.sqrt(x - y))

    with pytest.raises(jp.StructureError, match="made of 'x'"):
        jp.VMP(model).run(1.0)
