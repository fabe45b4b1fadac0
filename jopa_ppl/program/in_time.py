"""What belongs to the steps of a scan, told of all of them: time is a plate of the proof."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
from jax import Array

from jopa_ppl.program.program import Plate, Program, Scan, Site
from jopa_ppl.proof.analyse import analyse
from jopa_ppl.proof.dependence import Dependence, constant, variable

TIME = "!time"       # the plate that stands for time in the proof


def along(program: Program, outputs: Sequence[int], series: Callable[[str], str]
          ) -> list[Dependence | None]:
    """How outputs depend on what has a value for every step; None of one that mixes steps.

    Args:
        outputs: of the program's jaxpr.
        series: the name of an input that has, by its key; "" of what is a constant to the
            proof.
    """
    states = [variable(name, program.shapes[k], {0: TIME}) if (name := series(k))
              else constant(program.shapes[k]) for k in program.inputs]
    found = analyse(program.pruned(tuple(outputs))[0], states)
    apart = lambda d: not d.lost and [i for i, a in enumerate(d.axes) if a.plate == TIME
                                      ] == [0] * bool(d.names)
    return [d if apart(d) else None for d in found]


def varies(dependence: Dependence) -> bool:
    """Whether data make it differ from step to step as well."""
    return bool(dependence.axes) and dependence.axes[0].varies


def counting(scan: Scan) -> str:
    """The key of the input that counts the steps of a scan."""
    return f"xs/{scan.index}/#step"


def every_step(value: Array, length: int) -> Array:
    """A value of one step as that of all of them, time in front."""
    return jnp.broadcast_to(value, (length, *jnp.shape(value)))


def one_step(site: Site, parameter: Array, at: Array | int) -> Array:
    """A parameter at one step; weights and matrices may have fewer axes than the site, or one.

    Args:
        site: with an axis of time in front.
        parameter: of all steps, (T or 1, ..), or alike at all of them.
        at: the step, counted from 0.
    """
    rank = len(site.shape)
    if jnp.ndim(parameter) < rank or parameter.shape[0] not in (1, site.shape[0]):
        return parameter
    at = at if parameter.shape[0] > 1 else 0
    return jax.lax.dynamic_index_in_dim(parameter, at, 0, keepdims=False)


def value_key(site: Site) -> str:
    """The key of the input that holds the value of a site."""
    return f"{'known' if site.observed and not site.partial else 'latent'}/{site.name}"


def at_step(program: Program, scan: Scan, made: Mapping[str, bool], steps: Mapping[str, Array],
            at: Array) -> dict[str, Array]:
    """Inputs of a scan at one step, by key.

    Args:
        program: that of the scan.
        made: keys of inputs, each with whether it differs from step to step once `steps` are given.
        steps: what they are made of, inputs of the program by key, of all steps.
        at: the step, counted from 0.
    """
    found = program.evaluate([scan.xs[k] for k in made], steps)
    return {k: jax.lax.dynamic_index_in_dim(x, at if moves else 0, 0, False)
            for (k, moves), x in zip(made.items(), found)}


def into_steps(site: Site, scan: int, outputs: dict[str, int]) -> Site:
    """A site with an axis of time as one of the steps of a scan."""
    batch = site.batch_shape
    plates = tuple(Plate(p.name, p.axis - 1, p.size) for p in site.plates if p.axis > 0)
    return replace(site, scan=scan, outside="steps" if batch else "event", outputs=outputs,
                   batch_shape=batch[1:], event_shape=site.event_shape if batch
                   else site.event_shape[1:], plates=plates, likelihood=None)
