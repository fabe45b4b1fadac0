"""Posteriors for ArviZ: draws, data and how they came about."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import arviz
import numpy as np
import xarray
from jax import Array, random
from jax.typing import ArrayLike

from jopa_ppl.errors import JopaError, ShapeError, names
from jopa_ppl.posterior.inferred import Inferred
from jopa_ppl.posterior.labels import program_and_reader, renamed, site_axes, step_coords
from jopa_ppl.posterior.run_data import constants, draws_size, observed, replicates, scored_sites
from jopa_ppl.posterior.storage import versions
from jopa_ppl.program.program import Program, Site

RUN = ("posterior_predictive", "predictions", "log_likelihood")     # made by running the program
GROUPS = ("posterior", *RUN, "observed_data", "constant_data")
LARGE = 2**28        # bytes of one site's draws, above which RUN must be asked for


def to_arviz(posterior: Inferred, num_samples: int, rng_key: Array,
             dims: Mapping[str, Sequence[str]] | None = None,
             groups: Sequence[str] | None = None) -> Any:
    """The posterior as ArviZ's DataTree (1.x) or InferenceData (0.x).

    Groups, each where there is something to put in it:
        posterior: joint draws as one chain, (1, num_samples, *site shape); its attributes hold
            versions, program, free energy, convergence and schedule.
        posterior_predictive: replicates of every site whose data tell of a latent, at all steps.
        predictions: the same after the last step with data; sites without any data.
        log_likelihood: log p(data | draw) in nats, (1, num_samples, *batch shape); where data are
            missing it has no entry (several axes then become one, "<site>_observed").
        observed_data: data that tell of a latent; NaN where missing.
        constant_data: other data (the actions that were taken; NaN where they were not given) and
            arrays the model was called with that are no site's data.
    A stored posterior knows neither its program nor its data and gives `posterior` alone.

    Args:
        dims: names of all axes of a site, {site: (name, ..)}. Default: see `draws_to_arviz`.
        groups: which groups; default: all. Those made by running the program (predictive ones and
            log-likelihoods) are then left out, with a warning, where they would be large.

    Raises:
        ShapeError: `dims` does not name every axis of a site; SiteError: it names no site;
        JopaError: an unknown group.
    """
    wanted = set(GROUPS if groups is None else groups)
    if wanted - set(GROUPS):
        raise JopaError("an unknown group", found=names(sorted(wanted - set(GROUPS))),
                        expected=f"some of {names(GROUPS)}", fix="check the spelling")
    key, run_key = random.split(rng_key)
    sampled = posterior.sample(key, (num_samples,))
    made: dict[str, Mapping[str, Any]] = {}
    if posterior.call is not None:
        graph, call = posterior.compiled.graph, posterior.call
        data = observed(posterior.compiled, call)
        told = {s.name for s in scored_sites(graph)}
        made = {"observed_data": {n: x for n, x in data.items() if n in told},
                "constant_data": {n: x for n, x in data.items() if n not in told}
                | constants(call, data)}
        size = draws_size(graph, data, num_samples)
        if groups is None and size > LARGE:
            warnings.warn(f"left out of ArviZ's groups: {names(RUN)}, since {num_samples} draws of "
                          f"the largest site take {size / 2**20:.0f} MiB; ask for fewer draws, or "
                          "name the groups you want: to_arviz(groups=[..])", stacklevel=3)
        elif wanted & set(RUN):
            ran = replicates(graph, call, sampled, data, run_key)
            made |= {g: {n: x[None] for n, x in sites.items()} for g, sites in ran.items()}
    return draws_to_arviz(posterior, {n: x[None] for n, x in sampled.items()},
                          groups={g: x for g, x in made.items() if x and g in wanted}, dims=dims,
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
            name ends in "_data". `log_likelihood` has the site's batch shape, NaN where missing;
            `predictions` may have the last steps alone.
        dims: names of all axes of a site, {site: (name, ..)}. Default: "time" for the steps of a
            scan, the plate's name for a plate, "state" and "action" for vectors that are carried
            and that act on them (`jopa_ppl.posterior.labels.roles`), "<site>_dim_<i>" otherwise.
        coords: {axis: labels}; default 0, 1, ...
        attrs: attributes of the group `posterior`.

    In names "/" becomes ".", as it separates groups in netCDF; a name that is an axis's ("chain"),
    or would be another site's, has "_" behind it.

    Raises:
        ShapeError: draws do not have the shape (chain, draw, *site shape), or `dims` does not name
            every axis of a site; SiteError: it names no site.
    """
    program, _ = program_and_reader(source)
    every = {"posterior": draws, **(groups or {})}
    ranks = {n: np.ndim(x) - len(_lead(g)) for g, xs in every.items() for n, x in xs.items()
             if g != "log_likelihood"}
    axes = renamed(site_axes(source, ranks), dims)
    labels = {**step_coords(program, axes), **(coords or {})}
    shown = _shown(ranks | dict.fromkeys(n for xs in every.values() for n in xs), axes)
    return as_arviz({g: xarray.Dataset(
        {shown[n]: _labelled(program, axes, labels, n, x, g) for n, x in arrays.items()},
        attrs=attrs if g == "posterior" else None) for g, arrays in every.items()})


def as_arviz(groups: Mapping[str, xarray.Dataset]) -> Any:
    """Datasets by group as what the installed ArviZ works on."""
    if int(arviz.__version__.split(".")[0]) >= 1:
        return xarray.DataTree.from_dict(dict(groups))
    return arviz.InferenceData(**groups)


def _lead(group: str) -> tuple[str, ...]:
    return () if group.endswith("_data") else ("chain", "draw")


def _labelled(program: Program, axes: Mapping[str, Sequence[str]], labels: Mapping[str, ArrayLike],
              name: str, array: ArrayLike, group: str) -> xarray.DataArray:
    array, lead = np.asarray(array), _lead(group)
    shape = array.shape[len(lead):]
    own = list(axes.get(name, [f"{name}_dim_{i}" for i in range(len(shape))]))[:len(shape)]
    if name in axes:
        _check_shape(program, program.sites[name], shape, group)
    full = [_plain(a) for a in (*lead, *own)]
    known = {_plain(a): np.asarray(v) for a, v in labels.items()}
    found = xarray.DataArray(array, dims=full, coords={     # predictions are the last steps
        a: known[a][-n:] if a in known else np.arange(n) for a, n in zip(full, array.shape)})
    return _present(found, _plain(name)) if group == "log_likelihood" else found


def _check_shape(program: Program, site: Site, found: tuple[int, ...], group: str) -> None:
    scored = group == "log_likelihood"
    timed = site.is_series and not (scored and site.outside == "event")
    time = (program.length_of(site),) if timed else ()
    if group == "predictions" and time and found and found[0] < time[0]:
        time = found[:1]
    event = () if site.amortized or scored else site.shown_event
    shape = (*time, *site.batch_shape, *event)
    if (found[:len(shape)] if site.amortized else found) != shape:
        expected = ", ".join([*_lead(group), *map(str, shape)]) + (", .." if site.amortized else "")
        raise ShapeError(f"an array of the group {group} does not have the shape of its site",
                         site=site.name, found=f"(.., {', '.join(map(str, found))})",
                         expected=f"({expected})",
                         fix="put " + (" and ".join(_lead(group)) or "time") + " in front")


def _present(scores: xarray.DataArray, name: str) -> xarray.DataArray:
    """Log-likelihoods of what was seen: PSIS has no use for missing data."""
    seen = ~scores.isnull().any(("chain", "draw"))
    if bool(seen.all()):
        return scores
    if seen.ndim == 1:
        return scores.isel({seen.dims[0]: np.flatnonzero(seen)})
    one = f"{name}_observed"
    flat = scores.stack({one: seen.dims}, create_index=False)
    return flat.isel({one: np.flatnonzero(seen.to_numpy().ravel())})


def _plain(name: str) -> str:
    return name.replace("/", ".").replace("\0", "")


def _shown(sites: Iterable[str], axes: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Names that an array may have beside all axes, no two the same."""
    found: dict[str, str] = {}
    taken = {"chain", "draw", *(_plain(a) for own in axes.values() for a in own)}
    for name in sorted(sites, key=lambda n: (_plain(n) != n, n)):       # those first that stay
        shown = _plain(name) or "_"
        while shown in taken:
            shown += "_"
        taken.add(shown)
        found[name] = shown
    return found


def _attributes(posterior: Inferred) -> dict[str, Any]:
    """What netCDF can hold: numbers, arrays and text."""
    found = {f"{k}_version": v for k, v in versions().items()}
    history = np.asarray(posterior.free_energy, np.float64)
    return {"inference_library": "jopa_ppl", "inference_library_version": found["jopa_ppl_version"],
            **found, "program": posterior.compiled.graph.program.name,
            "free_energy": float(history[-1]) if len(history) else float("nan"),
            "free_energy_history": history, "converged": int(posterior.converged),
            "num_iters": posterior.num_iters, "schedule": str(posterior.compiled.schedule)}
