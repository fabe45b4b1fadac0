"""What is inferred: latents that some observation speaks about, computed from the data of a run.

A latent without an observed descendant is barren: its factors weigh nothing and it is predicted
afterwards. Missing frames may differ from run to run, so this is arithmetic, not compilation. Who
depends on whom is read from the program's text: a coefficient that happens to be 0 reaches as well.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax import Array

from jopa_ppl.beliefs.layout import align, split
from jopa_ppl.engine.energy import is_noise_prior
from jopa_ppl.engine.evidence import FactorArrays, Windows
from jopa_ppl.graph.factor import Factor, Graph
from jopa_ppl.program.program import Scan, Site


def _reduce(mask: Array, have: list[str], want: list[str], lead: int = 0) -> Array:
    """Boolean over plates `have` -> over plates `want`: any over the others."""
    drop = tuple(lead + i for i, p in enumerate(have) if p not in want)
    kept = [p for p in have if p in want]
    return align(mask.any(axis=drop) if drop else mask, lead, kept, want, 0)


def _local(graph: Graph, name: str) -> list[str]:
    return list(graph.variables[name].plates)


def _shape(graph: Graph, name: str) -> tuple[int, ...]:
    return tuple(p.size for p in graph.variables[name].local)


class Activity:
    """For every site, where it counts: (T,) * plates for sites of a scan, plates outside."""

    def __init__(self, graph: Graph, arrays: Mapping[str, FactorArrays],
                 present: Mapping[str, Array], keep_outer: bool = False) -> None:
        self.graph, self.arrays, self.keep_outer = graph, arrays, keep_outer
        self.present = present                  # partial sites: where they are data
        self.active: dict[str, Array] = {}      # by factor: (*batch) without elements
        self.alive: dict[str, Array] = {}       # by variable: (T,) * local plates
        self.told: dict[str, Array] = {}        # by variable outside scans: is it seen at all
        self.seeds: dict[str, Array] = {}       # by seed: where a step that reaches back needs it
        for scan in graph.program.scans:
            self._scan(scan)
        for site in reversed(list(graph.program.sites.values())):
            if site.scan is None and site.name not in graph.predicted:
                self._outer(site)

    def _seen(self, factor: Factor) -> Array:
        """Where the observed site of a factor has data, over the factor's batch."""
        seen = (self.arrays[factor.name].weight > 0).any(-1)
        return seen.any(0) if factor.copies else seen           # by a copy at least

    def _factors(self, name: str) -> list[Factor]:
        return [f for f in self.graph.factors if f.site.name == name]

    def _observed(self, site: Site, length: int) -> Array:
        """Where an observed site of a scan has data, (T, *plates)."""
        parts = [self._seen(f) for f in self._factors(site.name)]
        return jnp.concatenate(parts) if parts else jnp.zeros((length,), bool)

    def _scan(self, scan: Scan) -> None:
        graph = self.graph
        form = graph.reader.forms[scan.index]
        order = max(form.order, 1)
        names = [n for n in scan.sites if n not in graph.predicted]
        parents: dict[str, dict[str, set[int]]] = {}
        for name in names:
            for f in self._factors(name):
                for i in f.touched:
                    if i.back is not None and (i.site, i.back) != (name, 0):
                        parents.setdefault(name, {}).setdefault(i.site, set()).add(i.back)
        batch = {n: [p.name for p in graph.program.sites[n].axes] for n in names}
        observed = {n: self._observed(graph.program.sites[n], scan.length) for n in names
                    if graph.program.sites[n].observed and not graph.program.sites[n].partial}
        given = {n: self._given(n, batch[n], 1) for n in names if n in self.present}
        zero = {n: jnp.zeros((order, *(p.size for p in graph.program.sites[n].axes)), bool)
                for n in names}

        inside = {s.name: s.around(jnp.ones(s.window.length, bool))
                  for s in map(graph.program.sites.get, names) if s.window}

        def back(later: dict[str, Array], data: tuple[dict[str, Array], ...]
                 ) -> tuple[dict[str, Array], dict[str, Array]]:
            (seen, given, inside), now = data, {}
            for name in reversed(names):
                if name in seen:
                    now[name] = jnp.broadcast_to(seen[name], zero[name].shape[1:])
                    continue
                # Data given to a latent tell of its parents as those of an observed site do.
                needed = jnp.zeros(zero[name].shape[1:], bool) | given.get(name, False)
                for child, links in parents.items():
                    for j in links.get(name, ()):
                        act = now.get(child) if j == 0 else later[child][j - 1]
                        if act is not None:
                            needed = needed | _reduce(act, batch[child], batch[name])
                now[name] = needed & inside.get(name, True)
            new = {n: jnp.concatenate([now[n][None], later[n][:-1]]) for n in names}
            return new, now

        later, active = jax.lax.scan(back, zero, (observed, given, inside),
                                     length=scan.length, reverse=True)
        for seed, ref in form.seeds:
            for child, links in parents.items() if seed in graph.variables else ():
                for j in (j for j in links.get(ref.site, ()) if j >= ref.back):
                    act = _reduce(later[child][j - ref.back], batch[child], _local(graph, seed))
                    self.seeds[seed] = self.seeds.get(seed, False) | act
        for name in names:
            whole = active[name]
            if name in graph.variables:
                self.alive[name] = _reduce(whole, batch[name], _local(graph, name), 1)
            for f in self._factors(name):
                self.active[f.name] = whole[f.segment.steps]

    def _given(self, name: str, plates: list[str], lead: int) -> Array:
        """Where a site conditioned in part has data, over `plates`."""
        return align(self.present[name].any(-1), lead, _local(self.graph, name), plates, 0)

    def _outer(self, site: Site) -> None:
        graph = self.graph
        if site.name in graph.variables:
            want = _local(graph, site.name)
            # Planning keeps all beliefs but about states: they are used, whatever the evidence.
            state = graph.block_of(site.name).scan is not None
            kept = (self.keep_outer and not state) or graph.stands_alone(site.name)
            alive = jnp.full(_shape(graph, site.name), kept)
            seed = self.seeds.get(site.name, jnp.zeros_like(alive))
            alive, told = alive | seed, seed.any()
            if site.name in self.present:
                given = self._given(site.name, want, 0)
                alive, told = alive | given, told | given.any()
            for f in graph.factors:
                touches = site.ref() in f.touched or site.name in f.noise
                if not touches or f.site.name == site.name or f.name not in self.active:
                    continue
                act = self.active[f.name]
                if f.in_time:
                    act = act.any(0)
                alive = alive | _reduce(act, [p.name for p in f.plates], want)
                told = told | self.told.get(f.site.name, act.any())
            self.alive[site.name], self.told[site.name] = alive, told
        for f in self._factors(site.name):
            if site.name in graph.variables and not is_noise_prior(f):
                want = [p.name for p in f.plates]
                self.active[f.name] = jnp.broadcast_to(
                    align(self.alive[site.name], 0, _local(graph, site.name), want, 0),
                    tuple(p.size for p in f.plates))
            else:
                self.active[f.name] = self._seen(f)

    def weight(self, factor: Factor, unmasked: bool = False) -> Array:
        """A factor's weight with what is barren at zero; `unmasked`: one where it is masked."""
        weight = self.arrays[factor.name].weight
        weight = jnp.where(weight == 0, 1.0, weight) if unmasked else weight
        return jnp.where(self.active[factor.name][..., None], weight, 0.0)


def partial_values(graph: Graph, series: list[Windows], outer: Mapping[str, Array],
                   weights: Mapping[str, Array]) -> tuple[dict[str, Array], dict[str, Array]]:
    """By site conditioned only in part its data and where it is data, (T,) * plates * dims each.

    Args:
        outer: values of observed sites outside scans; weights: by site 1 where it is data, in the
            site's shape, time in front (the program's own output "present").
    """
    values, present = {}, {}
    for name, variable in graph.variables.items():
        site = variable.site
        if not site.partial:
            continue
        value = outer[name] if site.scan is None else series[site.scan].known[name]
        values[name] = split(value, site, variable.local)
        weight = jnp.broadcast_to(weights[name], value.shape)
        present[name] = split(weight, site, variable.local) > 0
    return values, present
