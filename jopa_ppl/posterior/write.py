"""Writing beliefs, weights and the state of a run: `read` and `stored` tell what of it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any, NamedTuple

from jax import Array, random
from jax.tree_util import tree_flatten_with_path

from jopa_ppl.engine.complete import complete
from jopa_ppl.errors import FileError
from jopa_ppl.language.keys import as_key, is_key, key_data
from jopa_ppl.language.query import program_of
from jopa_ppl.posterior import storage, unconstrained
from jopa_ppl.posterior.inferred import Inferred
from jopa_ppl.program.program import Plate
from jopa_ppl.settings import ours

_SITE = ("name", "family", "observed", "scan", "batch_shape", "event_shape", "plates", "partial",
         "held", "amortized", "role", "values", "described")
_BLOCK = ("name", "kind", "variables", "head", "scan", "order", "plates", "held", "layout")


class Kept(NamedTuple):
    """What a file holds in place of data: marginals by site, and where each chain is smoothed."""

    sites: dict[str, dict[str, Array]]
    smoothed: dict[str, Array]


def describe(posterior: Inferred) -> tuple[dict[str, Any], dict[str, Any]]:
    """Header and tensors of a posterior, for `storage.write`."""
    moments, header = posterior.state.moments, posterior.header
    if header is not None:              # read from a file: written as it was
        return dict(header), storage.flat({"blocks": moments, **posterior.bound._asdict()})
    header = json.loads(json.dumps(_header(posterior), default=_plate_record))
    kept = _kept(posterior)
    with ours():
        moments, _ = complete(posterior.compiled.engine, moments, posterior.bound)
    return header, storage.flat({"blocks": moments, **kept._asdict()})


def _header(posterior: Inferred) -> dict[str, Any]:
    compiled, graph = posterior.compiled, posterior.compiled.graph
    solved = {n for b in graph.blocks for n in b.factors}
    return {
        "program": graph.program.name, "model": program_of(posterior.call.rebuild(
            posterior.call.dynamic)[0]),
        "num_iters": posterior.num_iters, "converged": posterior.converged,
        "free_energy": posterior.free_energy.tolist(),
        "free_energy_noise": posterior.free_energy_noise.tolist(),
        "schedule": str(compiled.schedule),
        "sites": [_record(s, (*_SITE, *["window"] * (s.window is not None)))
                  for s in graph.program.sites.values()],
        "scans": [{**_record(s, ("index", "length", "sites")),
                   "order": form.order, "seeds": [(n, (r.site, r.back)) for n, r in form.seeds]}
                  for s in graph.program.scans for form in [graph.reader.forms[s.index]]],
        "latents": [_record(v, ("name", "family", "local")) for v in graph.variables.values()],
        "blocks": [_record(b, _BLOCK) for b in graph.blocks],
        "factors": [{"site": f.site.name, **_record(f, ("latents", "plates", "part")),
                     "context": f.segment.record}
                    for g in graph.factors for f in (g, *[g.noise_part] * bool(g.spread))
                    if f.name in solved],
        "transforms": {n: unconstrained.record(t) for n, t in posterior._maps.items()},
        "borders": graph.program.borders, "predicted": graph.predicted, "sizes": dict(graph.sizes)}


def _record(item: Any, fields: tuple[str, ...]) -> dict[str, Any]:
    return {f: getattr(item, f) for f in fields}


def _plate_record(plate: Plate) -> list:
    return [plate.name, plate.axis, plate.size]


def _kept(posterior: Inferred) -> Kept:
    compiled, bound = posterior.compiled, posterior.bound
    sites, _ = posterior._parts
    with ours():
        smoothed = {}
        for block in compiled.graph.blocks:
            if block.scan is None:
                continue
            smoothed[block.name] = bound.clamps[block.name].free > 0
    return Kept(sites, smoothed)


def save_checkpoint(path: str | os.PathLike, posterior: Inferred | None = None,
                    weights: Any = None, *, model: Callable | None = None, step: int = 0,
                    rng_key: Array | int | None = None, extra: Any = None) -> None:
    """Write beliefs, weights and the state of a run to one safetensors file, whole or not at all.

    Args:
        path: the file; an older one of that name is replaced only when the new one is complete.
        posterior: beliefs; weights: {module name: nested dict of arrays}, or any pytree.
        model: the program, where it is not the posterior's own; loading checks its name.
        step: steps done; rng_key: the key to go on with.
        extra: any pytree of arrays, such as the state of an Optax optimiser.

    Raises:
        FileError: the file cannot be written, or two leaves have one path.
    """
    header, tensors = ({}, {}) if posterior is None else describe(posterior)
    if model is not None:
        header["model"] = program_of(model)
    own: dict[str, Any] = {"step": int(step), "posterior": posterior is not None}
    for group, tree in (("weights", weights), ("extra", extra)):
        leaves = tree_flatten_with_path(tree)[0]
        named = {f"{group}/{path}": leaf for path, leaf in storage.flat(tree).items()}
        if len(named) < len(leaves):
            raise FileError(f"two leaves of {group} have one path", found=f"{len(leaves)} leaves, "
                            f"{len(named)} paths", expected="a path for every leaf",
                            fix="use names without '/'")
        # A path as keys, so that 0 and "0" come back as they were.
        own[group] = {name: [_key(k) for k in at] for name, (at, _) in zip(named, leaves)}
        tensors |= {name: key_data(leaf) for name, leaf in named.items()}
    if rng_key is not None:
        rng_key = as_key(rng_key)
        own["rng_key"] = str(random.key_impl(rng_key)) if is_key(rng_key) else None
        tensors["rng_key"] = key_data(rng_key)
    storage.write(path, {**header, "checkpoint": own}, tensors)


def _key(entry: Any) -> str | int:
    for field in ("key", "idx", "name"):
        if hasattr(entry, field):
            key = getattr(entry, field)
            return key if isinstance(key, int) else str(key)
    return str(entry)
