"""What a run saw, and what its program says about it: data, replicates, log-likelihoods."""

from __future__ import annotations

import inspect
import math

import jax
import numpy as np
from jax import Array, random

from jopa_ppl.compilation import once
from jopa_ppl.engine.compiled import Compiled
from jopa_ppl.engine.reading import each_step, read_series
from jopa_ppl.engine.signature import Call
from jopa_ppl.graph.factor import Graph
from jopa_ppl.language import replay as predictive
from jopa_ppl.language.query import unwrapped
from jopa_ppl.language.tracing import tracing
from jopa_ppl.program.program import Program, Site
from jopa_ppl.settings import ours


def observed(compiled: Compiled, call: Call) -> dict[str, np.ndarray]:
    """The data of every observed site, NaN where it is missing or weighs nothing."""
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
        ends = {s.name for s in sites if s.outside == "last"}   # read at every step as well
        own = {s.name: s for s in sites}
        values, weights = (
            {n: x if n not in own else own[n].in_window(x)[-1] if n in ends
             else own[n].in_window(x) for n, x in found.items()} for found in (values, weights))
        return {s.name: values[s.name] for s in sites if not s.amortized}, weights

    with ours():
        values, weights = jax.jit(read, compiler_options=once())(compiled.data(call.dynamic))
    if any(s.amortized for s in sites):
        # VMP sees their encoder's message: the data themselves are what the program scores. Only
        # they are asked for, so that no network is compiled or run.
        def scored(dynamic: list[Array]) -> dict[str, Array]:
            model, args, kwargs = call.rebuild(dynamic)
            ran = predictive.replay(model, args, kwargs, {}, random.key(0), 1, keep_data=True)
            return {s.name: ran[s.name][0] for s in sites if s.amortized}

        call.program()
        with tracing(), ours(double=False):
            values |= jax.jit(scored, compiler_options=once())(call.dynamic)
    return {s.name: _with_gaps(program, s, values[s.name], weights.get(s.name)) for s in sites}


def _with_gaps(program: Program, site: Site, value: Array, weight: Array | None) -> np.ndarray:
    array = np.array(value, np.result_type(np.float32, value.dtype))
    if weight is None:
        return array
    lead = int(site.is_series)
    shape, rank = np.shape(weight)[lead:], array.ndim - lead
    if site.amortized:           # weighs whole frames; its last axes are the message's
        shape = shape[:len(site.batch_shape)]
        shape += (1,) * (rank - len(shape))
    own = (1,) * (rank - len(shape)) + shape
    missing = np.asarray(weight).reshape((*np.shape(weight)[:lead], *own)) == 0
    array[np.broadcast_to(missing, array.shape)] = np.nan
    return array


def constants(call: Call, data: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays a model was called with that are no site's data, by the argument's name."""
    model, args, kwargs = call.rebuild(call.dynamic)
    try:
        named = inspect.signature(unwrapped(model)).bind_partial(*args, **kwargs).arguments
    except (TypeError, ValueError):       # a callable that Python cannot look into
        return {}
    found = {n: np.asarray(x) for n, x in named.items() if isinstance(x, jax.Array | np.ndarray)}
    return {n: x for n, x in found.items() if x.dtype.kind in "fiub"
            and not any(np.array_equal(x, y, equal_nan=y.dtype.kind == "f")
                        for y in data.values() if y.dtype.kind == x.dtype.kind)}


def scored_sites(graph: Graph) -> list[Site]:
    """The sites whose data tell of a latent."""
    return list({f.site.name: f.site for f in graph.factors
                 if f.site.observed and not f.site.partial and (f.touched or f.noise)}.values())


def draws_size(graph: Graph, data: dict[str, np.ndarray], num_samples: int) -> int:
    """Bytes of the largest site that `replicates` would draw."""
    shapes = [data[s.name].shape for s in scored_sites(graph)]
    return max([4 * num_samples * math.prod(s) for s in shapes], default=0)


def replicates(graph: Graph, call: Call, draws: dict[str, Array], data: dict[str, np.ndarray],
               key: Array) -> dict[str, dict[str, np.ndarray]]:
    """Groups made by running the program on draws, {group: {site: (draw, ..)}}.

    `posterior_predictive`: every site with data, at all its steps; `predictions`: the steps after
    the last one that has data, and sites without any; `log_likelihood`: log p(data | draw), NaN
    where the datum is missing.

    Args:
        graph, call: of the run.
        draws: of its latents, {site: (draw, *site shape)}.
        data: from `observed`, NaN where missing.
        key: of what is drawn.

    Raises:
        StaleError: the program has changed since the run.
    """
    model, args, kwargs = call.program()
    program, count = graph.program, len(next(iter(draws.values())))
    seen = scored_sites(graph)
    ran = predictive.replay(model, args, kwargs, draws, key, count)
    scores = predictive.replay(model, args, kwargs, draws, key, count, keep_data=True, score=True)
    found: dict[str, dict[str, np.ndarray]] = {
        "posterior_predictive": {s.name: np.asarray(ran[s.name]) for s in seen},
        "predictions": {n: np.asarray(ran[n]) for n in graph.predicted
                        if n in ran},
        "log_likelihood": {}}
    last = {s.scan: 0 for s in seen}
    for s in seen:
        if not s.is_series:
            continue
        steps = np.flatnonzero(~np.isnan(data[s.name].reshape(len(data[s.name]), -1)).all(1))
        last[s.scan] = max([last[s.scan], *(s.first + steps + 1)])
    for s in seen:
        if s.is_series and (to_come := last[s.scan] - s.first) < program.length_of(s):
            found["predictions"][s.name] = np.asarray(ran[s.name])[:, max(to_come, 0):]
        score = np.array(scores[s.name])
        event = tuple(range(score.ndim - 1, data[s.name].ndim))
        score[:, np.isnan(data[s.name]).all(event)] = np.nan
        found["log_likelihood"][s.name] = score
    return {g: sites for g, sites in found.items() if sites}
