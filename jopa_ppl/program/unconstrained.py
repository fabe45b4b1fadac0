"""A program whose Gamma latents are read through the log: for where no conjugate update serves."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import jax
import numpyro.distributions as dist
from jax.extend.core import ClosedJaxpr
from numpyro.distributions import biject_to

from jopa_ppl.program.parameters import ByParameters, Likelihood, Transformation
from jopa_ppl.program.program import Program


def unconstrained(program: Program, names: Iterable[str]) -> Program:
    """The program with x = exp(u) for the Gamma latents x named: its input is u, the site's density
    that of u."""
    closed, sites = program.jaxpr, dict(program.sites)
    transform = biject_to(dist.Gamma.support)
    leaves, tree = jax.tree.flatten(transform)
    for name in names:
        jaxpr = closed.jaxpr
        at = program.inputs.index(f"latent/{name}")
        x = jaxpr.invars[at]
        (u,), own = (inner := jax.make_jaxpr(transform)(x.aval).jaxpr).invars, inner.eqns
        *before, last = own
        invars = [*jaxpr.invars[:at], u, *jaxpr.invars[at + 1:]]
        jaxpr = jaxpr.replace(invars=invars, outvars=[*jaxpr.outvars, u],
                              eqns=[*before, last.replace(outvars=[x]), *jaxpr.eqns],
                              debug_info=_unnamed(jaxpr.debug_info))
        closed = ClosedJaxpr(jaxpr, closed.consts)
        site = sites[name]
        likelihood = Likelihood(
            ByParameters(dist.Gamma, ("concentration", "rate"), True),
            (site.outputs["concentration"], site.outputs["rate"]), len(jaxpr.outvars) - 1)
        kept = {k: v for k, v in site.outputs.items() if k == "weight"}
        sites[name] = replace(site, family="transformed", outputs=kept, likelihood=likelihood,
                              transform=Transformation(tree, tuple(leaves)))
    return replace(program, jaxpr=closed, sites=sites, _picked={})


def _unnamed(info: object) -> object:
    return info.with_unknown_names() if hasattr(info, "with_unknown_names") else info
