"""Programs and data in float32, JAX's default, against the same in float64."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import programs
import pytest
from faults import drift, series
from fitting import fit, run
from numpy.testing import assert_allclose
from scipy.linalg import cho_solve_banded, cholesky_banded

import jopa_ppl as jp

QUICK = ("regression, sqrt", "lds", "second order")
NAMES = [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in programs.cases()]


def single(x):
    return x.astype(np.float32) if getattr(x, "dtype", None) == np.float64 else x


def test_whole_numbers_of_32_bits_stay_what_the_program_says_they_are():
    """A program may hold them to their type; only what densities are made of is wider."""
    def model(y, k):
        k = jax.lax.while_loop(lambda s: s < 10, lambda s: (2 * s).astype(jnp.int32), k)
        at = jax.lax.dynamic_slice(jnp.arange(9.0)[:, None], (jax.lax.add(k, jnp.int32(-14)),
                                                              jnp.int32(0)), (1, 1))
        jp.observe("y", dist.Normal(jp.latent("x", dist.Normal(at[0, 0], 1.0)), 1.0), y)

    assert_allclose(jp.VMP(model, progress=False).run(4.0, jnp.int32(1)).mean("x"), 3.0, rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_float32_agrees_with_float64(name):
    double = fit(name)
    case = programs.cases()[name]
    posterior = run(case.model, *map(single, case.args),
                       **{k: single(v) for k, v in case.kwargs.items()})
    f = posterior.free_energy
    assert (np.diff(f) <= 1e-6 * np.maximum(1, np.abs(f[1:]))).all()
    assert_allclose(f[-1], double.free_energy[-1], rtol=1e-3)
    for site in double.sites:
        mean, want = posterior.mean(site), np.asarray(double.mean(site))
        assert mean.dtype == jnp.float32
        # Both stop once a sweep moves means by less than 1e-10 of their sd. A mean that is zero by
        # a symmetry (B and the actions, where both are latent: p(-B, -u) = p(B, u)) is what its
        # slow decay has left by then, of no digits of its own.
        variance = np.asarray(double.variance(site))
        decayed = 1e-8 * np.sqrt(variance.max())
        assert_allclose(mean, want, rtol=1e-3, atol=max(1e-3 * np.abs(want).max(), decayed))
        assert_allclose(posterior.variance(site), variance, rtol=1e-3)


def shifted(y, offset, scale, noise=0.3):
    """A linear system around `offset`, everything in units of `scale`, priors too."""
    A = jp.latent("A", dist.Normal(jnp.eye(2), 0.7).to_event(2))
    W = jp.latent("W", dist.Wishart(4.0, rate_matrix=scale**2 * jnp.eye(2)))
    x0 = jp.latent("x0", dist.Normal(offset * jnp.ones(2), scale).to_event(1))

    def step(x, y):
        jp.observe("y", dist.Normal(x, noise * scale).to_event(1), y)
        mean = offset + A @ (x - offset)
        return jp.latent("x", dist.MultivariateNormal(mean, precision_matrix=W)), None

    jp.scan(step, x0, y)


@functools.cache
def unit_free(offset, scale, dtype, T=40, noise=0.3):
    """Beliefs about `shifted`, freed of units."""
    y = (programs.simulate(T, missing=0.1)[0] * scale + offset).astype(dtype)
    with jax.enable_x64(dtype == "float64"):
        p = run(shifted, y, np.asarray(offset, dtype), np.asarray(scale, dtype), noise, tol=1e-12,
                max_iters=1000)
    density = np.isfinite(y).sum() * np.log(scale)
    return {"A": p.mean("A"), "W": p.mean("W") * scale**2, "F": p.free_energy[-1] - density,
            "x": (np.asarray(p.mean("x"), float) - offset) / scale,
            "sd": np.sqrt(p.variance("x")) / scale}


@pytest.mark.parametrize(("offset", "scale"), [(0.0, 1.0), (1e3, 1.0), (0.0, 1e-3), (0.0, 1e3),
                                               (-1e3, 10.0)])
def test_offsets_and_scales(offset, scale):
    agree(unit_free(0.0, 1.0, "float64"), unit_free(offset, scale, "float32"))


@pytest.mark.slow
def test_ten_thousand_precise_steps_with_unknown_dynamics():
    agree(*(unit_free(0.0, 1.0, dtype, T=10_000, noise=1e-4) for dtype in ("float64", "float32")))


def agree(want, found):
    for name, value in want.items():
        value = np.asarray(value)
        assert_allclose(found[name], value, rtol=1e-3, atol=1e-3 * np.abs(value).max(),
                        err_msg=name)


def walk(y):
    def step(x, y):
        jp.observe("y", dist.Normal(x, 1e-4), y)
        return jp.latent("x", dist.Normal(x, 1.0)), None

    jp.scan(step, jp.latent("x0", dist.Normal(0.0, 1.0)), y)


def fit_drift(y: np.ndarray, offset: float, scale: float) -> dict[str, np.ndarray]:
    """Beliefs about `drift`, freed of units."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", jp.ConvergenceWarning)
        p = jp.VMP(drift, max_iters=60, tol=1e-9, progress=False).run(
            jnp.asarray(y * scale + offset), jnp.asarray(offset), jnp.asarray(scale))
    # The density of the data scales with the units, so F is compared up to T log(scale).
    return {"A": np.asarray(p.mean("A"), float), "sd": np.sqrt(np.asarray(p.variance("A"), float)),
            "tau": np.asarray(p.mean("tau"), float) * scale**2,
            "x": (np.asarray(p.mean("x"), float) - offset) / scale,
            "F": p.free_energy[-1] - np.isfinite(y).sum() * np.log(scale)}


def test_offsets_scales_and_a_missing_frame_in_single_precision():
    y = series()
    gap = np.where(np.arange(len(y)) == 7, np.nan, y)
    assert not jax.config.jax_enable_x64
    with jax.enable_x64(True):
        exact, exact_gap = fit_drift(y, 0.0, 1.0), fit_drift(gap, 0.0, 1.0)
    assert all(np.isfinite(v).all() for v in exact_gap.values())
    assert np.abs(exact["x"][:-1] - y[1:]).max() < 0.5 and 0.3 < exact["A"] < 1.2
    for offset, scale in ((0.0, 1.0), (1e3, 1.0), (0.0, 1e-3), (0.0, 1e3)):
        single = fit_drift(y, offset, scale)
        for name, want in exact.items():
            assert_allclose(single[name], want, rtol=1e-3, atol=1e-3, err_msg=name)
    single = fit_drift(gap, 0.0, 1.0)
    for name, want in exact_gap.items():
        assert_allclose(single[name], want, rtol=1e-3, atol=1e-3, err_msg=name)
    # A missing frame leaves no trace in the fits that follow.
    assert_allclose(fit_drift(y, 0.0, 1.0)["F"], exact["F"], rtol=1e-3)


def test_ten_thousand_precise_steps_of_a_known_walk():
    steps, precision = 10_000, 1e8
    rng = np.random.default_rng(1)
    x = np.cumsum(rng.normal(size=steps))
    y = (x + 1e-4 * rng.normal(size=steps)).astype(np.float32).astype(float)
    posterior = jp.VMP(walk, progress=False).run(y)
    # x0 and x_1 .. x_{T-1}: a random walk from N(0, 1), its precision tridiagonal.
    bands = np.array([np.full(steps, 2.0 + precision), np.full(steps, -1.0)])
    bands[0, -1] -= 1.0
    bands[1, -1] = 0.0
    factor = cholesky_banded(bands, lower=True)
    mean = cho_solve_banded((factor, True), precision * y)
    got = np.concatenate([[posterior.mean("x0")], posterior.mean("x")[:-1]])
    assert_allclose(got, mean, rtol=1e-5, atol=1e-4)
    sd = np.sqrt(posterior.variance("x")[:-1])
    assert_allclose(sd, 1e-4, rtol=1e-3)
    # The exponent at its minimum: an error in `mean` enters squared, unlike in y' P (y - mean).
    quadratic = precision * ((y - mean) ** 2).sum() + mean[0] ** 2 + (np.diff(mean) ** 2).sum()
    logdet = 2 * np.log(factor[0]).sum() - steps * np.log(precision)
    evidence = -0.5 * (quadratic + logdet + steps * np.log(2 * np.pi))
    assert_allclose(posterior.free_energy[-1], -evidence, rtol=1e-6)
