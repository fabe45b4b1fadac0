"""What is made of a run after its sweeps: errors and warnings, or nothing."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np

from jopa_ppl.engine.compiled import Compiled
from jopa_ppl.engine.lost_digits import Looked, raise_for_rounding, raise_or_warn
from jopa_ppl.engine.signature import Call
from jopa_ppl.engine.state import State
from jopa_ppl.errors import ConvergenceWarning, NumericalError


def after(compiled: Compiled, call: Call, told: State, history: np.ndarray,
          posterior: Callable[[], Looked]) -> None:
    """Refuse a run that went wrong, tell of one that did not settle or lost digits.

    Args:
        told: the state of the run on the host; posterior: makes the posterior, for an error.

    Raises:
        DataError, PriorError: the data or a prior made it go wrong. NumericalError: something
            else did, or rounding. Warns with a ConvergenceWarning or NumericalWarning.
    """
    sweeps, bad = int(told.sweep), int(told.bad)
    if bad >= 0:
        compiled.raise_for_data(call.dynamic)
        raise_for_rounding(compiled, posterior(), bad)
        where = (f"block '{compiled.blocks[bad].name}'" if bad < len(compiled.blocks)
                 else "the free energy")
        raise NumericalError(
            "the free energy stopped being finite", posterior=posterior(),
            found=f"a non-finite value in sweep {sweeps + 1}, at {where}",
            expected="finite beliefs",
            fix="look at the scale of the data and at the priors; `error.posterior` holds "
                f"the state after {sweeps} sweeps")
    raise_or_warn(compiled, told, posterior)
    if told.converged or (compiled.single and compiled.decision is None):
        return
    if compiled.decision is not None:
        warnings.warn(f"not converged: the plan was still getting better after {sweeps} policies; "
                      "raise max_iters, or begin with init=plan.shifted(1)", ConvergenceWarning,
                      stacklevel=3)
        return
    change = float(history[sweeps - 1] - history[sweeps - 2]) if sweeps > 1 else float("nan")
    if compiled.options.tol == 0 and abs(change) <= 1e-12 * abs(float(told.free_energy)):
        return
    moved = f", the free energy by {change:.3g} nats a sweep" if sweeps > 1 else ""
    bent = [f.site.name for f in compiled.graph.factors if f.message == "linearise"]
    corners = (f"; if the log density of '{bent[0]}' has corners (Laplace, a hinge), its curvature "
               "at the mean is 0 and F means nothing: pass "
               f"messages={{'{bent[0]}': 'cubature'}}" if bent else "")
    warnings.warn(f"not converged: after {sweeps} sweeps the beliefs still move{moved} "
                  f"(tol={compiled.options.tol}); raise max_iters{corners}", ConvergenceWarning,
                  stacklevel=3)
