"""Random planning problems against dense linear algebra (`plan_oracle`), NumPy alone.

Each shape is one program, compiled once; dynamics, sensors, priors, frames and what is given of the
actions are its arguments, so that hundreds of patterns run through it.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpy.testing import assert_allclose
from plan_oracle import Problem, first_decision, open_loop, solve
from scipy.special import digamma

import jopa_ppl as jp


class Shape(NamedTuple):
    """What is compiled. `form`: the order of a step, frame y, action u, disturbance v, state x;
    "late" has x_t follow from u_{t-1}. `policy`: the actions' prior depends on the state."""

    form: str = "yux"
    T: int = 4
    d: int = 2
    du: int = 2
    order: int = 1
    plate: int = 0
    mvn: bool = False
    policy: bool = False
    uncertain: bool = False
    noisy: bool = False             # the precision of the process is a Gamma belief
    decide: tuple[str, ...] = ("u",)
    given: bool = False             # beliefs come from `jp.given(update=False)`
    states: bool = False            # states are data in part


QUICK = (
    Shape("uvxy", T=3, plate=2, mvn=True, policy=True),
    Shape("yvux", T=5, du=1, order=2, decide=("u", "v")),
    Shape("late", T=4, d=1, mvn=True, uncertain=True),
)
MORE = (
    Shape(),
    Shape("yux", T=3, plate=2, uncertain=True, states=True, given=True),
    Shape("uxy", T=5, d=3, du=1, order=2, plate=3),
    Shape("uxy", T=1, plate=2, policy=True),
    Shape("yux", T=2, d=1, du=3, mvn=True, policy=True),
    Shape("yuvx", T=4, order=2, uncertain=True, given=True),
    Shape("uvxy", T=3, noisy=True, uncertain=True, given=True, plate=2),
    Shape("xuvy", T=5, order=2, policy=True, plate=2),
    Shape("late", T=5, order=2, du=1, policy=True),
    Shape("yvux", T=6, d=1, du=1, mvn=True, plate=2, decide=("u", "v")),
    Shape("vyux", T=4, noisy=True, mvn=False, policy=True),
    Shape("uvxy", T=4, order=2, mvn=True, states=True),
)
DV, DY, RTOL = 1, 2, 1e-7


def program(y, p, *, shape):
    """x = A x' + A2 x'' + M x' + B u + E v + c + noise, y = C x + D u + F v + noise, as far as the
    shape has them."""
    s, lead = shape, (shape.plate,) * bool(shape.plate)
    plate = (lambda: jp.plate("n", s.plate)) if s.plate else nullcontext

    def normal(mean, cov):
        return (dist.MultivariateNormal(mean, covariance_matrix=cov) if s.mvn
                else dist.Normal(mean, jnp.sqrt(jnp.diagonal(cov))).to_event(1))

    M = jp.latent("M", dist.Normal(p["M"], p["M_sd"]).to_event(2)) if s.uncertain else None
    tau = jp.latent("tau", dist.Gamma(p["a"], p["b"]).to_event(1)) if s.noisy else None
    with plate():
        start = tuple(jp.latent(f"x{i}", dist.MultivariateNormal(
            jnp.broadcast_to(p["m0"][i], (*lead, s.d)), covariance_matrix=p["P0"][i]))
            for i in range(s.order))

    def step(carry, now):
        (x, held), (y, k) = carry, now
        u, v = held, jnp.zeros((*lead, DV))
        with plate():
            for letter in letters(s):
                if letter == "x":
                    mean = x[0] @ k["A"].T + u @ k["B"].T + k["c"]
                    mean = mean + (x[1] @ k["A2"].T if s.order > 1 else 0.0)
                    mean = mean + (v @ k["E"].T if "v" in s.form else 0.0)
                    mean = mean + (x[0] @ M.T if s.uncertain else 0.0)
                    fn = (dist.Normal(mean, 1 / jnp.sqrt(tau)).to_event(1) if s.noisy
                          else normal(mean, k["Q"]))
                    x = (jp.latent("x", fn), *x[:s.order - 1])
                elif letter == "u":
                    mean = jnp.broadcast_to(k["mu"], (*lead, s.du))
                    mean = mean + (x[0] @ k["L"].T if s.policy else 0.0)
                    u = jp.latent("u", normal(mean, k["R"]))
                elif letter == "v":
                    v = jp.latent("v", dist.Normal(jnp.zeros((*lead, DV)), k["sv"]).to_event(1))
                else:
                    mean = x[0] @ k["C"].T
                    mean = mean + sum(z @ k[m].T for z, m in ((u, "D"), (v, "F")) if seen(s, m))
                    jp.observe("y", dist.Normal(mean, k["sy"]).to_event(1), y)
        return (x, u if s.form == "late" else held), None

    jp.scan(step, (start, jnp.zeros((*lead, s.du))), (y, p["steps"]), length=s.T)


def letters(shape):
    """The sites of a step in order."""
    return {"late": "xyu"}.get(shape.form, shape.form)


def seen(shape, matrix):
    """Whether a frame speaks of its step's u ("D") or v ("F") too: of what is drawn before it."""
    return {"D": "u", "F": "v"}[matrix] in letters(shape).split("y")[0]


def parameters(shape, rng):
    """Random dynamics, sensors and priors."""
    s, T = shape, shape.T

    def scale(*size):
        return np.exp(rng.uniform(-2.5, 0.7, size))

    def cov(n, lead=()):
        root = rng.normal(size=(*lead, n, n)) * scale(*lead, n, 1)
        full = root @ np.swapaxes(root, -1, -2) + 0.01 * np.eye(n)
        return full if s.mvn else full * np.eye(n)

    def map_(*size):
        return rng.normal(size=(T, *size)) * rng.choice([0.3, 0.8])

    steps = {"A": 0.8 * map_(s.d, s.d), "A2": 0.5 * map_(s.d, s.d), "B": map_(s.d, s.du),
             "E": map_(s.d, DV), "c": map_(s.d), "C": map_(DY, s.d), "D": map_(DY, s.du),
             "F": map_(DY, DV), "L": 0.5 * map_(s.du, s.d), "mu": map_(s.du), "Q": cov(s.d, (T,)),
             "R": cov(s.du, (T,)), "sy": scale(T, DY), "sv": scale(T, DV)}
    P0 = np.stack([cov(s.d) for _ in range(s.order)])
    return {"steps": steps, "m0": rng.normal(size=(s.order, s.d)), "P0": P0,
            "M": 0.3 * rng.normal(size=(s.d, s.d)), "M_sd": scale(s.d, s.d),
            "a": 3.0 + scale(s.d), "b": scale(s.d)}


def gaps(rng, shape):
    """Data with a random pattern of NaN over (T, *plates, n): whole steps and single elements."""
    values = rng.normal(size=shape)
    T, rows = shape[0], (*shape[:-1], 1)
    steps = np.arange(T).reshape((T, *(1,) * (len(shape) - 1)))
    first = rng.integers(0, T + 1, (1, *shape[1:-1], 1))
    missing = [np.ones(shape, bool), rng.random(shape) < 0.5, rng.random(rows) < 0.5,
               steps >= first, steps < first, (steps >= first) & (rng.random(rows) < 0.7),
               rng.random(shape) < 0.9][rng.integers(7)]
    return np.where(missing, np.nan, values)


def data(shape, p, rng):
    """Frames and what is given of the other sites, with a goal that follows a decision."""
    lead = (shape.T, *(shape.plate,) * bool(shape.plate))
    while True:
        y, u = gaps(rng, (*lead, DY)), gaps(rng, (*lead, shape.du))
        given = {"u": u}
        if "v" in letters(shape):
            given["v"] = gaps(rng, (*lead, DV))
        if shape.states:
            given["x"] = gaps(rng, (*lead, shape.d))
        if not all(np.isnan(g).any() for g in given.values()):
            continue
        found = [problem(shape, p, y, given, n)[0]
                 for n in range(max(shape.plate, 1))]
        if any(not np.isnan(s.data).all() for p in found
               for s in p.sites[first_decision(p):] if not len(s.at)):
            return y, given


def problem(shape, p, y, given, n):
    """The dense problem of one trajectory, and the columns of its sites in h: {(site, step)}."""
    s = shape
    pick = (lambda a: a[:, n]) if s.plate else (lambda a: a)
    y, given = pick(y), {k: pick(a) for k, a in given.items()}
    size = s.order * s.d + s.T * (s.d + s.du + DV * ("v" in letters(s)))
    out, places = Problem(size), {}
    x = []
    for i in range(s.order):
        x.append(out.draw([], p["m0"][i], p["P0"][i]))
        places[f"x{i}", None] = x[i]
    u = v = None
    for t in range(s.T):
        k = {name: a[t] for name, a in p["steps"].items()}
        for letter in letters(s):
            if letter == "x":
                pairs = zip((*x, u, v), (*("A", "A2")[:s.order], "B", "E"))
                terms = [(at, k[name]) for at, name in pairs if at is not None]
                terms += [(x[0], p["M"])] * s.uncertain
                noise, spread = k["Q"], None
                if s.noisy:
                    a, b = p["a"], p["b"]
                    noise = (np.diag(a / b), (digamma(a) - np.log(b)).sum(), np.diag(b / (a - 1)))
                if s.uncertain:
                    part = np.einsum("ia,ij,ab->iajb", p["M_sd"]**2, np.eye(s.d), np.eye(s.d))
                    spread = x[0], part
                new = out.draw(terms, k["c"], noise, given["x"][t] if "x" in given else None,
                               spread=spread)
                x, places["x", t] = [new, *x[:s.order - 1]], new
            elif letter == "u":
                terms = [(x[0], k["L"])] * s.policy
                u = places["u", t] = out.draw(terms, k["mu"], k["R"], given["u"][t], True)
            elif letter == "v":
                v = places["v", t] = out.draw([], np.zeros(DV), np.diag(k["sv"]**2), given["v"][t],
                                              "v" in s.decide)
            else:
                terms = [(x[0], k["C"])]
                terms += [(z, k[m]) for z, m in ((u, "D"), (v, "F")) if seen(s, m)]
                out.see(terms, np.zeros(DY), np.diag(k["sy"]**2), y[t])
        if s.form != "late":
            u = v = None
    return out, places


@cache
def planner(shape):
    return partial(program, shape=shape)


def run(shape, p, y, given):
    """The plan of the library."""
    told = planner(shape)
    if shape.given:
        beliefs = {f"x{i}": dist.MultivariateNormal(
            np.broadcast_to(p["m0"][i], (*(shape.plate,) * bool(shape.plate), shape.d)),
            covariance_matrix=p["P0"][i]) for i in range(shape.order)}
        if shape.uncertain:
            beliefs["M"] = dist.Normal(p["M"], p["M_sd"]).to_event(2)
        told = jp.given(told, beliefs)
        p = {**p, "M": p["M"] + 9, "m0": p["m0"] - 9}
    told = jp.condition(told, given)
    return jp.VMP(told, decide=shape.decide, progress=False).run(y, p)


def check(shape, seed, drawn=False):
    """One random problem: moments, F and actions, and with `drawn` the moments of draws."""
    known = not (shape.uncertain or shape.noisy)    # else a draw holds its dynamics all along
    rng = np.random.default_rng(seed)
    p = parameters(shape, rng)
    y, given = data(shape, p, rng)
    with jax.enable_x64(True):
        plan = run(shape, p, y, given)
        found = {n: (np.asarray(plan.mean(n)), np.asarray(plan.variance(n)))
                 for n in plan.sites if n[0] in "uvx"}
        samples = plan.sample(seed, 4000) if drawn and known else {}
    total = 0.0
    for n in range(max(shape.plate, 1)):
        dense, places = problem(shape, p, y, given, n)
        right = solve(dense)
        total += right.free_energy
        spread = np.diag(right.cov)
        line = open_loop(dense, right.mean) if known else None
        for (name, t), at in places.items():
            index = (*(() if t is None else (t,)), *((n,) if shape.plate else ()))
            mean, variance = (a[index] for a in found[name])
            size = np.abs(right.mean).max() + np.sqrt(spread.max())
            where = f"{shape} seed {seed}: {name} at step {t}, trajectory {n}"
            assert_allclose(mean, right.mean[at - 1], rtol=RTOL, atol=RTOL * size, err_msg=where)
            assert_allclose(variance, spread[at - 1], rtol=RTOL, atol=RTOL * size**2, err_msg=where)
            if line is not None:
                assert_allclose(mean, line[at - 1], rtol=1e-6, atol=1e-6 * size, err_msg=where)
            if samples:
                draws = np.asarray(samples[name])[:, *index]
                gap = np.abs(draws.mean(0) - right.mean[at - 1])
                sd = np.sqrt(spread[at - 1])
                assert (gap <= 5 * sd / np.sqrt(4000) + 1e-6 * size).all(), where
                assert_allclose(draws.std(0), sd, rtol=0.12, atol=1e-6 * size, err_msg=where)
    assert_allclose(plan.free_energy[-1], total, rtol=RTOL, atol=RTOL * abs(total) + 1e-9,
                    err_msg=f"{shape} seed {seed}: F")


@pytest.mark.parametrize("shape", QUICK, ids=str)
def test_plans_are_the_dense_optimum(shape):
    for seed in range(20):
        check(shape, seed, drawn=seed == 0 and shape is QUICK[0])


@pytest.mark.slow
@pytest.mark.parametrize("shape", QUICK + MORE, ids=str)
def test_many_plans_are_the_dense_optimum(shape):
    for seed in range(2000 // len(QUICK + MORE) + 1):
        check(shape, 1000 + seed, drawn=seed < 5)
