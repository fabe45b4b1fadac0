"""Expected cost of a plan's mean actions under uncertain dynamics, beside a plan that takes
their mean for certain: by Monte Carlo with dynamics drawn afresh at each step, as `decide` has it,
and one draw held through the horizon: `python -m tests.benchmarks.planning`.
"""

from __future__ import annotations

import jax
import numpy as np
import numpyro.distributions as dist

import jopa_ppl as jp
from tests.engine.test_planning import GOAL, PRIOR, START, A, B, expected_cost, uncertain


def main(horizon: int = 5, draws: int = 200_000) -> None:
    belief = np.concatenate([A, B], 1)
    with jax.enable_x64(True):
        goal = jp.sparse(horizon + 1, {0: START, **{t: GOAL for t in range(1, horizon + 1)}})
        weight = PRIOR**-2 + 0.3**-2
        mean = (np.ones(2) * PRIOR**-2 + START * 0.3**-2) / weight
        rng = np.random.default_rng(0)
        starts = mean + rng.normal(size=(draws, 2)) / np.sqrt(weight)
        for name, spread in (("uncertain", 0.2), ("mean taken for certain", 1e-6)):
            model = jp.given(uncertain, {"M": dist.Normal(belief, spread).to_event(2)})
            plan = jp.VMP(model, decide="u").run(goal, T=horizon + 1)
            actions = np.asarray(plan.mean("u"))[:horizon, 0]
            fresh, held = (expected_cost(actions, starts, draws, h, np.random.default_rng(1))
                           for h in (False, True))
            print(f"plan, dynamics {name}: drawn afresh {fresh[0]:.3f} +- {fresh[1]:.3f} nats, "
                  f"held {held[0]:.3f} +- {held[1]:.3f}, ratio {held[0] / fresh[0]:.3f}")


if __name__ == "__main__":
    main()
