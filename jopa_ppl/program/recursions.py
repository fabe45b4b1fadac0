"""Carries that are more than the last few values of sites: deterministic recursions.

A leaf of a carry that never forgets its first value (a level that adds up shocks, a companion form,
a position that integrates a velocity), or that keeps many past values, becomes a latent of its step
that follows from the step with certainty, of the family "recursion":

    d_t = f(d_{t-1}, the sites drawn in step t),    f affine.

To all else it is a site like another, that the next step looks back to; the belief about its chain
solves for what is drawn and lets it follow (`jopa_ppl.beliefs.recursion`).
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
from jax import Array

from jopa_ppl.program.carry import Reader
from jopa_ppl.program.naming import free_name
from jopa_ppl.program.program import Plate, Program, Scan, Site
from jopa_ppl.program.rewriting import Put, extended, reading


def with_recursions(program: Program, short: Container[int] = ()) -> Program:
    """The program with a latent for every leaf of a carry that is not the value of a site, or that
    belongs to a scan of `short`, whose steps then look no further back than one."""
    reader = Reader(program)
    leaves: dict[str, Site] = {}
    for scan in program.scans:
        data = reader.data_leaves(scan)
        if (order := reader.order(scan, data)) is None or (order > 1 and scan.index in short):
            for i, plates in enumerate(reader.axes_of_leaves(scan, data)):
                key = f"carry/{scan.index}/{i}"
                if i not in data and program.is_real(key):
                    taken = {*program.sites, *(s.name for s in leaves.values())}
                    leaves[key] = _site(program, scan, i, plates, taken)
    return _with_sites(program, leaves) if leaves else program


def _site(program: Program, scan: Scan, leaf: int, plates: dict[int, str], taken: set[str]
          ) -> Site:
    shape = program.shapes[f"carry/{scan.index}/{leaf}"]
    name = ".".join(filter(None, (f"carry{scan.index or ''}", scan.leaves[leaf])))
    return Site(free_name(taken, name), "recursion", "latent", scan.index, shape, (),
                tuple(Plate(p, axis, shape[axis]) for axis, p in sorted(plates.items())),
                {"loc": scan.carry[leaf]}, role="carry", described="a recursion")


def _with_sites(program: Program, leaves: dict[str, Site]) -> Program:
    def values(given: dict[str, Array], _: list[Array], put: Put) -> None:
        for key, site in leaves.items():
            put(key, given[f"latent/{site.name}"])
            put(f"{key} scale", jnp.ones(site.shape))

    program, places = extended(program, {f"latent/{s.name}": _real(s.shape)
                                         for s in leaves.values()}, values)
    sites = {s.name: replace(s, outputs={**s.outputs, "scale": places[f"{k} scale"]})
             for k, s in leaves.items()}
    scans = tuple(replace(
        scan, sites=(*scan.sites, *(s.name for s in leaves.values() if s.scan == scan.index)),
        carry=tuple(places.get(f"carry/{scan.index}/{i}", output)
                    for i, output in enumerate(scan.carry))) for scan in program.scans)
    return replace(program, sites={**program.sites, **sites}, scans=scans)


def with_borders(program: Program, joined: Mapping[int, tuple[str, ...]],
                 dense: frozenset[tuple[str, str]]) -> Program:
    """The program with some of its latents, {scan: names}, as leaves of a carry that never change,
    which the steps read them from. `dense`: (latent, plate) where the plate is none to it."""
    chosen = {n for names in joined.values() for n in names}
    program = replace(program, sites={
        n: replace(s, plates=tuple(p for p in s.plates if (n, p.name) not in dense))
        if n in chosen else s for n, s in program.sites.items()})
    for index, names in joined.items():
        program = _carried(program, program.scans[index], names)
    return replace(with_recursions(program),
                   borders=tuple(n for names in joined.values() for n in names))


def _carried(program: Program, scan: Scan, names: tuple[str, ...]) -> Program:
    keys = {n: f"carry/{scan.index}/{len(scan.carry) + i}" for i, n in enumerate(names)}
    values = {f"latent/{n}": lambda given, k=k: given[k] for n, k in keys.items()}
    program, _ = reading(program, scan, values, {k: _real(program.sites[n].shape)
                                                 for n, k in keys.items()})

    def ends(given: dict[str, Array], _: list[Array], put: Put) -> None:
        for name, key in keys.items():
            put(f"{name} first", given[f"latent/{name}"])
            put(f"{name} next", given[key])

    program, places = extended(program, {}, ends)
    scan = program.scans[scan.index]
    scan = replace(scan, carry=(*scan.carry, *(places[f"{n} next"] for n in names)),
                   init=(*scan.init, *(places[f"{n} first"] for n in names)),
                   leaves=(*scan.leaves, *names))
    return replace(program, scans=tuple(scan if s.index == scan.index else s
                                        for s in program.scans))


def with_noise_apart(program: Program, chosen: Sequence[str]) -> Program:
    """The program with the noise of some of its Gaussian latents as latents of their own,

        x = loc + S e,  e ~ N(0, 1),  S S' the covariance,

    so that x follows with certainty: its covariance may be of any rank, its scale may be zero.
    """
    if not chosen:
        return program
    # Groups of several steps have no rules by which one of these could follow.
    program = with_recursions(program, {program.sites[n].scan for n in chosen})
    noises = {n: free_name(program.sites, f"{n}.noise") for n in chosen}

    def drawn_apart(given: dict[str, Array], outputs: list[Array], put: Put) -> None:
        for name, noise in noises.items():
            site, e = program.sites[name], given[f"latent/{noise}"]
            found = {k: outputs[i] for k, i in site.outputs.items()}
            loc = jnp.broadcast_to(found["loc"], site.shape)
            drawn = (found["scale"] * e if "scale" in found
                     else jnp.einsum("...ij,...j->...i", _root(found), e))
            put(f"{name} value", loc + drawn)
            put(f"{name} one", jnp.ones(site.shape))
            put(f"{name} zero", jnp.zeros(site.shape))

    shapes = {f"latent/{noises[n]}": _real(program.sites[n].shape) for n in chosen}
    program, places = extended(program, shapes, drawn_apart)
    sites: dict[str, Site] = {}
    for name, site in program.sites.items():
        if name in noises:
            one = places[f"{name} one"]
            about = {"batch_shape": site.shape, "event_shape": (), "likelihood": None}
            sites[noises[name]] = replace(
                site, name=noises[name], family="normal", role="carry", noise_of=name,
                described="Normal",
                outputs={"loc": places[f"{name} zero"], "scale": one}, **about)
            site = replace(site, family="recursion", outputs={"loc": places[f"{name} value"],
                                                               "scale": one},
                           **about)
        sites[name] = site
    scans = tuple(replace(scan, sites=tuple(
        n for x in scan.sites for n in ((noises[x], x) if x in noises else (x,))))
        for scan in program.scans)
    return replace(program, sites=sites, scans=scans)


def _root(found: dict[str, Array]) -> Array:
    """S of S S' = the covariance, which may be singular; NaN where it is no covariance."""
    if "scale_tril" in found:
        return found["scale_tril"]
    values, vectors = jnp.linalg.eigh(found["covariance_matrix"])
    fine = values >= -1e-9 * jnp.abs(values).max(-1, keepdims=True)
    return vectors * jnp.where(fine, jnp.sqrt(jnp.maximum(values, 0.0)), jnp.nan)[..., None, :]


def _real(shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.result_type(float))
