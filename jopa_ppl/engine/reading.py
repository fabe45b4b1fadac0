"""What a program's own functions give at the data of a run: series, and a factor's outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jopa_ppl.engine.evidence import Slot, Windows
from jopa_ppl.graph.factor import Factor, Graph
from jopa_ppl.program.carry import Reader
from jopa_ppl.program.refs import Ref


def read_series(graph: Graph, data: dict[str, Array]) -> tuple[dict[str, Array], list[Windows]]:
    """Values of the observed sites outside scans, and all series of every scan."""
    program, reader = graph.program, graph.reader
    outer: dict[str, Array] = {}
    for site in program.sites.values():
        if site.scan is None and "value" in site.outputs:
            known = {f"known/{k}": v for k, v in outer.items() if not program.sites[k].amortized}
            (outer[site.name],) = program.evaluate([site.outputs["value"]], {**data, **known})
    series = []
    for scan in program.scans:
        steps = reader.step_inputs(scan, data, outer)
        names = [n for n in scan.sites if "value" in program.sites[n].outputs]
        outputs = [program.sites[n].outputs["value"] for n in names]
        values = each_step(program.evaluate, outputs, data, steps, scan.length) if names else []
        series.append(Windows(steps, dict(zip(names, values))))
    return outer, series


def each_step(evaluate: Callable, outputs: Sequence[int], data: dict[str, Array],
              steps: dict[str, Array], length: int) -> list[Array]:
    """Outputs that depend on data alone, for all steps at once: (T, ..) each.

    Args:
        evaluate: `Program.evaluate`; outputs: those wanted.
        data: inputs by key; steps: those that have a value a step, (T, ..).
        length: T.
    """
    return jax.vmap(lambda s: evaluate(outputs, {**data, **s}), axis_size=length)(steps)


class Source(NamedTuple):
    """What the numbers of factors come from: the program's data, read once (`read_series`), and the
    slots of every factor, {factor: [(block, instances), ..]}, the main slot last."""

    graph: Graph
    slots: Mapping[str, Sequence[Slot]]
    data: dict[str, Array]
    outer: dict[str, Array]
    series: list[Windows]

    def batch(self, f: Factor) -> tuple[int, ...]:
        """Sizes of its batch axes: time first, then its plates."""
        return (*[f.segment.length] * f.in_time, *(p.size for p in f.plates))

    def evaluator(self, f: Factor) -> Evaluator:
        """Its site's outputs, from latent values; with no more of the data than they need, as a
        run hands the numbers of every factor on."""
        program, scan = self.graph.program, f.segment.scan
        wanted, steps = program.needs(f.site.everything), Windows({}, {})
        if scan is not None:
            here = program.scans[scan]
            wanted, steps = wanted | program.needs((*here.carry, *here.init)), self.series[scan]
        # Partial sites are latents: their data enter through the belief, not through known values.
        known = {n: v for n, v in steps.known.items()
                 if f"known/{n}" in wanted and not program.sites[n].partial}
        outer = {n: v for n, v in self.outer.items() if f"known/{n}" in wanted}
        data, series = ({k: v for k, v in x.items() if k in wanted}
                        for x in (self.data, steps.steps))
        return Evaluator(self.graph.reader, f, (data, outer, series, known))

    def env(self, f: Factor) -> Any:
        return self.evaluator(f).env


class Evaluator(NamedTuple):
    """A factor's outputs at the data of a run."""

    reader: Reader
    factor: Factor
    env: Any                     # (data, outer known, step series, known series)

    def __call__(self, outputs: Sequence[int], values: dict[Ref, Array], step: Array | int
                 ) -> list[Array]:
        """Outputs in the factor's segment; `step` counts from the first step of the segment."""
        return evaluate_in(self.reader, self.factor, self.env, outputs, values, step)


def evaluate_in(reader: Reader, factor: Factor, env: Any, outputs: Sequence[int],
                values: dict[Ref, Array], step: Array | int) -> list[Array]:
    """Outputs of a factor's site, from latent values, at a step of its segment.

    Args:
        env: (data by input key, values of observed sites outside, series of inputs by scan's key,
            series of observed sites): the last two (T, ..), None outside of scans.
        outputs: of the program's jaxpr. values: by what a step sees, in the site's shape; what is
            discrete and fixed by the factor is put in its place.
        step: counted from the segment's first.

    Returns:
        The outputs, each in its own shape.
    """
    data, outer, steps, known = env
    segment, sites = factor.segment, reader.program.sites
    values = values | {r: jnp.full(sites[r.site].shape, jnp.asarray(sites[r.site].values)[i])
                       for r, i in factor.fixed}
    values = {Ref(n): v for n, v in outer.items()} | values
    windows = []
    if segment.scan is not None:
        first = factor.site.nearest(step + segment.start)
        for back in range(segment.depth, -1, -1):
            # Before step 0 only latents reach back (the seeds of the carry), so data never count.
            at = jnp.maximum(first - back, 0).astype(jnp.uint32)
            windows.append({k: _row(v, at) for k, v in steps.items()}
                           | {r.site: v for r, v in values.items()
                              if r.is_input and r.back == back})
            values |= {Ref(n, back): _row(v, at) for n, v in known.items()
                       if Ref(n, back) not in values}
    return reader.values(outputs, segment, values, data, windows)


def by_step(f: Factor, varying: bool, parameter: Callable[[Array | int], Any]) -> Any:
    """A parameter of a factor (a pytree), for every step of its segment where it has an axis of
    time and the parameter is `varying` along it; else (1, ..), and without that axis as it is."""
    if not f.in_time:
        return parameter(0)
    if not varying:
        return jax.tree.map(lambda x: x[None], parameter(0))
    return jax.vmap(parameter)(jnp.arange(f.segment.length))


def _row(x: Array, at: Array) -> Array:
    """x[at] for an unsigned index in range: indexing checks both, at length."""
    return jax.lax.dynamic_index_in_dim(x, at, keepdims=False)
