"""The numbers of a run: of every factor, and of all together. Made once a run, by the densities of
each (`Density.numbers`) and by `Arithmetic.evidence`."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jopa_ppl.beliefs import Belief
from jopa_ppl.linalg.coefficients import Coefficients
from jopa_ppl.program.refs import Ref

Slot = tuple[Belief | None, list[Ref]]       # a block, and its latents that a factor touches


class FactorArrays(NamedTuple):
    """What a factor needs besides beliefs. Batch axes: time (of a site of a scan), plates.

    K (*batch|1, n, slots.., main): coefficients of the residual r = offset - K x, a slot for each
    block that enters it, `main` the main block's numbers and those of `known`, in whatever form
    (`linalg.coefficients`); of a Gamma or a Dirichlet its concentration, an array.
    Of a factor that has copies, K, weight, known, precision and logdet have these in front
    (`BY_COPY`).
    offset (*batch, n): the site's own data. weight (*batch, n|1): 0 where it says nothing.
    known (*batch|1, m): data in the place of latents; a scalar where there are none.
    precision (*batch, n), or (*batch, n, n), and logdet (*batch): where they are data.
    env: all data that the site's own functions read (`reading.evaluate_in`).
    """

    K: Coefficients | Array
    offset: Array
    weight: Array
    known: Array
    precision: Array | None
    logdet: Array | None
    env: Any
    fits: Array | bool = True         # whether K is all there is to the residual

    @property
    def known_matrix(self) -> Array | None:
        """The precision where it is data, and a matrix."""
        P = self.precision
        return None if P is None or P.ndim < self.logdet.ndim + 2 else P

    def of_copy(self, i: int) -> FactorArrays:
        """The numbers of one of the copies that a factor has."""
        return FactorArrays(*(x if axis is None else jax.tree.map(lambda a: a[i], x)
                              for x, axis in zip(self, BY_COPY)))


# Of a factor with copies (`Factor.copies`), the axis along which these lie; the rest they share.
BY_COPY = FactorArrays(K=0, offset=None, weight=0, known=0, precision=0, logdet=0, env=None,
                       fits=None)


class Windows(NamedTuple):
    """Series of a run by scan: step inputs and values of observed sites, (T, ..)."""

    steps: dict[str, Array]
    known: dict[str, Array]


class Evidence(NamedTuple):
    """A program with its data: the numbers of every factor, and where each element of a latent is
    inferred. A pytree, made once a run (`Arithmetic.evidence`); all that a sweep reads is in it.

    Attributes:
        arrays: by factor, its numbers; a weight of 0 where it says nothing (missing, masked, or of
            what no observation reaches).
        clamps: by block, its mask (`beliefs.base`): elements that are not inferred stand at a
            value, the data where they are data, else 0.
        alive: by latent, (T,) * plates, which of its elements some observation reaches; the others
            follow the program and add nothing to F (`complete`, `forward`).
        series: by scan, the inputs and the observed values of all steps.
        values, present: by site conditioned in part, (T,) * plates * dims, its data, and where it
            is data.
        checks: by fault of the data whether it was found (`faults.py`); the host looks at them.
        priors: numbers of latents' priors where `arrays` weighs them 0: to start from.
    """

    arrays: dict[str, FactorArrays]
    clamps: dict[str, Any]
    alive: dict[str, Array]
    series: list[Windows]
    values: dict[str, Array]
    present: dict[str, Array]
    checks: dict[str, Any]
    priors: dict[str, FactorArrays]


def without_gaps(a: FactorArrays) -> FactorArrays:
    """The numbers with 0 for NaN where the factor weighs nothing (0 times NaN would be NaN): a
    missing value of another site, which its coefficients or its data are made of.

    Where it does weigh something the NaN stays: the run finds it and says so.
    """
    batch = a.offset.ndim - 1
    seen = (a.weight > 0).any(-1)

    def quiet(x: Array) -> Array:
        if x.ndim < batch:      # a mean that is not affine has no coefficients (`Bent.linearised`)
            return x
        here = seen
        for axis in range(batch):
            if x.shape[axis] < seen.shape[axis]:
                here = here.any(axis, keepdims=True)
        here = here.reshape((*here.shape, *(1,) * (x.ndim - batch)))
        return jnp.where(jnp.isnan(x) & ~here, 0.0, x)

    return a._replace(**{n: jax.tree.map(quiet, getattr(a, n))
                         for n in ("K", "known", "precision", "logdet")})
