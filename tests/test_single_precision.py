"""Programs and data in float32, JAX's default, against the same in float64."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import programs
import pytest
from fitting import fit
from numpy.testing import assert_allclose

import jopa_ppl as jp

QUICK = ("regression, sqrt", "lds", "second order")
NAMES = [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in programs.cases()]


def single(x):
    return x.astype(np.float32) if getattr(x, "dtype", None) == np.float64 else x


def settle(model, *args, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", jp.ConvergenceWarning)
        return jp.VMP(model, tol=1e-12, max_iters=1000, progress=False).run(*args, **kwargs)


@pytest.mark.parametrize("name", NAMES)
def test_float32_agrees_with_float64(name):
    double = fit(name)
    case = programs.cases()[name]
    posterior = settle(case.model, *map(single, case.args),
                       **{k: single(v) for k, v in case.kwargs.items()})
    f = posterior.free_energy
    assert (np.diff(f) <= 1e-6 * np.maximum(1, np.abs(f[1:]))).all()
    assert_allclose(f[-1], double.free_energy[-1], rtol=1e-3)
    for site in double.sites:
        mean, want = posterior.mean(site), np.asarray(double.mean(site))
        assert mean.dtype == jnp.float32
        assert_allclose(mean, want, rtol=1e-3, atol=1e-3 * np.abs(want).max())
        assert_allclose(posterior.variance(site), double.variance(site), rtol=1e-3)


def shifted(y, offset, scale):
    """A linear system around `offset`, everything in units of `scale`, priors too."""
    A = jp.latent("A", dist.Normal(jnp.eye(2), 0.7).to_event(2))
    W = jp.latent("W", dist.Wishart(4.0, rate_matrix=scale**2 * jnp.eye(2)))
    x0 = jp.latent("x0", dist.Normal(offset * jnp.ones(2), scale).to_event(1))

    def step(x, y):
        jp.observe("y", dist.Normal(x, 0.3 * scale).to_event(1), y)
        mean = offset + A @ (x - offset)
        return jp.latent("x", dist.MultivariateNormal(mean, precision_matrix=W)), None

    jp.scan(step, x0, y)


@functools.cache
def unit_free(offset, scale, dtype):
    """Beliefs about `shifted`, freed of units."""
    y = (programs.simulate(40, missing=0.1)[0] * scale + offset).astype(dtype)
    with jax.enable_x64(dtype == "float64"):
        p = settle(shifted, y, np.asarray(offset, dtype), np.asarray(scale, dtype))
    density = np.isfinite(y).sum() * np.log(scale)
    return {"A": p.mean("A"), "W": p.mean("W") * scale**2, "F": p.free_energy[-1] - density,
            "x": (np.asarray(p.mean("x"), float) - offset) / scale,
            "sd": np.sqrt(p.variance("x")) / scale}


@pytest.mark.parametrize(("offset", "scale"), [(0.0, 1.0), (1e3, 1.0), (0.0, 1e-3), (0.0, 1e3),
                                               (-1e3, 10.0)])
def test_offsets_and_scales(offset, scale):
    want, found = unit_free(0.0, 1.0, "float64"), unit_free(offset, scale, "float32")
    for name, value in want.items():
        value = np.asarray(value)
        assert_allclose(found[name], value, rtol=1e-3, atol=1e-3 * np.abs(value).max(),
                        err_msg=name)
