"""Carries that follow with certainty, and noise of any rank, against dense joints of NumPyro's own
`log_density`, plans with nearly certain steps, and arithmetic of 80 digits."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpy.testing import assert_allclose
from numpyro.contrib.control_flow import scan
from scipy.stats import multivariate_normal

import jopa_ppl as jp
from jopa_ppl.errors import PriorError, StructureError
from tests.oracles import dense_gaussian

T = 9
Y = np.random.default_rng(1).normal(size=T)
Y[4] = np.nan
Normal = dist.Normal


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def smooth_trend(y: Any) -> None:
    level, slope = jp.latent("level", Normal(0, 2)), jp.latent("slope", Normal(0, 1))

    def step(carry: Any, y: Any) -> Any:
        level, slope = carry
        slope = slope + jp.latent("w", Normal(0, 0.3))
        level = level + slope
        jp.observe("y", Normal(level, 0.5), obs=y)
        return (level, slope), None

    scan(step, (level, slope), y)


def named_alike(y: Any) -> None:
    """Two leaves of the carry that are both written a.b."""
    def step(carry: Any, y: Any) -> Any:
        level, slope = carry["a.b"], carry["a"]["b"]
        slope = slope + jp.latent("w", Normal(0, 0.3))
        level = level + slope
        jp.observe("y", Normal(level, 0.5), obs=y)
        return {"a.b": level, "a": {"b": slope}}, None

    scan(step, {"a.b": jp.latent("level", Normal(0, 2)), "a": {"b": 0.3}}, y)


def companion(y: Any) -> None:
    F, g = jnp.array([[0.5, 0.3], [1.0, 0.0]]), jnp.array([1.0, 0.0])

    def step(x: Any, y: Any) -> Any:
        x = F @ x + g * jp.latent("w", Normal(0, 0.4))
        jp.observe("y", Normal(x[0], 0.5), obs=y)
        return x, None

    scan(step, jp.latent("x0", Normal(jnp.zeros(2), 1.0).to_event(1)), y)


def register(y: Any) -> None:
    weights = jnp.linspace(0.3, -0.2, 12)

    def step(past: Any, y: Any) -> Any:
        x = jp.latent("x", Normal(weights @ past, 0.4))
        jp.observe("y", Normal(x, 0.5), obs=y)
        return jnp.concatenate([x[None], past[:-1]]), None

    scan(step, jp.latent("x0", Normal(jnp.zeros(12), 1.0).to_event(1)), y)


def season(y: Any) -> None:
    def step(carry: Any, y: Any) -> Any:
        level, past = carry
        level = jp.latent("l", Normal(level, 0.2))
        new = jp.latent("w", Normal(0, 0.1)) - past.sum()
        jp.observe("y", Normal(level + new, 0.5), obs=y)
        return (level, jnp.concatenate([new[None], past[:-1]])), None

    past = jp.latent("s0", Normal(jnp.zeros(3), 1.0).to_event(1))
    scan(step, (jp.latent("l0", Normal(0, 1)), past), y)


def from_data(y: Any) -> None:
    def step(x: Any, y: Any) -> Any:
        x = 0.9 * x + jp.latent("w", Normal(0.1, 0.3))
        jp.observe("y", Normal(2 * x + 1, 0.5), obs=y)
        return x, None

    scan(step, jnp.array(0.5), y)


def in_a_plate(y: Any) -> None:
    with numpyro.plate("n", 3):
        x0 = jp.latent("x0", Normal(0, 1))

    def step(carry: Any, y: Any) -> Any:
        with numpyro.plate("n", 3):
            x, v = carry
            v = 0.8 * v + jp.latent("w", Normal(0, 0.3))
            x = x + 0.1 * v
            jp.observe("y", Normal(x, 0.5), obs=y)
        return (x, v), None

    scan(step, (x0, jnp.zeros(3)), y)


def counter(y: Any) -> None:
    def step(carry: Any, y: Any) -> Any:
        x, t = carry
        x = x * jnp.cos(0.3 * t) + jp.latent("w", Normal(0, 0.3)) * t + 0.1
        jp.observe("y", Normal(x, 0.5), obs=y)
        return (x, t + 1.0), None

    scan(step, (jp.latent("x0", Normal(0, 1)), 0.0), y)


def innovations(y: Any) -> None:
    def step(carry: Any, y: Any) -> Any:
        x, old = carry
        e = jp.latent("e", Normal(0, 0.3))
        x = 0.7 * x + e + 0.4 * old
        jp.observe("y", Normal(x, 0.1), obs=y)
        return (x, e), None

    scan(step, (jp.latent("x0", Normal(0, 1)), jp.latent("e0", Normal(0, 1))), y)


def first_of_both(y: Any) -> None:
    m, s = jp.latent("m", Normal(0, 1)), jp.latent("s", Normal(0, 1))

    def step(carry: Any, y: Any) -> Any:
        x, v = carry
        v = v + jp.latent("w", Normal(0.1, 0.3))
        jp.observe("y", Normal(x + v, 0.2), obs=y)
        return (x + v, v), None

    scan(step, (m + 2 * s, m - s), y)


def after_the_scan(y: Any) -> None:
    def step(level: Any, _: Any) -> Any:
        level = level + jp.latent("w", Normal(0, 0.3))
        return level, level

    _, levels = scan(step, jp.latent("l0", Normal(0, 1)), None, length=T)
    jp.observe("y", Normal(levels, 0.5), obs=y)


def vectors(y: Any) -> None:
    S, F = jnp.array([[1.0, 0.5], [0.5, 1.0]]), jnp.array([[1.0, 0.1], [0.0, 0.9]])

    def step(x: Any, y: Any) -> Any:
        w = jp.latent("w", dist.MultivariateNormal(jnp.zeros(2), 0.1 * S))
        x = F @ x + jnp.array([[1.0, 0.0], [1.0, 0.0]]) @ w
        jp.observe("y", dist.MultivariateNormal(x, S), obs=y)
        return x, None

    scan(step, jp.latent("x0", dist.MultivariateNormal(jnp.zeros(2), S)), y)


PROGRAMS: dict[str, tuple[Callable, Any, dict[str, tuple]]] = {
    "smooth trend": (smooth_trend, Y, {"level": (), "slope": (), "w": (T,)}),
    "named alike": (named_alike, Y, {"level": (), "w": (T,)}),
    "companion form": (companion, Y, {"x0": (2,), "w": (T,)}),
    "register of 12": (register, Y, {"x0": (12,), "x": (T,)}),
    "season": (season, Y, {"s0": (3,), "l0": (), "l": (T,), "w": (T,)}),
    "from data": (from_data, Y, {"w": (T,)}),
    "in a plate": (in_a_plate, np.outer(Y, [1, -1, 0.5]), {"x0": (3,), "w": (T, 3)}),
    "counter": (counter, Y, {"x0": (), "w": (T,)}),
    "innovations": (innovations, Y, {"e0": (), "x0": (), "e": (T,)}),
    "first of both": (first_of_both, Y, {"m": (), "s": (), "w": (T,)}),
    "after the scan": (after_the_scan, Y, {"l0": (), "w": (T,)}),
    "vectors": (vectors, np.stack([Y, -Y], -1), {"x0": (2,), "w": (T, 2)}),
}
QUICK = ("named alike", "companion form", "season", "in a plate")


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow)
                                  for n in PROGRAMS])
def test_a_recursion_is_exact(name: str) -> None:
    model, y, shapes = PROGRAMS[name]
    found, exact = jp.VMP(model).run(y), dense_gaussian(model, (y,), {}, shapes)
    assert found.free_energy[-1] == pytest.approx(-exact.evidence, abs=1e-9)
    assert set(found.sites) == set(shapes)
    for site in shapes:
        np.testing.assert_allclose(found.mean(site), exact.mean[site], atol=1e-9)
        np.testing.assert_allclose(found.variance(site), exact.var[site], atol=1e-9)


def random_program(seed: int) -> tuple[Callable, Any, dict[str, tuple]]:
    """A linear system of random size whose state is carried and never drawn."""
    rng = np.random.default_rng(seed)
    d, n, k = rng.integers(1, 4, 3)
    F, G, C = (rng.normal(size=s) for s in ((d, d), (d, n), (k, d)))
    F *= 0.9 / np.abs(np.linalg.eigvals(F)).max()
    b, length = rng.normal(size=d), int(rng.integers(2, 7))
    y = rng.normal(size=(length, k))
    y[rng.random(length) < 0.3] = np.nan
    y[0] = rng.normal(size=k)
    split, start = rng.integers(0, d), rng.integers(0, 3)

    def parts(x: Any) -> tuple:
        return (x[:split], x[split:]) if split else (x,)

    def model(y: Any) -> None:
        x0 = jnp.zeros(d)
        if start == 1:
            x0 = jp.latent("x0", Normal(jnp.zeros(d), 1.0).to_event(1))
        if start == 2:
            x0 = jnp.asarray(F) @ jp.latent("x0", Normal(jnp.zeros(d), 1.0).to_event(1)) + b

        def step(carry: Any, y: Any) -> Any:
            x = jnp.concatenate(carry)
            w = jp.latent("w", Normal(jnp.zeros(n), 0.5).to_event(1))
            x = jnp.asarray(F) @ x + jnp.asarray(G) @ w + b
            z = jp.latent("z", Normal(x.sum(), 0.7))
            jp.observe("y", Normal(jnp.asarray(C) @ x + 0.3 * z, 0.4).to_event(1), obs=y)
            return parts(x), None

        scan(step, parts(x0), y)

    shapes = {"w": (length, n), "z": (length,), **({"x0": (d,)} if start else {})}
    return model, y, shapes


@pytest.mark.parametrize("seed", [0, *(pytest.param(s, marks=pytest.mark.slow)
                                       for s in range(1, 60))])
def test_random_recursions(seed: int) -> None:
    model, y, shapes = random_program(seed)
    found, exact = jp.VMP(model).run(y), dense_gaussian(model, (y,), {}, shapes)
    assert found.free_energy[-1] == pytest.approx(-exact.evidence, abs=1e-8)
    for site in shapes:
        np.testing.assert_allclose(found.mean(site), exact.mean[site], atol=1e-8)
        np.testing.assert_allclose(found.variance(site), exact.var[site], rtol=1e-7, atol=1e-9)


def test_draws_densities_and_forecasts_of_a_recursion() -> None:
    y = np.concatenate([Y, [np.nan] * 2])
    found = jp.VMP(smooth_trend).run(y)
    exact = dense_gaussian(smooth_trend, (y,), {}, {"level": (), "slope": (), "w": (T + 2,)})
    drawn = found.sample(0, (4000,))
    flat = np.concatenate([drawn["level"][:, None], drawn["slope"][:, None], drawn["w"]], 1)
    assert np.abs(np.cov(flat.T) - exact.cov).max() < 5 * exact.cov.max() / np.sqrt(4000)
    truth = multivariate_normal(np.concatenate([[exact.mean["level"], exact.mean["slope"]],
                                                exact.mean["w"]]), exact.cov)
    np.testing.assert_allclose(found.log_prob({k: v[:9] for k, v in drawn.items()}),
                               truth.logpdf(flat[:9]), atol=1e-8)
    H, level, slope = [], np.eye(T + 4)[0], np.eye(T + 4)[1]
    for t in range(T + 2):
        slope = slope + np.eye(T + 4)[2 + t]
        level = level + slope
        H.append(level)
    sd = np.sqrt(np.diag(np.array(H) @ exact.cov @ np.array(H).T) + 0.25)
    ahead = found.predict(rng_key=0, num_samples=4000)["y"]
    np.testing.assert_allclose(ahead.std(0) / sd, 1, atol=0.06)
    np.testing.assert_array_less(np.abs(ahead.mean(0) - np.array(H) @ truth.mean) / sd, 0.08)


@pytest.mark.slow
def test_a_plan_through_a_recursion_is_that_through_nearly_certain_steps() -> None:
    def model(y: Any, goal: Any, certain: bool) -> None:
        def step(carry: Any, data: Any) -> Any:
            (x, v), (y, goal) = carry, data
            u, w = jp.latent("u", Normal(0, 1)), jp.latent("w", Normal(0, 0.1))
            if certain:
                v = 0.9 * v + 0.5 * u + w
                x = x + 0.3 * v
            else:
                v = jp.latent("v", Normal(0.9 * v + 0.5 * u + w, 1e-4))
                x = jp.latent("x", Normal(x + 0.3 * v, 1e-4))
            jp.observe("y", Normal(x, 0.2), obs=y)
            jp.observe("goal", Normal(x, 0.05), obs=goal)
            return (x, v), None

        first = jp.latent("x0", Normal(0, 1)), jp.latent("v0", Normal(0, 1))
        scan(step, first, (y, goal))

    y, goal = np.full(8, np.nan), np.full(8, np.nan)
    y[:2], goal[-1] = [0.1, 0.2], 1.0
    one, other = (jp.VMP(model, decide="u").run(y, goal, certain) for certain in (True, False))
    np.testing.assert_allclose(one.mean("u"), other.mean("u"), atol=1e-6)
    np.testing.assert_allclose(one.variance("u"), other.variance("u"), rtol=1e-5)
    assert one.free_energy[-1] == pytest.approx(other.free_energy[-1], abs=1e-5)


# -- scales down to zero --------------------------------------------------------------------------


def local_trend(y: Any, scale: Any) -> None:
    def step(carry: Any, y: Any) -> Any:
        level, slope = carry
        level = jp.latent("l", Normal(level + slope, scale))
        slope = jp.latent("b", Normal(slope, 0.1))
        jp.observe("y", Normal(level, 0.5), obs=y)
        return (level, slope), None

    scan(step, (jp.latent("l0", Normal(0, 2)), jp.latent("b0", Normal(0, 1))), y)


def kalman_of_80_digits(y: np.ndarray, F: list, Q: list, P: list, H: list, R: Any
                        ) -> tuple[float, np.ndarray, np.ndarray]:
    """-log p(y), means and variances (steps, states), of

        x' = F x + N(0, diag Q),  x_0 ~ N(0, diag P),  y = H x' + N(0, R)
    """
    with mpmath.workdps(80):
        F, Q, H = mpmath.matrix(F), mpmath.diag(Q), mpmath.matrix([H])
        m, P, loss = mpmath.zeros(F.rows, 1), mpmath.diag(P), mpmath.mpf(0)
        kept = []
        for value in y:
            m0, P0 = F * m, F * P * F.T + Q
            m, P = m0, P0
            if not np.isnan(value):
                S, gap = (H * P0 * H.T)[0] + R, mpmath.mpf(float(value)) - (H * m0)[0]
                loss += (mpmath.log(2 * mpmath.pi * S) + gap**2 / S) / 2
                gain = P0 * H.T / S
                m, P = m0 + gain * gap, P0 - gain * (H * P0)
            kept.append((m, P, m0, P0))
        means, variances = [m], [P]
        for (m0, P0, _, __), (_, __, ahead, spread) in zip(kept[-2::-1], kept[:0:-1]):
            G = P0 * F.T * spread**-1
            m, P = m0 + G * (m - ahead), P0 + G * (P - spread) * G.T
            means.append(m)
            variances.append(P)
        states = range(F.rows)
        return (float(loss), np.array([[float(m[i]) for i in states] for m in means[::-1]]),
                np.array([[float(P[i, i]) for i in states] for P in variances[::-1]]))


def square(scale: float) -> Any:
    """In 80 digits."""
    with mpmath.workdps(80):
        return mpmath.mpf(str(scale))**2


@pytest.mark.parametrize("scale", [0.2, 1e-5, 1e-8, 1e-12, 0.0])
def test_scales_down_to_zero(scale: float) -> None:
    loss, mean, variance = kalman_of_80_digits(
        Y, [[1, 1], [0, 1]], [square(scale), square(0.1)], [4, 1], [1, 0], square(0.5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = jp.VMP(local_trend).run(Y, np.array(scale))
    assert found.free_energy[-1] == pytest.approx(loss, abs=1e-8)
    np.testing.assert_allclose(found.mean("l"), mean[:, 0], rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(found.variance("l"), variance[:, 0], rtol=1e-8)
    assert set(found.sites) == {"l0", "b0", "l", "b"} == set(found.sample(0))


def quarterly(y: Any, scale: Any, form: str) -> None:
    """A trend and a dummy season: three quarters in an array, as sites that lie three steps back,
    or made of what is drawn."""
    def step(carry: Any, y: Any) -> Any:
        level, slope, *past = carry
        a, b, c = past[0] if form == "array" else past
        level = jp.latent("level", Normal(level + slope, scale))
        slope = jp.latent("slope", Normal(slope, 0.1))
        if form == "drawn":
            season = -(a + b + c) + jp.latent("w", Normal(0, 0.3))
        else:
            season = jp.latent("season", Normal(-(a + b + c), 0.3))
        jp.observe("y", Normal(level + season, 1.0), obs=y)
        quarters = [jnp.stack([season, a, b])] if form == "array" else [season, a, b]
        return (level, slope, *quarters), None

    start = [jp.latent("level0", Normal(0, 10)), jp.latent("slope0", Normal(0, 1))]
    if form == "array":
        start.append(jp.latent("s", Normal(jnp.zeros(3), 3.0).to_event(1)))
    else:
        start += [jp.latent(f"s{i}", Normal(0, 3)) for i in range(3)]
    scan(step, tuple(start), y)


def quarters() -> np.ndarray:
    rng = np.random.default_rng(0)
    trend = np.cumsum(rng.normal(0.5, 0.25, 80))
    y = trend + np.tile([3.0, -1.0, -4.0, 2.0], 20) + rng.normal(size=80)
    y[[10, 41]] = np.nan
    return y


@pytest.mark.parametrize("form", ["array", "drawn", "sites"])
def test_a_quarterly_trend_whose_level_hardly_moves_of_itself(form: str) -> None:
    """Once F was 773,617 for 350.5. Where quarters are sites of their own, the chain is of the
    third order: its older values become recursions where the noise has to be drawn apart."""
    season = [[0, 0, -1, -1, -1], [0, 0, 1, 0, 0], [0, 0, 0, 1, 0]]
    y, F = quarters(), [[1, 1, 0, 0, 0], [0, 1, 0, 0, 0], *season]
    vmp = jp.VMP(quarterly, progress=False)
    for scale in (1.0, 1e-2, 1e-8):
        loss, mean, variance = kalman_of_80_digits(
            y, F, [square(scale), square(0.1), square(0.3), 0, 0], [100, 1, 9, 9, 9],
            [1, 0, 1, 0, 0], 1)
        found = vmp.run(y, np.array(scale), form)
        assert found.free_energy[-1] == pytest.approx(loss, abs=1e-6)
        for i, name in enumerate(("level", "slope")):
            sd = np.sqrt(variance[:, i])
            np.testing.assert_allclose(found.mean(name) / sd, mean[:, i] / sd, atol=1e-6)
            np.testing.assert_allclose(found.variance(name), variance[:, i], rtol=1e-6)


def test_a_singular_covariance_is_one_shock() -> None:
    g = np.array([1.0, 2.0])

    def model(y: Any, cov: Any, shock: bool) -> None:
        def step(x: Any, y: Any) -> Any:
            if shock:
                x = 0.9 * x + g * jp.latent("w", Normal(0, 0.3))
            else:
                x = jp.latent("x", dist.MultivariateNormal(0.9 * x, covariance_matrix=cov))
            jp.observe("y", Normal(x[0] + 0.5 * x[1], 0.5), obs=y)
            return x, None

        scan(step, jp.latent("x0", Normal(jnp.zeros(2), 1.0).to_event(1)), y)

    cov = 0.09 * np.outer(g, g)
    whole, shock = jp.VMP(model).run(Y, cov, False), jp.VMP(model).run(Y, cov, True)
    assert whole.free_energy[-1] == pytest.approx(shock.free_energy[-1], abs=1e-9)
    np.testing.assert_allclose(whole.mean("x0"), shock.mean("x0"), atol=1e-9)
    with pytest.raises(PriorError, match="not positive definite"):
        jp.VMP(model).run(Y, -cov, False)


def test_what_no_recursion_can_be_is_told() -> None:
    def product(y: Any) -> None:
        a = jp.latent("a", Normal(0, 1))

        def step(x: Any, y: Any) -> Any:
            x = a * x + jp.latent("w", Normal(0, 1))
            jp.observe("y", Normal(x, 1), obs=y)
            return x, None

        scan(step, jp.latent("x0", Normal(0, 1)), y)

    with pytest.raises(StructureError, match="multiplies a latent") as caught:
        jp.VMP(product).run(Y)
    assert "'a'" in str(caught.value) and "jp.condition" in str(caught.value)
    found = jp.VMP(jp.condition(product, {"a": 0.9})).run(Y)        # its way out
    assert np.isfinite(found.free_energy[-1])

    def carried(y: Any, kind: str) -> None:
        first = dist.Gamma(2.0, 1.0) if kind == "gamma" else Normal(0, 1)

        def step(x: Any, y: Any) -> Any:
            z = jp.latent("z", dist.Bernoulli(0.5) if kind == "z" else Normal(0, 1))
            x = jnp.sin(x) + z if kind == "sin" else 0.5 * x + 1.0 * z
            jp.observe("y", Normal(x, 1), obs=y)
            return x, None

        scan(step, jp.latent("x0", first), y)

    for kind in ("sin", "z", "gamma"):
        with pytest.raises(StructureError, match="is not affine") as caught:
            jp.VMP(carried).run(np.nan_to_num(Y), kind)
        assert kind in str(caught.value) and "a scale of 1e-2 of its spread" in str(caught.value)
        least = float(re.search(r"below (\S+) of it rounding", str(caught.value)).group(1))

    # Its way out, with the scales that it names: no word about rounding, and the same answer as
    # where the noise of z is that of x.
    def drawn(y: Any, scale: Any, surely: bool) -> None:
        def step(x: Any, y: Any) -> Any:
            mean = jnp.sin(x) + (jp.latent("z", Normal(0, 1)) if surely else 0.0)
            x = jp.latent("x", Normal(mean, scale))
            jp.observe("y", Normal(x, 1), obs=y)
            return x, None

        scan(step, jp.latent("x0", Normal(0, 1)), y)

    vmp = jp.VMP(drawn, messages={"x": "linearise"}, tol=1e-12, progress=False)
    exact = vmp.run(np.nan_to_num(Y), np.array(1.0), False)
    sd = np.sqrt(exact.variance("x"))
    for part in (1e-2, least):
        found = vmp.run(np.nan_to_num(Y), np.array(part * sd.max()), True)
        assert found.converged
        assert np.abs((found.mean("x") - exact.mean("x")) / sd).max() < max(10 * part**2, 1e-6)
        assert abs(found.free_energy[-1] - exact.free_energy[-1]) < max(10 * part**2, 1e-6)


@pytest.mark.parametrize("steps", [1, 4])
def test_data_times_a_global_of_the_chain_count_in_its_first_state(steps):
    """A site that is data and a number are one and the same, but for its own density."""
    y = np.linspace(-0.1, 0.7, steps)

    def model(a=None):
        prior = dist.Normal(0.8, 1.3)
        a = jp.latent("a", prior) if a is None else a
        g = jp.latent("g", dist.Normal(0.6, 1.3))
        x0 = jp.latent("x0", dist.Normal(0.8 + 1.5 * a * g, 1.4))

        def step(x, y):
            jp.observe("y", dist.Normal(0.4 * x, 0.8), y)
            return jp.latent("x", dist.Normal(0.2 + 0.9 * x + 0.4 * g, 0.6)), None

        jp.scan(step, x0, jnp.array(y), length=steps)

    told = jp.VMP(jp.condition(model, {"a": np.array(-0.4)}), progress=False).run()
    plain = jp.VMP(model, progress=False).run(-0.4)
    own = float(dist.Normal(0.8, 1.3).log_prob(-0.4))
    assert_allclose(told.free_energy[-1], plain.free_energy[-1] - own, rtol=1e-6)
    for name in ("g", "x0", "x"):
        assert_allclose(told.mean(name), plain.mean(name), rtol=1e-5, atol=1e-6)
        assert_allclose(told.variance(name), plain.variance(name), rtol=1e-5)


def test_a_site_may_be_called_as_the_noise_of_another():
    """Noise that is drawn apart has a name that is free: "a.noise" was taken for that of "a"."""
    def walk(first, second):
        def model(y):
            a0, b0 = (jp.latent(n, dist.Normal(0.0, 1.0)) for n in ("a0", "b0"))

            def step(carry, y):
                a, b = carry
                a = jp.latent(first, dist.Normal(a, 0.3))
                b = jp.latent(second, dist.Normal(b, 1e-9))
                jp.observe("y", dist.Normal(a + b, 0.5), y)
                return (a, b), None

            jp.scan(step, (a0, b0), y)

        return jp.VMP(model, progress=False).run(np.array([1.0, 2.0, 3.0]))

    plain, odd = walk("a", "b"), walk("a.noise", "a")
    assert_allclose(odd.mean("a.noise"), plain.mean("a"), rtol=1e-9)
    assert_allclose(odd.mean("a"), plain.mean("b"), rtol=1e-9)
    assert_allclose(odd.free_energy, plain.free_energy, rtol=1e-9)
