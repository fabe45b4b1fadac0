"""Observed sites whose value is made of latents: Normal(loc, scale) at z is Normal(loc - z, scale)
at zero.
"""

from __future__ import annotations

from dataclasses import replace

import jax.numpy as jnp
from jax import Array

from jopa_ppl.program.program import Program, Site
from jopa_ppl.program.rewriting import Put, extended
from jopa_ppl.proof.analyse import analyse
from jopa_ppl.proof.dependence import constant, variable

_LATENT = ("latent/", "ys/", "after/", "carry/")


def with_latent_data(program: Program) -> Program:
    """The program with Gaussian sites that observe data alone, where nothing reads their value."""
    chosen = [s for s in program.sites.values() if _observes_latents(program, s)]
    if not chosen:
        return program

    def fn(given: dict[str, Array], outputs: list[Array], put: Put) -> None:
        still = {k: jnp.zeros_like(x) if k.startswith(_LATENT) else x
                 for k, x in given.items()}
        for site in chosen:
            value = outputs[site.outputs["value"]]
            put(f"{site.name} loc", outputs[site.outputs["loc"]] - value)
            put(f"{site.name} value", jnp.zeros(value.shape))
            if "weight" in site.outputs:            # what is missing is a matter of data
                (weight,) = program.evaluate([site.outputs["weight"]], still)
                put(f"{site.name} weight", weight)

    program, places = extended(program, {}, fn)
    sites = {s.name: replace(s, likelihood=None, outputs={
        k: places.get(f"{s.name} {k}", i) for k, i in s.outputs.items()}) for s in chosen}
    return replace(program, sites={n: sites.get(n, s) for n, s in program.sites.items()})


def _observes_latents(program: Program, site: Site) -> bool:
    gaussian = site.rules.location and site.rules.noise
    if not (site.observed and gaussian) or site.partial or site.amortized:
        return False
    value = [site.outputs["value"]]
    if not any(k.startswith("latent/") for k in program.needs(value)):
        return False
    states = [variable(k, program.shapes[k]) if k.startswith(_LATENT)
              else constant(program.shapes[k]) for k in program.inputs]
    (found,) = analyse(program.pruned(value)[0], states)
    if found.not_affine:            # what is missing would depend on latents
        return False
    everything = range(len(program.jaxpr.jaxpr.outvars))
    return f"known/{site.name}" not in program.needs(everything)
