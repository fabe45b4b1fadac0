"""Posteriors for ArviZ: draws, data and how they came about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import arviz
import jax
import numpy as np
from jax import Array, random

from jopa_ppl import predictive
from jopa_ppl.errors import ShapeError, SiteError, names
from jopa_ppl.graph.trace import Program, Site
from jopa_ppl.inference.bind import each_step, read_series
from jopa_ppl.posterior import Posterior
from jopa_ppl.storage import versions


def to_arviz(posterior: Posterior, num_samples: int, rng_key: Array,
             dims: Mapping[str, Sequence[str]] | None = None) -> Any:
    """The posterior as ArviZ's DataTree (1.x) or InferenceData (0.x).

    Groups: `posterior`, joint draws as one chain (1, num_samples, *site shape), whose attributes
    hold versions, program, free energy, convergence and schedule; `observed_data`, NaN where
    missing (not for a loaded posterior, which has no data).

    Args:
        dims: names of all axes of a site, {site: (name, ..)}. Default: "time" for the steps of a
            scan (coordinates 0, 1, ..), the plate's name for a plate, "<site>_dim_<i>" otherwise.

    In names "/" becomes ".", as it separates groups in netCDF.

    Raises:
        ShapeError: `dims` does not name every axis of a site; SiteError: it names no site.
    """
    program = posterior.compiled.graph.program
    sampled = {n: np.asarray(x)[None] for n, x in posterior.sample(rng_key, (num_samples,)).items()}
    data = {} if posterior.call is None else observed(posterior)
    axes = {n: _axes(program, n, x.ndim - 2) for n, x in sampled.items()}
    axes |= {n: _axes(program, n, x.ndim) for n, x in data.items()}
    for name, own in (dims or {}).items():
        if name not in axes:
            raise SiteError("unknown site in dims=", site=name, found=f"'{name}'",
                            expected=f"one of {names(axes)}", fix="check the spelling")
        if len(own) != len(axes[name]):
            raise ShapeError("dims= does not fit the site", site=name, found=tuple(own),
                             expected=f"{len(axes[name])} names", fix="name every axis, time first")
        axes[name] = list(own)
    coords = {_time(program, s.index): np.arange(s.length) for s in program.scans}
    groups = {"posterior": sampled} | ({"observed_data": data} if data else {})
    groups = {g: {_plain(n): x for n, x in found.items()} for g, found in groups.items()}
    axes = {_plain(n): [_plain(a) for a in own] for n, own in axes.items()}
    attrs = _attributes(posterior)
    if int(arviz.__version__.split(".")[0]) >= 1:
        return arviz.from_dict(groups, coords=coords, dims=axes, attrs={"posterior": attrs})
    return arviz.from_dict(**groups, coords=coords, dims=axes, posterior_attrs=attrs)


def observed(posterior: Posterior) -> dict[str, np.ndarray]:
    """The data of every observed site, NaN where it is missing or weighs nothing."""
    compiled, call = posterior.compiled, posterior.call
    program = compiled.graph.program
    sites = [s for s in program.sites.values() if s.observed]

    def read(data: dict[str, Array]) -> tuple[dict, dict]:
        outer, series = read_series(compiled.graph, data)
        values = {**outer, **{n: x for w in series for n, x in w.known.items()}}
        known = {**data, **{f"known/{n}": x for n, x in outer.items()}}
        weights = {}
        for site in sites:
            if "weight" not in site.outputs:
                continue
            wanted = [site.outputs["weight"]]
            if site.scan is None:
                (weights[site.name],) = program.evaluate(wanted, known)
            else:
                (weights[site.name],) = each_step(program.evaluate, wanted, known,
                                                  series[site.scan].steps,
                                                  program.scans[site.scan].length)
        return {s.name: values[s.name] for s in sites if not s.amortized}, weights

    with jax.enable_x64(True):
        values, weights = jax.jit(read)(compiled._data(call.dynamic))
    if any(s.amortized for s in sites):
        # VMP sees their encoder's message: the data themselves are what the program scores.
        model, args, kwargs = call.rebuild(call.dynamic)
        ran = predictive.replay(model, args, kwargs, {}, random.key(0), 1, keep_data=True)
        values |= {s.name: ran[s.name][0] for s in sites if s.amortized}
    return {s.name: _with_gaps(program, s, values[s.name], weights.get(s.name)) for s in sites}


def _with_gaps(program: Program, site: Site, value: Array, weight: Array | None) -> np.ndarray:
    array = np.array(value, np.result_type(np.float32, value.dtype))
    if weight is None:
        return array
    lead = 0 if site.scan is None else 1
    shape, rank = np.shape(weight)[lead:], array.ndim - lead
    if site.amortized:           # weighs whole frames; its last axes are the message's
        shape = shape[:len(site.batch_shape)]
        shape += (1,) * (rank - len(shape))
    own = (1,) * (rank - len(shape)) + shape
    missing = np.asarray(weight).reshape((*np.shape(weight)[:lead], *own)) == 0
    array[np.broadcast_to(missing, array.shape)] = np.nan
    return array


def _plain(name: str) -> str:
    return name.replace("/", ".")


def _time(program: Program, scan: int) -> str:
    """Scans of one length share an axis."""
    same = len({s.length for s in program.scans}) == 1
    return "time" if same else f"time_{scan}"


def _axes(program: Program, name: str, ndim: int) -> list[str]:
    site = program.sites[name]
    lead = [] if site.scan is None else [_time(program, site.scan)]
    plates = {p.axis: p.name for p in site.plates}
    return lead + [plates.get(i, f"{name}_dim_{i}") for i in range(ndim - len(lead))]


def _attributes(posterior: Posterior) -> dict[str, Any]:
    """What netCDF can hold: numbers, arrays and text."""
    found = {f"{k}_version": v for k, v in versions().items()}
    history = np.asarray(posterior.free_energy, np.float64)
    return {"inference_library": "jopa_ppl", "inference_library_version": found["jopa_ppl_version"],
            **found, "program": posterior.compiled.graph.program.name,
            "free_energy": float(history[-1]) if len(history) else float("nan"),
            "free_energy_history": history, "converged": int(posterior.converged),
            "num_iters": posterior.num_iters, "schedule": str(posterior.compiled.schedule)}
