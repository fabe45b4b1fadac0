"""Extreme numbers against 80-digit arithmetic: right, or an error or a warning.

120 inputs, in float64 and in float32: units of 1e-8 to 1e8, offsets of 1e6 units, noise and priors
a thousand times narrower or wider, concentrations of 1e-3 to 1e8, one to twenty data. All programs
have one block, so their beliefs and evidence are known exactly. A number is right that is within
1e-6 of the belief's spread, a free energy within 1e-4 nats, and either within what it moves where
the data move by a unit in their last place: no arithmetic on them knows it better.
"""

from __future__ import annotations

import itertools
import warnings
from typing import NamedTuple

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import numpyro.distributions as dist
import pytest

import jopa_ppl as jp

N, T, EPS = 20, 6, np.finfo(float).eps
LOOSE = 1e-9             # variance of a link over that of a belief: below it a run may refuse


@pytest.fixture(autouse=True)
def eighty_digits():
    with mp.workdps(80):
        yield


# -- programs: every number is an argument, so that each compiles once a precision ----------------


def regression(y, X, offset, prior, noise):
    w = jp.latent("w", dist.Normal(offset, prior).to_event(1))
    with jp.plate("n", N):
        jp.observe("y", dist.Normal(X @ w, noise), y)


def vector(y, mean, prior, noise):
    m = jp.latent("m", dist.MultivariateNormal(mean, covariance_matrix=prior))
    with jp.plate("n", N):
        jp.observe("y", dist.MultivariateNormal(m, covariance_matrix=noise), y)


def chain(y, x0, start, keep, shift, move, noise):
    def step(x, y):
        jp.observe("y", dist.Normal(x, noise), y)
        return jp.latent("x", dist.Normal(keep * x + shift, move)), None

    jp.scan(step, jp.latent("x0", dist.Normal(x0, start)), y)


def precision(y, mean, shape, rate):
    tau = jp.latent("tau", dist.Gamma(shape, rate))
    with jp.plate("n", N):
        jp.observe("y", dist.Normal(mean, 1 / jnp.sqrt(tau)), y)


def matrix(y, mean, dof, rate):
    W = jp.latent("W", dist.Wishart(dof, rate_matrix=rate))
    with jp.plate("n", N):
        jp.observe("y", dist.MultivariateNormal(mean, precision_matrix=W), y)


# -- truth, in 80 digits ---------------------------------------------------------------------------


class Truth(NamedTuple):
    """Means and standard deviations by site, and -log p(y).

    last_place: how far that moves with the last place of the data; loose: whether a link is so
    nearly certain that its precision leaves a belief fewer than six digits.
    """

    mean: dict[str, np.ndarray]
    sd: dict[str, np.ndarray]
    free_energy: mp.mpf
    last_place: mp.mpf = mp.mpf(0)
    loose: bool = False


def exactly(x):
    return mp.matrix(np.atleast_2d(np.asarray(x, float)).tolist())


def gaussian(links, n):
    """Mean, covariance, -log of the integral of prod N(d; H x, C) over x in R^n, and how far that
    moves with the last place of the numbers d; whether a link is nearly certain."""
    J, eta, log = mp.zeros(n), mp.zeros(n, 1), n * mp.log(2 * mp.pi)
    for H, d, C in links:
        P = mp.inverse(C)
        J, eta = J + H.T * P * H, eta + H.T * P * d
        log -= (d.T * P * d)[0] + mp.log(mp.det(C)) + C.rows * mp.log(2 * mp.pi)
    V = mp.inverse(J)
    m = V * eta
    log += (eta.T * m)[0] - mp.log(mp.det(J))
    moves = mp.mpf(0)
    for H, d, C in links:
        pull = mp.inverse(C) * (d - H * m)
        size = [abs(d[i]) + sum(abs(H[i, j] * m[j]) for j in range(n)) for i in range(C.rows)]
        moves += EPS * sum(abs(pull[i]) * size[i] for i in range(C.rows))
    tight = min(min(C[i, i] for i in range(C.rows)) for _, _, C in links)
    wide = max(V[i, i] for i in range(n))
    return m, V, -log / 2, moves, tight < LOOSE * wide


def told(m, V, rows, shape=None):
    mean, sd = [m[i] for i in rows], [mp.sqrt(V[i, i]) for i in rows]
    return tuple(np.array(x, object).reshape(len(rows) if shape is None else shape)
                 for x in (mean, sd))


def true_regression(y, X, offset, prior, noise):
    square = lambda s: exactly(s)**2
    links = [(mp.eye(3), exactly(offset).T, mp.eye(3) * square(prior)[0])]
    links += [(exactly(x), exactly(z), square(noise)) for x, z in zip(X, y) if not np.isnan(z)]
    m, V, *rest = gaussian(links, 3)
    mean, sd = told(m, V, range(3))
    return Truth({"w": mean}, {"w": sd}, *rest)


def true_vector(y, mean, prior, noise):
    links = [(mp.eye(2), exactly(mean).T, exactly(prior))]
    links += [(mp.eye(2), exactly(z).T, exactly(noise)) for z in y if not np.isnan(z).any()]
    m, V, *rest = gaussian(links, 2)
    mean, sd = told(m, V, range(2))
    return Truth({"m": mean}, {"m": sd}, *rest)


def true_chain(y, x0, start, keep, shift, move, noise):
    unit = lambda i: exactly(np.eye(T + 1)[i])
    links = [(unit(0), exactly(x0), exactly(start)**2)]
    for t, z in enumerate(y):
        links.append((unit(t + 1) - exactly(keep)[0] * unit(t), exactly(shift), exactly(move)**2))
        if not np.isnan(z):
            links.append((unit(t), exactly(z), exactly(noise)**2))
    m, V, *rest = gaussian(links, T + 1)
    (m0, s0), (ms, ss) = told(m, V, [0], ()), told(m, V, range(1, T + 1))
    return Truth({"x0": m0, "x": ms}, {"x0": s0, "x": ss}, *rest)


def true_precision(y, mean, shape, rate):
    a0, b0, mu = (exactly(x)[0] for x in (shape, rate, mean))
    gaps = [mp.mpf(float(z)) - mu for z in y if not np.isnan(z)]
    a, b = a0 + mp.mpf(len(gaps)) / 2, b0 + sum(g**2 for g in gaps) / 2
    F = (a * mp.log(b) - a0 * mp.log(b0) + mp.loggamma(a0) - mp.loggamma(a)
         + len(gaps) * mp.log(2 * mp.pi) / 2)
    return Truth({"tau": np.array(a / b)}, {"tau": np.array(mp.sqrt(a) / b)}, F)


def true_matrix(y, mean, dof, rate):
    nu0, V0, mu = exactly(dof)[0], exactly(rate), exactly(mean).T
    gaps = [exactly(z).T - mu for z in y if not np.isnan(z).any()]
    nu, V = nu0 + len(gaps), V0
    for g in gaps:
        V = V + g * g.T
    log_gamma = lambda x: sum(mp.loggamma((x - i) / 2) for i in range(2))
    F = (nu / 2 * mp.log(mp.det(V)) - nu0 / 2 * mp.log(mp.det(V0)) + log_gamma(nu0) - log_gamma(nu)
         + len(gaps) * mp.log(mp.pi))
    S = mp.inverse(V)
    pairs = list(itertools.product(range(2), repeat=2))
    mean_ = [nu * S[i, j] for i, j in pairs]
    sd = [mp.sqrt(nu * (S[i, j]**2 + S[i, i] * S[j, j])) for i, j in pairs]
    square = lambda x: np.array(x, object).reshape(2, 2)
    return Truth({"W": square(mean_)}, {"W": square(sd)}, F)


# -- the grid --------------------------------------------------------------------------------------

UNITS, RATIOS = (1e-8, 1e-3, 1.0, 1e3, 1e8), (1e-3, 1.0, 1e3)
OFFSETS, COUNTS = (0.0, 1e6), (1, 3, N)
SHAPES = (1e-3, 1.0, 1e3, 1e5, 1e6, 1e7, 1e8)


def designs(*levels, count=24):
    """`count` rows that hold every level of every factor equally often, in a fixed random order."""
    rng = np.random.default_rng(len(levels))
    columns = [rng.permutation([x for x, _ in zip(itertools.cycle(level), range(count))])
               for level in levels]
    return list(enumerate(zip(*columns)))


def seen(rng, count, *shape):
    z = rng.normal(size=(N, *shape))
    z[int(count):] = np.nan
    return z


def grid():
    """(program, truth, arguments) of every case."""
    for i, (unit, prior, noise, offset, count) in designs(UNITS, RATIOS, RATIOS, OFFSETS, COUNTS):
        rng = np.random.default_rng(i)
        X, level = rng.normal(size=(N, 3)), offset * unit * np.ones(3)
        y = X @ level + unit * seen(rng, count)
        yield regression, true_regression, (y, X, level, prior * unit, noise * unit)
    for i, (unit, prior, noise, offset, count, gap) in designs(
            UNITS, RATIOS, RATIOS, OFFSETS, COUNTS, (1e-6, 1e-3, 1.0)):
        rng, mean = np.random.default_rng(i), offset * unit * np.ones(2)
        tied = unit**2 * np.array([[1, 1 - gap], [1 - gap, 1]])
        y = mean + unit * seen(rng, count, 2)
        yield vector, true_vector, (y, mean, prior**2 * tied, noise**2 * unit**2 * np.eye(2))
    for i, (unit, start, move, noise, offset, keep) in designs(
            UNITS, RATIOS, (1e-7, 1e-3, 1.0, 1e3), RATIOS, OFFSETS, (-0.9, 0.5, 1.0, 1.1)):
        rng, level = np.random.default_rng(i), offset * unit
        y = level + unit * rng.normal(size=T)
        y[rng.integers(1, T)] = np.nan
        yield chain, true_chain, (y, level, start * unit, keep, (1 - keep) * level, move * unit,
                                  noise * unit)
    for i, (unit, shape, spread, offset, count) in designs(UNITS, SHAPES, RATIOS, OFFSETS, COUNTS):
        rng, mean = np.random.default_rng(i), offset * unit
        y = mean + unit * seen(rng, count)
        yield precision, true_precision, (y, mean, shape, shape * (spread * unit)**2)
    for i, (unit, shape, spread, offset, count, gap) in designs(
            UNITS, SHAPES, RATIOS, OFFSETS, COUNTS, (1e-3, 1.0)):
        rng, mean = np.random.default_rng(i), offset * unit * np.ones(2)
        dof, y = 1.5 + shape, mean + unit * seen(rng, count, 2)
        tied = np.array([[1, 1 - gap], [1 - gap, 1]])
        yield matrix, true_matrix, (y, mean, dof, dof * (spread * unit)**2 * tied)


CASES = list(grid())


def wrong(found, truth):
    """What of a posterior is off, as text; none if it is right."""
    faults = []
    with jax.enable_x64(True):             # what is inside, not what a float32 caller is handed
        for name, want in truth.mean.items():
            mean, sd = np.asarray(found.mean(name)), np.sqrt(np.asarray(found.variance(name)))
            for m, s, w, spread in zip(mean.ravel(), sd.ravel(), want.ravel(),
                                       truth.sd[name].ravel()):
                off = abs(mp.mpf(float(m)) - w)
                if not off <= 1e-6 * spread + 8 * EPS * abs(w):
                    faults.append(f"{name}: mean {m:.10g}, off by {mp.nstr(off / spread, 3)} sd")
                if not abs(mp.mpf(float(s)) - spread) <= 1e-6 * spread:
                    faults.append(f"{name}: sd {s:.10g} for {mp.nstr(spread, 10)}")
    off = abs(mp.mpf(float(found.free_energy[-1])) - truth.free_energy)
    if not off <= 1e-4 + truth.last_place + 8 * EPS * abs(truth.free_energy):
        faults.append(f"F {found.free_energy[-1]:.10g} for {mp.nstr(truth.free_energy, 10)}")
    return faults


def test_the_grid_has_120_cases():
    assert len(CASES) == 120


def silent(program, dtype, loose):
    """What is off without a word, by case."""
    found = []
    for i, (model, truth, args) in enumerate(CASES):
        args = [np.asarray(x, dtype) for x in args]
        if model is not program or (exact := truth(*args)).loose != loose:
            continue
        told: list[object] = []
        with warnings.catch_warnings(record=True) as caught, jax.enable_x64(dtype == np.float64):
            warnings.simplefilter("always")
            try:
                posterior = jp.VMP(model, progress=False).run(*args)
            except jp.NumericalError as error:
                told.append(error)
        told += [w.message for w in caught if issubclass(w.category, jp.NumericalWarning)]
        if told:
            assert loose, f"case {i}: {told[0]}"
        elif faults := wrong(posterior, exact):
            found.append((i, [float(np.ravel(x)[0]) for x in args], faults))
    return found


PROGRAMS = [regression, vector, chain, precision, matrix]
DTYPES = pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=lambda d: d.__name__)


@DTYPES
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.__name__)
def test_right_without_a_word(program, dtype):
    assert not (found := silent(program, dtype, loose=False)), "\n".join(map(str, found))


@DTYPES
def test_nearly_certain_links_are_right_or_told_of(dtype):
    found = [fault for p in PROGRAMS for fault in silent(p, dtype, loose=True)]
    assert not found, "\n".join(map(str, found))
