"""Scans that begin where another one ended: one chain, exact."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpy.testing import assert_allclose
from numpyro.contrib.control_flow import scan
from numpyro.infer import MCMC, NUTS

import jopa_ppl as jp
from jopa_ppl.errors import StructureError
from tests.faults import refused
from tests.oracles import dense_gaussian

RNG = np.random.default_rng(1)
Y, W, V = RNG.normal(size=6), RNG.normal(size=4), RNG.normal(size=3)
Y[2] = W[1] = np.nan
PAIRS, TRIPLES = RNG.normal(size=(5, 2)), RNG.normal(size=(4, 3))
Normal = dist.Normal


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def steps(name: str, seen: str, slope: float, add: float = 0.0) -> Callable:
    def step(x: Any, y: Any) -> Any:
        x = jp.latent(name, Normal(slope * x + add, 0.5))
        jp.observe(seen, Normal(x, 0.3), obs=y)
        return x, None

    return step


def a_regime_change(y: Any, w: Any) -> None:
    last, _ = scan(steps("x", "y", 0.9), jp.latent("x0", Normal(0, 1)), y)
    scan(steps("z", "w", 0.5, 1.0), last, w)


def three_regimes(y: Any, w: Any, v: Any) -> None:
    last, _ = scan(steps("x", "y", 0.9), jp.latent("x0", Normal(0, 1)), y)
    last, _ = scan(steps("z", "w", 0.5, 1.0), last, w)
    scan(steps("s", "v", -0.7), 2 * last - 1, v)


def a_jump_between(y: Any, w: Any) -> None:
    last, _ = scan(steps("x", "y", 0.9), 0.3, y)
    scan(steps("z", "w", 0.5), last + jp.latent("jump", Normal(0, 2)), w)


def of_other_sizes(y: Any, w: Any) -> None:
    """Two numbers, of two steps, and a counter; then three."""
    def step(carry: Any, y: Any) -> Any:
        x, before, t = carry
        new = jp.latent("x", Normal(0.5 * x + 0.3 * before + 0.1 * t, 0.4).to_event(1))
        jp.observe("y", Normal(new[::-1], 0.3).to_event(1), obs=y)
        return (new, x, t + 1), None

    def then(carry: Any, w: Any) -> Any:
        z, t = carry
        z = jp.latent("z", Normal(0.9 * z + t, 0.2).to_event(1))
        jp.observe("w", Normal(z, 0.3).to_event(1), obs=w)
        return (z, t + 1), None

    begin = jp.latent("x0", Normal(jnp.zeros(2), 1.0).to_event(1)), jnp.ones(2), 0
    (x, before, t), _ = scan(step, begin, y)
    scan(then, (jnp.concatenate([x, before[:1]]), t), w)


def integrators(y: Any, w: Any) -> None:
    """What follows with certainty, in both."""
    def step(carry: Any, y: Any) -> Any:
        level, slope = carry
        level = level + slope
        slope = slope + jp.latent("a", Normal(0, 0.3))
        jp.observe("y", Normal(level, 0.3), obs=y)
        return (level, slope), None

    def then(level: Any, w: Any) -> Any:
        level = level + jp.latent("b", Normal(0, 0.1))
        jp.observe("w", Normal(level, 0.3), obs=w)
        return level, None

    (level, _), _ = scan(step, (jp.latent("l0", Normal(0, 1)), 0.1), y)
    scan(then, level, w)


def scales_by_time(y: Any, w: Any) -> None:
    """Scales that are made of a counter, and would be 0 outside of their scans."""
    def step(carry: Any, y: Any) -> Any:
        x, t = carry
        x, _ = steps("x", "y", 0.9)(x, y)
        jp.observe("v", Normal(x, 6.0 - t), obs=1.0)
        return (x, t + 1.0), None

    def then(carry: Any, w: Any) -> Any:
        z, t = carry
        z = jp.latent("z", Normal(0.5 * z, t))
        jp.observe("w", Normal(z, 0.3), obs=w)
        return (z, t), None

    scan(then, scan(step, (jp.latent("x0", Normal(0, 1)), 0.0), y)[0], w)


def after_both(y: Any, w: Any) -> None:
    """Sites written after the scans, of their steps and of the last one."""
    def step(x: Any, y: Any) -> Any:
        x, _ = steps("x", "y", 0.9)(x, y)
        return x, 2 * x

    last, xs = scan(step, jp.latent("x0", Normal(0, 1)), y)
    jp.observe("all", Normal(xs, 1.0), obs=jnp.arange(6.0))
    jp.observe("middle", Normal(2 * last, 1.0), obs=1.0)
    scan(steps("z", "w", 0.5, 1.0), last, w)


SHAPES = {"x0": (), "x": (6,), "z": (4,), "s": (3,)}
CASES = [(a_regime_change, (Y, W), SHAPES), (three_regimes, (Y, W, V), SHAPES),
         (a_jump_between, (Y, W), SHAPES | {"jump": ()}),
         (of_other_sizes, (PAIRS, TRIPLES), {"x0": (2,), "x": (5, 2), "z": (4, 3)}),
         (scales_by_time, (Y, W), SHAPES),
         (integrators, (Y, W), {"l0": (), "a": (6,), "b": (4,)}),
         (after_both, (Y, W), SHAPES)]


QUICK = (three_regimes, of_other_sizes, scales_by_time)


@pytest.mark.parametrize(("model", "data", "shapes"), [
    pytest.param(*c, id=c[0].__name__, marks=() if c[0] in QUICK else pytest.mark.slow)
    for c in CASES])
def test_it_is_one_chain(model: Callable, data: tuple, shapes: dict[str, tuple]) -> None:
    with numpyro.handlers.seed(rng_seed=0):
        own = numpyro.handlers.trace(model).get_trace(*data)
    shapes = {n: s for n, s in shapes.items() if n in own}
    exact = dense_gaussian(model, data, {}, shapes)
    found = jp.VMP(model, progress=False).run(*data)
    assert_allclose(found.free_energy[-1], -exact.evidence, atol=1e-10)
    for name in shapes:
        assert_allclose(found.mean(name), exact.mean[name], atol=1e-10, err_msg=name)
        assert_allclose(found.variance(name), exact.var[name], atol=1e-10, err_msg=name)
    draws = found.sample(0, (4000,))
    assert {n: x.shape[1:] for n, x in draws.items() if n in shapes} == shapes
    for name in shapes:
        off = np.abs(draws[name].mean(0) - exact.mean[name]) / np.sqrt(exact.var[name])
        assert off.max() < 5 / np.sqrt(4000)


@pytest.mark.slow
def test_a_plate_of_them() -> None:
    def model(y: Any, w: Any) -> None:
        def step(x: Any, y: Any) -> Any:
            with numpyro.plate("n", 3):
                return steps("x", "y", 0.9)(x, y)

        def then(x: Any, y: Any) -> Any:
            with numpyro.plate("n", 3):
                return steps("z", "w", 0.5, 1.0)(x, y)

        with numpyro.plate("n", 3):
            x0 = jp.latent("x0", Normal(0, 1))
        scan(then, scan(step, x0, y)[0], w)

    y, w = RNG.normal(size=(5, 3)), RNG.normal(size=(4, 3))
    y[1, 2] = np.nan
    found = jp.VMP(model, progress=False).run(y, w)
    for i in range(3):
        one = jp.VMP(a_regime_change, progress=False).run(y[:, i], w[:, i])
        assert_allclose(found.mean("z")[:, i], one.mean("z"), atol=1e-12)
        assert_allclose(found.variance("x")[:, i], one.variance("x"), atol=1e-12)


@pytest.mark.slow
def test_what_is_not_seen_yet_is_predicted() -> None:
    """A second scan without data, one seen in part, and a first one without any."""
    for y, w in ((Y, np.full(4, np.nan)), (Y, np.array([0.2, 1.0, np.nan, np.nan])),
                 (np.full(6, np.nan), W)):
        exact = dense_gaussian(a_regime_change, (y, w), {}, {"x0": (), "x": (6,), "z": (4,)})
        found = jp.VMP(a_regime_change, progress=False).run(y, w)
        assert_allclose(found.free_energy[-1], -exact.evidence, atol=1e-10)
        for name in ("x0", "x", "z"):
            assert_allclose(found.mean(name), exact.mean[name], atol=1e-10)
            assert_allclose(found.variance(name), exact.var[name], atol=1e-10)
            draws = found.sample(0, (4000,))[name]
            assert_allclose(draws.var(0), exact.var[name], rtol=0.15)


@pytest.mark.slow
def test_what_they_share_is_learned() -> None:
    """A precision of both: as in one scan whose steps ask which they are."""
    def two(y: Any, w: Any) -> None:
        tau = jp.latent("tau", dist.Gamma(2.0, 1.0))

        def step(name: str, seen: str, slope: float) -> Callable:
            def body(x: Any, y: Any) -> Any:
                x = jp.latent(name, Normal(slope * x, 1 / jnp.sqrt(tau)))
                jp.observe(seen, Normal(x, 0.3), obs=y)
                return x, None
            return body

        last, _ = scan(step("x", "y", 0.9), jp.latent("x0", Normal(0, 1)), y)
        scan(step("z", "w", 0.5), last, w)

    def one(y: Any, slopes: Any) -> None:
        tau = jp.latent("tau", dist.Gamma(2.0, 1.0))

        def body(x: Any, data: Any) -> Any:
            y, slope = data
            x = jp.latent("x", Normal(slope * x, 1 / jnp.sqrt(tau)))
            jp.observe("y", Normal(x, 0.3), obs=y)
            return x, None

        scan(body, jp.latent("x0", Normal(0, 1)), (y, slopes))

    a = jp.VMP(two, progress=False, tol=1e-12, max_iters=500).run(Y, W)
    b = jp.VMP(one, progress=False, tol=1e-12, max_iters=500).run(
        np.concatenate([Y, W]), np.repeat([0.9, 0.5], [6, 4]))
    assert_allclose(a.free_energy[-1], b.free_energy[-1], rtol=1e-10)
    assert_allclose(a.mean("tau"), b.mean("tau"), rtol=1e-6)
    assert_allclose(np.concatenate([a.mean("x"), a.mean("z")]), b.mean("x"), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["counts", "a sine"])
def test_what_is_approximated_is_so_in_one_scan(kind: str) -> None:
    """Counts of the exp of a state, and dynamics that bend: as a scan whose steps ask which."""
    def body(name: str, seen: str, slope: Any, x: Any, y: Any) -> Any:
        x = jp.latent(name, Normal(slope * (jnp.sin(x) if kind == "a sine" else x), 0.5))
        fn = Normal(x, 0.3) if kind == "a sine" else dist.Poisson(jnp.exp(x))
        jp.observe(seen, fn, obs=y)
        return x, None

    def two(y: Any, w: Any) -> None:
        last, _ = scan(lambda x, y: body("x", "y", 0.9, x, y), jp.latent("x0", Normal(0, 1)), y)
        scan(lambda x, y: body("z", "w", 0.5, x, y), last, w)

    def one(y: Any, slopes: Any) -> None:
        scan(lambda x, data: body("x", "y", data[1], x, data[0]), jp.latent("x0", Normal(0, 1)),
             (y, slopes))

    y, w = (Y, W) if kind == "a sine" else (np.array([1, 2, 0, 4, 3, 1]), np.array([5, 2, 3, 4]))
    a = jp.VMP(two, progress=False).run(y, w)
    b = jp.VMP(one, progress=False).run(np.concatenate([y, w]), np.repeat([0.9, 0.5], [6, 4]))
    assert_allclose(a.free_energy[-1], b.free_energy[-1], atol=1e-8)
    assert_allclose(np.concatenate([a.mean("x"), a.mean("z")]), b.mean("x"), atol=1e-7)


@pytest.mark.slow
def test_states_that_are_given() -> None:
    """The first scan's states as data: the second begins with the last of them."""
    known = RNG.normal(size=6)
    model = jp.condition(a_regime_change, {"x": known})
    given = numpyro.handlers.condition(a_regime_change, {"x": jnp.asarray(known)})
    exact = dense_gaussian(given, (Y, W), {}, {"x0": (), "z": (4,)})
    found = jp.VMP(model, progress=False).run(Y, W)
    assert_allclose(found.free_energy[-1], -exact.evidence, atol=1e-10)
    assert_allclose(found.mean("z"), exact.mean["z"], atol=1e-10)


@pytest.mark.slow
def test_draws_given_a_precision_that_nuts_draws() -> None:
    """`jp.marginalised` integrates the states of both scans out, and draws them back."""
    def model(y: Any, w: Any) -> None:
        tau = jp.latent("tau", dist.Gamma(2.0, 1.0))

        def step(name: str, seen: str) -> Callable:
            def body(x: Any, y: Any) -> Any:
                x = jp.latent(name, Normal(0.8 * x, 1 / jnp.sqrt(tau)))
                jp.observe(seen, Normal(x, 0.3), obs=y)
                return x, None
            return body

        last, _ = scan(step("x", "y"), jp.latent("x0", Normal(0, 1)), y)
        scan(step("z", "w"), last, w)

    def sampled(model: Callable, warmup: int, num: int) -> dict[str, np.ndarray]:
        chain = MCMC(NUTS(model), num_warmup=warmup, num_samples=num, progress_bar=False)
        chain.run(jax.random.key(0), Y, W)
        return {n: np.asarray(x) for n, x in chain.get_samples().items()}

    ours, theirs = sampled(jp.marginalised(model), 300, 1000), sampled(model, 1000, 4000)
    assert ours.keys() == theirs.keys()
    for name in theirs:
        assert ours[name].shape[1:] == theirs[name].shape[1:]
        off = np.abs(ours[name].mean(0) - theirs[name].mean(0)) / theirs[name].std(0)
        assert off.max() < 0.2, name


def test_densities_files_and_arviz(tmp_path: Any) -> None:
    exact = dense_gaussian(a_regime_change, (Y, W), {}, {"x0": (), "x": (6,), "z": (4,)})
    found = jp.VMP(a_regime_change, progress=False).run(Y, W)
    point = {k: x[0] for k, x in found.sample(0, (1,)).items()}
    gap = np.concatenate([np.ravel(point[n] - exact.mean[n]) for n in exact.mean])
    log_q = -0.5 * (gap @ np.linalg.solve(exact.cov, gap) + np.linalg.slogdet(exact.cov)[1]
                    + len(gap) * np.log(2 * np.pi))
    assert_allclose(found.log_prob(point), log_q, atol=1e-9)
    found.save(tmp_path / "two.safetensors")
    loaded = jp.load_posterior(tmp_path / "two.safetensors")
    for name in ("x", "z"):
        assert_allclose(loaded.mean(name), found.mean(name))
        assert loaded.sample(0, (2,))[name].shape == (2, *np.shape(found.mean(name)))
    tree = jp.VMP(a_regime_change, progress=False).run(
        Y, np.array([0.2, 1.0, np.nan, np.nan])).to_arviz(num_samples=5)
    assert tree["observed_data"]["y"].shape == (6,)
    assert tree["posterior"]["z"].dims[2:] == ("time_1",)
    assert_allclose(tree["posterior"]["z"]["time_1"], [6, 7, 8, 9])
    assert_allclose(tree["predictions"]["w"]["time_1"], [8, 9])
    assert "y" not in tree["predictions"]


def test_pictures_and_tables_number_steps_as_arviz_does() -> None:
    found = jp.VMP(a_regime_change, progress=False).run(Y, W)
    ax = jp.plots.trajectories(found, "z", observed=W[:, None])
    lines = {line.get_label(): line.get_xdata() for line in ax.lines}
    assert list(lines["z"]) == [7, 8, 9, 10]       # a state holds after its step
    assert [list(x) for x in lines.values()].count([6, 7, 8, 9]) == 1
    table = str(jp.compile(a_regime_change, Y, W).graph)
    assert "x[0]" in table and "z[t]" in table and "z[0]" not in table and "w[0]" not in table


def test_two_that_begin_at_one_end_are_refused() -> None:
    def fork(y: Any, w: Any, v: Any) -> None:
        last, _ = scan(steps("x", "y", 0.9), jp.latent("x0", Normal(0, 1)), y)
        scan(steps("z", "w", 0.5), last, w)
        scan(steps("s", "v", 1.0), last, v)

    refused(StructureError, fork, Y, W, V, says=("what a scan returned", "carry both",
                                                 "something else that reads"))

    def both(yw: Any, v: Any) -> None:
        """The way out: one scan over all steps, that carries both states."""
        def step(carry: Any, data: Any) -> Any:
            (x, s), (t, seen, v) = carry, data
            first = t < 6
            x, _ = steps("x", "y", jnp.where(first, 0.9, 0.5))(x, seen)
            s, _ = steps("s", "v", 1.0)(s, v)
            return (x, jnp.where(first, x, s)), None

        x0 = jp.latent("x0", Normal(0, 1))
        scan(step, (x0, x0), (jnp.arange(10), yw, v))

    v = np.append(V, 0.4)
    exact = dense_gaussian(fork, (Y, W, v), {}, {"x0": (), "x": (6,), "z": (4,), "s": (4,)})
    found = jp.VMP(both, progress=False).run(np.append(Y, W), np.append(np.full(6, np.nan), v))
    assert_allclose(found.free_energy[-1], -exact.evidence, atol=1e-10)
    assert_allclose(found.mean("s")[6:], exact.mean["s"], atol=1e-10)


def test_what_stands_in_the_way_is_named() -> None:
    def tossed(y: Any, w: Any) -> None:
        def step(x: Any, w: Any) -> Any:
            k = jp.latent("k", dist.Bernoulli(0.3))
            x = jp.latent("z", Normal(0.5 * x + k, 0.5))
            jp.observe("w", Normal(x, 0.3), obs=w)
            return x, None

        scan(step, scan(steps("x", "y", 0.9), jp.latent("x0", Normal(0, 1)), y)[0], w)

    refused(StructureError, tossed, Y, W, says=("neither data nor Gaussian latents", "'k'"))
    part = jp.condition(a_regime_change, {"z": np.array([np.nan, 1.0, np.nan, np.nan])})
    refused(StructureError, part, Y, W, says=("unknown at every step: 'z'",))


def test_what_cannot_be() -> None:
    found = jp.VMP(a_regime_change, progress=False).run(Y, W)
    with pytest.raises(StructureError, match="several scans, one after the other"):
        found.forecast(2)
    refused(StructureError, a_regime_change, Y, W, decide=("z",), says=("where another one ended",
                                                                        "jnp.where"))
