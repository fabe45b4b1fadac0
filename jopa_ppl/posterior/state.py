"""What a scan carries before one of its steps, as the belief about where a program begins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array

from jopa_ppl.beliefs import ChainBelief
from jopa_ppl.compilation import often
from jopa_ppl.engine.compiled import Compiled
from jopa_ppl.engine.complete import complete
from jopa_ppl.engine.conditional import own_conditional
from jopa_ppl.engine.coordinates import Coordinates
from jopa_ppl.engine.engine import Engine
from jopa_ppl.engine.evidence import Evidence
from jopa_ppl.engine.forward import roll, smoothed
from jopa_ppl.engine.marginals import at_own_path, chain_segments
from jopa_ppl.errors import SiteError, StructureError, names
from jopa_ppl.language.given import JointBelief


class StateBelief(NamedTuple):
    """A joint Gaussian belief about the first states of a program: what `jp.given` takes.

    members: their sites; mean (*plates, n) and cov (*plates, n, n), side by side; shapes: of their
    sites, and how many of these axes are plates.
    """

    members: tuple[str, ...]
    mean: Array
    cov: Array
    shapes: tuple[tuple[str, tuple[tuple[int, ...], int]], ...]

    def beliefs(self, sites: Sequence[str] | None = None) -> tuple[
            dict[tuple[str, ...], JointBelief], dict[str, dist.Distribution], tuple]:
        """As `Posterior.beliefs`, of all of them.

        Raises:
            SiteError: `sites` leaves one of them out.
        """
        if sites is not None and {*sites} != {*self.members}:
            raise SiteError("a state is given as a whole", site=self.members[0],
                            found=names(sites), expected=names(self.members), fix="leave sites out")
        return {self.members: JointBelief(self.mean, self.cov)}, {}, self.shapes

    def known(self, name: str) -> None:
        """None: nothing of a state is data."""


def state(compiled: Compiled, moments: dict, bound: Evidence, step: int) -> StateBelief:
    """The belief about what the scan carries before `step`, by the first states' sites.

    Args:
        compiled: the program.
        moments: beliefs by block; bound: the numbers of the run.
        step: counted from 0, below the length of the scan.

    Raises:
        StructureError: the program has no scan whose first states are earlier values of its sites.
    """
    chains = [b for b in compiled.graph.blocks if b.scan is not None and b.seeds
              and b.seeds.keys() == {*b.head}]
    if len(chains) != 1:
        raise StructureError("it has no state that a program could begin with",
                             found=f"{len(chains)} chains that begin with earlier values of their "
                                   "own sites", expected="one scan over such a state",
                             fix="carry what the step draws, from first states drawn outside; "
                                 "pass NaN, not None, for what is not seen")
    (block,) = chains
    stage = compiled.stage("state", lambda: jax.jit(
        lambda moments, bound, at: _moments(compiled.engine, block, moments, bound, at),
        compiler_options=often()))
    mean, cov = stage(moments, bound, np.asarray(step))
    variables = compiled.graph.variables
    shapes = tuple((n, (variables[n].site.shape, len(variables[n].local))) for n in block.head)
    return StateBelief(block.head, mean, cov, shapes)


def _moments(engine: Engine, block: ChainBelief, moments: dict, bound: Evidence, step: Array
             ) -> tuple[Array, Array]:
    """Mean and covariance of the values that the head's sites have `step` steps later."""
    moments, bound = complete(engine, moments, bound)
    c, start = Coordinates(block), smoothed(engine, block, moments, bound)
    places = np.concatenate([c.of(block.seeds[n]) for n in block.head]) - 1
    look = jnp.broadcast_to(step, block.batch)

    bound = at_own_path(engine, block, moments, bound)
    segments = [(n, [(w, own_conditional(s, w)) for w, s in sites])
                for n, sites in chain_segments(engine, block, moments, bound)]
    *_, h, S = roll(start, segments, c, look)
    mean, cov = h[..., 1 + places], S[..., 1 + places[:, None], 1 + places[None, :]]
    known = start.settled[step][..., places].all(-1)          # steps that were not rolled out
    at = start.state_cov[step][..., places[:, None], places[None, :]]
    return (jnp.where(known[..., None], start.state_mean[step][..., places], mean),
            jnp.where(known[..., None, None], at, cov))
