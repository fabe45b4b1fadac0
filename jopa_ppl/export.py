"""Posteriors for ArviZ: draws, data and how they came about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import arviz
import jax
import numpy as np
import xarray
from jax import Array, random
from jax.typing import ArrayLike

from jopa_ppl import predictive
from jopa_ppl.errors import ShapeError
from jopa_ppl.graph.trace import Program, Site
from jopa_ppl.inference.bind import each_step, read_series
from jopa_ppl.labels import program_of, renamed, site_axes, step_coords
from jopa_ppl.posterior import Posterior
from jopa_ppl.storage import versions


def to_arviz(posterior: Posterior, num_samples: int, rng_key: Array,
             dims: Mapping[str, Sequence[str]] | None = None) -> Any:
    """The posterior as ArviZ's DataTree (1.x) or InferenceData (0.x).

    Groups: `posterior`, joint draws as one chain (1, num_samples, *site shape), whose attributes
    hold versions, program, free energy, convergence and schedule; `observed_data`, NaN where
    missing (not for a loaded posterior, which has no data).

    Args:
        dims: names of all axes of a site, {site: (name, ..)}. Default: see `draws_to_arviz`.

    Raises:
        ShapeError: `dims` does not name every axis of a site; SiteError: it names no site.
    """
    sampled = {n: np.asarray(x)[None] for n, x in posterior.sample(rng_key, (num_samples,)).items()}
    groups = {} if posterior.call is None else {"observed_data": observed(posterior)}
    return draws_to_arviz(posterior, sampled, groups=groups, dims=dims,
                          attrs=_attributes(posterior))


def draws_to_arviz(source: Any, draws: Mapping[str, ArrayLike], *,
                   groups: Mapping[str, Mapping[str, ArrayLike]] | None = None,
                   dims: Mapping[str, Sequence[str]] | None = None,
                   coords: Mapping[str, ArrayLike] | None = None,
                   attrs: Mapping[str, Any] | None = None) -> Any:
    """Draws of any engine as ArviZ's object, with the axes that the program's sites have.

    Args:
        source: what knows the program: a `Posterior`, `jp.compile(..)`, its `.graph`, or a traced
            program. Draws of several engines become comparable by using one source for all.
        draws: {site: (chain, draw, *site shape)}, as of NumPyro's
            `mcmc.get_samples(group_by_chain=True)`; time in front of the site's shape in a scan.
            Names that are no site (deterministic ones) are kept, with axes "<name>_dim_<i>".
        groups: further groups, {group: {site: array}}, without chain and draw where the group's
            name ends in "_data".
        dims: names of all axes of a site, {site: (name, ..)}. Default: "time" for the steps of a
            scan, the plate's name for a plate, "state" and "action" for vectors that are carried
            and that act on them (`jopa_ppl.labels.roles`), "<site>_dim_<i>" otherwise.
        coords: {axis: labels}; default 0, 1, ...
        attrs: attributes of the group `posterior`.

    In names "/" becomes ".", as it separates groups in netCDF.

    Raises:
        ShapeError: draws do not have the shape (chain, draw, *site shape), or `dims` does not name
            every axis of a site; SiteError: it names no site.
    """
    program, _ = program_of(source)
    every = {"posterior": draws, **(groups or {})}
    leads = {g: () if g.endswith("_data") else ("chain", "draw") for g in every}
    ranks = {n: np.ndim(x) - len(leads[g]) for g, xs in every.items() for n, x in xs.items()}
    axes = renamed(site_axes(source, ranks), dims)
    labels = {**step_coords(program, axes), **(coords or {})}
    return as_arviz({g: xarray.Dataset(
        {_plain(n): _labelled(program, axes, labels, n, x, leads[g]) for n, x in arrays.items()},
        attrs=attrs if g == "posterior" else None) for g, arrays in every.items()})


def as_arviz(groups: Mapping[str, xarray.Dataset]) -> Any:
    """Datasets by group as what the installed ArviZ works on."""
    if int(arviz.__version__.split(".")[0]) >= 1:
        return xarray.DataTree.from_dict(dict(groups))
    return arviz.InferenceData(**groups)


def _labelled(program: Program, axes: Mapping[str, Sequence[str]], labels: Mapping[str, ArrayLike],
              name: str, array: ArrayLike, lead: tuple[str, ...]) -> xarray.DataArray:
    array = np.asarray(array)
    rank = array.ndim - len(lead)
    if name in axes:
        _check_shape(program, program.sites[name], array.shape, lead)
    own = axes.get(name, [f"{name}_dim_{i}" for i in range(rank)])
    full = [_plain(a) for a in (*lead, *own)]
    known = {_plain(a): v for a, v in labels.items()}
    return xarray.DataArray(array, dims=full, coords={
        a: known.get(a, np.arange(n)) for a, n in zip(full, array.shape)})


def _check_shape(program: Program, site: Site, found: tuple[int, ...], lead: tuple[str, ...]
                 ) -> None:
    time = () if site.scan is None else (program.scans[site.scan].length,)
    shape = (*time, *(site.batch_shape if site.amortized else site.shape))
    if (found[len(lead):] if not site.amortized else
            found[len(lead):len(lead) + len(shape)]) != shape:
        expected = ", ".join([*lead, *map(str, shape)]) + (", .." if site.amortized else "")
        raise ShapeError("an array does not have the shape of its site", site=site.name,
                         found=found, expected=f"({expected})",
                         fix="put " + (" and ".join(lead) or "time") + " in front")


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


def _attributes(posterior: Posterior) -> dict[str, Any]:
    """What netCDF can hold: numbers, arrays and text."""
    found = {f"{k}_version": v for k, v in versions().items()}
    history = np.asarray(posterior.free_energy, np.float64)
    return {"inference_library": "jopa_ppl", "inference_library_version": found["jopa_ppl_version"],
            **found, "program": posterior.compiled.graph.program.name,
            "free_energy": float(history[-1]) if len(history) else float("nan"),
            "free_energy_history": history, "converged": int(posterior.converged),
            "num_iters": posterior.num_iters, "schedule": str(posterior.compiled.schedule)}
