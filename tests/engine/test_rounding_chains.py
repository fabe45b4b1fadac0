"""Scales far apart in chains whose dynamics are known, against 60 digits: right, or told."""

from __future__ import annotations

import warnings

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import numpyro.distributions as dist
import pytest
from jax import Array

import jopa_ppl as jp
from jopa_ppl.engine.rounding import ENERGY, SILENT
from jopa_ppl.errors import NumericalError, NumericalWarning

STEPS = 5
VALUES = np.array([0.4, -0.2, 0.3, 0.5, -0.1])
INTEGRATES, MIXES = np.array([[1.0, 1.0], [0.0, 1.0]]), np.array([[1.0, 1.0], [1.0, 0.7]])


def chain(y: Array, sds: Array, A: Array) -> None:
    """Two numbers, of which the first is seen; sds: of the first state, of the steps, of what is
    seen."""
    x0 = jp.latent("x0", dist.Normal(jnp.zeros(2), sds[0]).to_event(1))

    def step(x: Array, y: Array) -> tuple[Array, None]:
        x = jp.latent("x", dist.Normal(A @ x, sds[1:3]).to_event(1))
        jp.observe("y", dist.Normal(x[0], sds[3]), y)
        return x, None

    jp.scan(step, x0, y)


VMP = jp.VMP(chain, progress=False)


def truth(y: np.ndarray, sds: np.ndarray, A: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Means and sds of x0 and x (6, 2), and -log p(y): the dense joint in 60 digits."""
    with mp.workdps(60):
        n, F = 2 + 2 * STEPS, mp.mpf(0)
        J, h = mp.zeros(n, n), mp.zeros(n, 1)

        def add(row: dict[int, float], value: float, sd: float) -> None:
            nonlocal F
            w = 1 / mp.mpf(float(sd))**2
            for i, a in row.items():
                h[i] += w * mp.mpf(float(a)) * mp.mpf(float(value))
                for j, b in row.items():
                    J[i, j] += w * mp.mpf(float(a)) * mp.mpf(float(b))
            F += (mp.log(2 * mp.pi / w) + w * mp.mpf(float(value))**2) / 2

        for i in range(2):
            add({i: 1.0}, 0.0, sds[0])
        for t in range(STEPS):
            for i in range(2):
                add({2 + 2 * t + i: 1.0, 2 * t: -A[i, 0], 2 * t + 1: -A[i, 1]}, 0.0, sds[1 + i])
            add({2 + 2 * t: 1.0}, y[t], sds[3])
        C = J**-1
        m = C * h
        F += mp.log(mp.det(J)) / 2 - n * mp.log(2 * mp.pi) / 2 - (h.T * m)[0] / 2
        return (np.array([float(x) for x in m]).reshape(-1, 2),
                np.array([float(mp.sqrt(C[i, i])) for i in range(n)]).reshape(-1, 2), float(F))


def errors(y: np.ndarray, sds: np.ndarray, A: np.ndarray) -> tuple[float, float, bool] | None:
    """Errors of beliefs in spreads and of F in nats, and whether it was told; None: refused."""
    with jax.enable_x64(True), warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            found = VMP.run(y, np.asarray(sds, float), A)
        except NumericalError:
            return None
        mean = np.concatenate([found.mean("x0")[None], found.mean("x")])
        sd = np.sqrt(np.concatenate([found.variance("x0")[None], found.variance("x")]))
    m, s, F = truth(y, sds, A)
    off = max((np.abs(mean - m) / s).max(), np.abs(sd / s - 1).max())
    return off, abs(float(found.free_energy[-1]) - F), bool(told)


@pytest.mark.parametrize("sds, A", [
    ((1e3, 1e3, 1e-5, 1e-6), INTEGRATES), ((1e3, 1e3, 1e-5, 1e-6), MIXES),
    ((1e4, 1e4, 1e-4, 1e-5), np.array([[1.0, -0.5], [1.0, 0.7]])),
    ((1e7, 1e-2, 1e-4, 1e-3), INTEGRATES), ((1.0, 1e-4, 1.0, 1e-4), INTEGRATES)])
def test_what_is_known_precisely_leaves_the_rest_its_digits(sds: tuple, A: np.ndarray) -> None:
    """Means were 0.07 of a spread off, and F 0.004 nats, without a word."""
    off, nats, _ = errors(VALUES, np.array(sds), A)
    assert off <= SILENT and nats <= ENERGY


@pytest.mark.parametrize("process", [0.0, 1.0])
@pytest.mark.parametrize("sd", [1e-5, 1e-6, 1e-7, 1e-8, 1e-9])
def test_a_precise_sensor_of_an_integrated_speed_is_told(sd: float, process: float) -> None:
    """With sd 1e-9 F was 2.1 nats off, without a word."""
    y = np.cumsum(np.cumsum(np.random.default_rng(0).normal(size=STEPS)))
    found = errors(y, np.array([1.0, process * sd or 1e-20, 1.0, sd]), INTEGRATES)
    assert found is None or found[2] or (found[0] <= SILENT and found[1] <= ENERGY)
    if sd <= 1e-7:
        assert found is None
    elif sd == 1e-5:
        assert found is not None and found[0] <= SILENT


@pytest.mark.parametrize("seed", range(8))
def test_no_scales_come_back_wrong_without_a_word(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(10):
        sds, A = 10.0**rng.uniform(-6, 6, 4), rng.normal(size=(2, 2))
        y = rng.normal(size=STEPS) * 10.0**rng.uniform(-3, 3)
        found = errors(y, sds, A)
        assert found is None or found[2] or (found[0] <= SILENT and found[1] <= ENERGY), (
            found, sds, A, y)


def test_dynamics_that_enlarge_a_hundred_thousandfold_are_told() -> None:
    """Spreads were 8e-6 of themselves off: what later steps tell is a rest of larger terms."""
    A = np.array([[-6922.80532035, 304524.88143278], [-220732.38514543, -223901.28236881]])
    found = errors(np.array([-0.045, -0.006, 0.029, -0.019, 0.007]),
                   np.array([2.23e4, 6.31e-3, 1.72e-5, 1.893e3]), A)
    assert found is not None and found[2] and found[0] > SILENT


def test_data_that_are_the_sum_of_two_states_far_from_zero_are_told() -> None:
    """F was 4e-4 nats off: the residual, with a scale of 4e-6, is what two numbers of 1e9 leave."""
    y = np.array([-5.34963272e8, -2.07502983e8, 9.13374747e7, 9.19232779e8, 5.85124961e8])

    def model(y: Array) -> None:
        first = [jp.latent(n, dist.Normal(0.0, 1.8e-11)) for n in ("a0", "b0")]

        def step(carry: Array, y: Array) -> tuple[Array, None]:
            a = jp.latent("a", dist.Normal(-0.44 * carry[0], 4.9e7))
            b = jp.latent("b", dist.Normal(-0.51 * carry[1] + 0.5 * a, 0.11))
            jp.observe("y", dist.Normal(a + b, 4.3e-6), y)
            return (a, b), None

        jp.scan(step, tuple(first), y)

    with jax.enable_x64(True), pytest.warns(NumericalWarning, match="nats of F"):
        jp.VMP(model, progress=False).run(y)


@pytest.mark.parametrize("prior, noise", [(1e8, 1e-2), (1e10, 1.0), (1e12, 0.1)])
def test_a_vague_prior_of_a_regression_costs_no_digits(prior: float, noise: float) -> None:
    """Means were 1e-6 to 1e-3 of a spread off: what one pass solves began a tenth of the prior's
    spread away."""
    X = np.array([[2, 3, 1], [1, -1, 2], [3, 0, 1], [-2, 1, 1], [1, 1, -1.0]])

    def model(y: Array) -> None:
        w = jp.latent("w", dist.Normal(jnp.zeros(3), prior).to_event(1))
        with jp.plate("n", 5):
            jp.observe("y", dist.Normal(X @ w, noise), y)

    with jax.enable_x64(True):
        found = jp.VMP(model, progress=False).run(VALUES)
    with mp.workdps(60):
        P = mp.matrix(X.T.tolist()) * mp.matrix(X.tolist()) / mp.mpf(noise)**2
        P += mp.eye(3) / mp.mpf(prior)**2
        m = mp.lu_solve(P, mp.matrix(X.T.tolist()) * mp.matrix(VALUES.tolist()) / mp.mpf(noise)**2)
    gap = np.abs(found.mean("w") - np.array([float(x) for x in m]))
    assert (gap / np.sqrt(found.variance("w"))).max() < 1e-9


def test_data_far_from_all_that_is_expected_are_told_of() -> None:
    """F of 1e15 nats has no digit left behind the point."""
    def model(y: Array) -> None:
        m = jp.latent("m", dist.Normal(0.0, 1e-3))
        with jp.plate("n", 5):
            jp.observe("y", dist.Normal(m, 1e-8), y)

    with jax.enable_x64(True), pytest.warns(jp.NumericalWarning, match="far from what it expects"):
        jp.VMP(model, progress=False).run(VALUES)
