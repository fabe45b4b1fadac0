"""Fits of the programs of the list, run to their fixed point in float64."""

import functools
import warnings

import jax
import numpy as np
import programs

import jopa_ppl as jp

C = np.array([[1.0, 0.5], [0.0, 1.0]])
A, B, W = programs.rotation(), np.array([[0.5], [-1.0]]), np.array([[20.0, 3.0], [3.0, 10.0]])


def run(model, *args, tol=1e-20, max_iters=2000, **kwargs):
    """A fit to the fixed point (means settled to 1e-10 of their spread), without bars."""
    options = {k: kwargs.pop(k) for k in ("chain", "blocks") if k in kwargs}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", jp.ConvergenceWarning)
        return jp.VMP(model, tol=tol, max_iters=max_iters, progress=False, **options).run(
            *args, **kwargs)


@functools.cache
def fit(name):
    """The posterior of a program of the list, run once."""
    case = programs.cases()[name]
    with jax.enable_x64(True):
        return run(case.model, *case.args, **case.kwargs)


def one_block(name, T):
    """A program whose latents are one Gaussian block, with missing data: model, args, shapes."""
    y, u = programs.simulate(T, seed=T, missing=0)
    if T > 2:
        y[1], y[2, 0] = np.nan, np.nan
    elif T > 1:
        y[0, 1] = np.nan
    state = {"x0": (2,), "x": (T, 2)}
    if name == "lds":
        return jp.condition(programs.lds, {"A": A, "B": B, "W": W}), (y,), {"T": T, "C": C}, {
            **state, "u": (T, 1)}
    if name == "lds, actions known":
        model = jp.condition(programs.lds, {"A": A, "B": B, "W": W, "u": u})
        return model, (y,), {"T": T, "C": C}, state
    if name == "varying":
        case = programs.cases(T)["varying"]
        return case.model, (y,), case.kwargs, {**state, "u": (T, 1)}
    if name == "fusion":
        model = jp.condition(programs.fusion, {"tau": np.asarray(3.0)})
        return model, (y, y[::-1, 0] * 2), {"T": T, "A": A}, state
    if name == "coupled":
        model = jp.condition(programs.coupled, {"tau": np.array([2.0, 9.0])})
        data = programs.simulate(T, missing=0)[0][:, 0]
        return model, (data,), {"T": T}, {"a0": (), "b0": (), "a": (T,), "b": (T,)}
    if name == "second order":
        model = jp.condition(programs.second_order, {"tau": np.asarray(9.0),
                                                     "damp": np.asarray(0.7)})
        return model, (y,), {"T": T}, {"q1": (2,), "q0": (2,), "q": (T, 2)}
    if name == "trajectories":
        model = jp.condition(programs.trajectories, {"A": A, "W": W})
        many = programs.simulate(T, n=3, missing=0)[0]
        many[T // 2 + 1:, 1] = np.nan
        return model, (many,), {}, {"x0": (3, 2), "x": (T, 3, 2)}
    if name == "hierarchy":
        case = programs.cases()["hierarchy"]
        model = jp.condition(case.model, {"tau": np.asarray(2.0)})
        return model, case.args, {}, {"mu": (), "theta": (6, 1)}
    if name == "transitions":
        case = programs.cases()["transitions, tempered"]
        return jp.condition(case.model, {"W": W}), case.args, {}, {"A": (2, 3), "B": (2, 1)}
    case = programs.cases()["factor analysis"]
    loadings = np.random.default_rng(5).normal(size=(5, 2))
    model = jp.condition(case.model, {"L": loadings, "tau": np.arange(1.0, 6)})
    return model, case.args, {}, {"z": (25, 2), "b": (5,)}
