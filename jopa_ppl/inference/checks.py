"""Turn the numbers that a run found in its data into errors."""

from __future__ import annotations

import jax
from jax import Array

from jopa_ppl.errors import DataError, PriorError, names
from jopa_ppl.graph.factor_graph import Graph


def raise_if_missing(graph: Graph, seen: bool) -> None:
    """Refuse data in which nothing is observed.

    Raises:
        DataError: every observed value is NaN.
    """
    if not seen and not any(v.site.partial for v in graph.variables.values()):
        observed = [s.name for s in graph.program.sites.values() if s.observed]
        raise DataError("all data are missing", found=f"NaN in every value of {names(observed)}",
                        expected="at least one value", fix="check how the arrays were built")


def raise_for_data(graph: Graph, checks: dict[str, dict[str, Array]]) -> None:
    """Raise the first error the data deserve; nothing if they are fine.

    Raises:
        DataError: infinities; negative weights; NaN in a model's inputs.
        PriorError: a matrix that is not positive definite, or too few degrees of freedom.
    """
    values = jax.device_get(checks)
    # Program order (jit sorts names): the first site at fault is the cause of those after it.
    found = {n: values[n] for n in graph.program.sites if n in values}
    for name, c in found.items():
        if c.get("infinite", 0):
            raise DataError("the data hold infinities", site=name,
                            found=f"{int(c['infinite'])} infinite values",
                            expected="finite numbers, or NaN for missing ones",
                            fix="replace them by NaN: jnp.where(jnp.isfinite(y), y, jnp.nan)")
    for name, c in found.items():
        if c.get("wishart_rate", 0):
            raise PriorError("the Wishart's matrix is not positive definite", site=name,
                             found="a Cholesky factorisation that fails",
                             expected="a symmetric positive definite matrix",
                             fix="check the rate_matrix or scale_matrix")
        if c.get("wishart_dof", 0):
            size = graph.program.sites[name].shape[-1]
            raise PriorError("the Wishart has too few degrees of freedom", site=name,
                             found=f"concentration <= {size - 1}",
                             expected=f"concentration > {size - 1} (its size less one)",
                             fix=f"use {size + 2.0} or more")
        if c.get("gamma", 0):
            raise PriorError("the Gamma's concentration or rate is not positive", site=name,
                             found="a concentration or rate <= 0, or NaN",
                             expected="concentration > 0 and rate > 0",
                             fix="check the prior")
        if c.get("precision", 0):
            raise PriorError("its covariance or precision is not positive definite", site=name,
                             found="a Cholesky factorisation that fails, or a scale that is zero, "
                                   "negative or not finite",
                             expected="a symmetric positive definite matrix, or positive scales",
                             fix="check the matrix, and the data it is computed from")
        if c.get("coefficients", 0):
            raise DataError("its mean is not finite", site=name,
                            found=f"{int(c['coefficients'])} NaN or infinite coefficients",
                            expected="finite inputs: only observed values may be NaN (missing)",
                            fix="fill the inputs, or make the missing ones a latent site")
        if c.get("negative", 0):
            raise DataError("its weights are negative or not finite", site=name,
                            found="handlers.scale below zero, infinite or NaN",
                            expected="weights >= 0",
                            fix="check the weights")
