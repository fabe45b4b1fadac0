"""A program whose Gamma, Beta or Dirichlet latents are read in unconstrained space: for where
no conjugate update serves."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import jax
import numpyro.distributions as dist
from jax import Array
from jax.extend.core import ClosedJaxpr
from numpyro.distributions import biject_to, constraints

from jopa_ppl.program.likelihood import ByParameters, Likelihood, Transformation
from jopa_ppl.program.program import Program


class BothConcentrations(dist.Beta):
    """A Beta made of both of its concentrations, (*batch, 2)."""

    arg_constraints: dict = {  # noqa: RUF012
        "concentration": constraints.independent(constraints.positive, 1)}

    def __init__(self, concentration: Array, validate_args: bool | None = None) -> None:
        super().__init__(concentration[..., 0], concentration[..., 1], validate_args=False)


MADE_BY = {"gamma": dist.Gamma, "beta": BothConcentrations, "dirichlet": dist.Dirichlet}


def unconstrained(program: Program, names: Iterable[str]) -> Program:
    """The program with x = T(u) for the latents x named, T NumPyro's map to their support: its
    input is u, the site's density that of u."""
    closed, sites, shapes = program.jaxpr, dict(program.sites), dict(program.shapes)
    for name in names:
        site, jaxpr = sites[name], closed.jaxpr
        parameters = {k: v for k, v in site.outputs.items() if k != "weight"}
        make = MADE_BY[site.family]
        transform = biject_to(make.support)
        shapes[f"latent/{name}"] = shape = transform.inverse_shape(site.shape)
        at = program.inputs.index(f"latent/{name}")
        x = jaxpr.invars[at]
        inner = jax.make_jaxpr(transform)(jax.ShapeDtypeStruct(shape, x.aval.dtype))
        (u,), (out,) = inner.jaxpr.invars, inner.jaxpr.outvars
        own = [e.replace(outvars=[x if v is out else v for v in e.outvars])
               for e in inner.jaxpr.eqns]
        jaxpr = jaxpr.replace(
            constvars=[*jaxpr.constvars, *inner.jaxpr.constvars],
            invars=[*jaxpr.invars[:at], u, *jaxpr.invars[at + 1:]], outvars=[*jaxpr.outvars, u],
            eqns=[*own, *jaxpr.eqns], debug_info=_unnamed(jaxpr.debug_info))
        closed = ClosedJaxpr(jaxpr, [*closed.consts, *inner.consts])
        likelihood = Likelihood(
            ByParameters(make, tuple(parameters), True),
            tuple(parameters.values()), len(jaxpr.outvars) - 1)
        leaves, tree = jax.tree.flatten(transform)
        sites[name] = replace(
            site, family="transformed", likelihood=likelihood, shown=site.event_shape,
            event_shape=shape[len(site.batch_shape):],
            outputs={k: v for k, v in site.outputs.items() if k == "weight"},
            transform=Transformation(tree, tuple(leaves)))
    return replace(program, jaxpr=closed, sites=sites, shapes=shapes, _picked={})


def _unnamed(info: object) -> object:
    return info.with_unknown_names() if hasattr(info, "with_unknown_names") else info
