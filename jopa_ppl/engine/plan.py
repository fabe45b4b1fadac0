"""Planning: decisions minimise the free energy while states follow their prediction.

The first decision is the first element of a site of `decide` that is not data. What the program
draws before it is the past: with all that is data there, actions that are given included, it is
evidence about the present state, which no goal bends. What comes after it is the future:

    F  =  -log p(data of the past)
          + E[ -log p(data of the future) ]  +  E[ KL(q(u | past) || p(u)) ],

minimised over q(u | states so far), with q(x_{t+1} | x_t, u_t) = p(x_{t+1} | x_t, u_t): states may
not bend, only actions; p(u) is the prior of what is free, given the rest of its site. Data of the
future are frames and goals, and what is given of actions, disturbances or states there: each has
its log-density in F once, as evidence or as expected cost. Every element of the chain's plates has
a first decision of its own.

Backward over the steps with a quadratic value (see `value.py`): an observed site adds its expected
-log p, a site drawn by nature is averaged out, a decision is minimised out. For known dynamics this
is stochastic LQR, whatever their noise; for uncertain ones the expectations use second moments,
exact for dynamics drawn afresh at each step, and -log p(data of the past) is its bound under
beliefs about what is outside the scan, which are used as they stand (`jp.given`).

Where a mean is not affine in states and actions the program is linearised along a path, again and
again until no step improves it: see `paths.py`. F is then that of the linearised program.

Source: Todorov 2009; Levine 2018, "Reinforcement learning and control as probabilistic inference",
section 3 (why states must follow their prediction).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jopa_ppl.beliefs import Belief
from jopa_ppl.engine.beginnings import start
from jopa_ppl.engine.decision import Decision
from jopa_ppl.engine.engine import finite
from jopa_ppl.engine.evidence import Evidence, FactorArrays
from jopa_ppl.engine.paths import Paths, best_of, starts
from jopa_ppl.engine.problem import Problem
from jopa_ppl.engine.rounding import Digits, digits
from jopa_ppl.engine.state import State

SMOOTHING = 50          # steps at most to the beliefs from the past, where they approximate


class Plan(NamedTuple):
    """Moments of the sites of every step: (T, *plates, w) and (T, *plates, w, w).

    gains: by segment, for every decision its gain on h and its covariance; told: for every other
    site that is data in part, where it is data (.., n) and its values; cost (*plates): what each
    element of the chain's plates has of F, but for the data of the past; start (*plates): of a plan
    along a path, which of `Decision.starts` it began with.
    """

    mean: Array
    cov: Array
    gains: list[dict[str, tuple[Array, Array]]]
    told: list[dict[str, tuple[Array, Array]]]
    cost: Array
    start: Array | None = None

    def about(self, block: Belief) -> bool:
        """Whether it is the plan of this chain, and not of another one."""
        return self.gains[0].keys() <= set(block.variables)


def planned(decision: Decision, data: dict[str, Array], history: Array, given: dict[str, Array],
            tol: float) -> tuple[Evidence, State, Array, Plan]:
    """Evidence, then backward and forward: one pass where the program is affine, else along
    paths until they settle.

    Args:
        decision: what is decided upon.
        data: the arrays of the call, by the program's keys.
        history: (most passes,), for F of every policy that was tried.
        given: by decision, actions to begin with (T, *plates, n), NaN where there are none.
        tol: paths that no step improves by more than tol * max(1, |F|) have settled.

    Returns:
        the numbers of the run; its state, with the beliefs from the past; the history; the plan.
    """
    engine, split = decision.engine, None

    def weigh(arrays: dict[str, FactorArrays], present: dict[str, Array]
              ) -> tuple[dict[str, FactorArrays], dict[str, Array]]:
        nonlocal split
        *both, split = decision.split(arrays, present)
        return tuple(both)

    bound = engine.evidence(data, weigh)
    goal = jnp.stack([(w > 0).any() for w in split.later.values()] or [False]).any()
    free = (split.first < decision.length * len(decision.order)).any()
    apart = jnp.stack([(bound.arrays[f.name].weight > 0).any() for f in decision.of_apart]
                      or [False]).any()
    bound = bound._replace(checks={**bound.checks, "goal": goal, "free": free, "apart": apart})
    moments, measured = _known(decision, bound)
    problem = Problem(decision, bound, moments, split)
    if decision.curved:
        paths = Paths(problem)
        found, passes = paths.improved(starts(decision, problem.affine.nodes, given), tol,
                                       len(history))
        policy, path, past, which = best_of(found, passes)
        program = problem.along(path)
        tied = problem.backward(program, watched=True).tied
        settled = jnp.take_along_axis(found.settled, which[None], 0).all()
    else:
        program, which = problem.affine, None
        solved = problem.backward(program, watched=True)
        policy, past, tied = solved.policy, problem.expected(solved.value)[None], solved.tied
        passes, settled = jnp.ones((), int), jnp.ones((), bool)
    mean, cov = problem.rolled(program, policy)
    cost = past[-1]
    past = decision.past.free_energy(moments, bound) + past.sum(tuple(range(1, past.ndim)))
    f = past[-1]
    decisions = Digits(tied[0], jnp.sqrt(tied[1]), jnp.zeros(()))
    measured = Digits(*map(jnp.stack, zip(measured, decisions)))
    told = [{name: (node.given, node.value) for name, node in sites
             if name in split.present and name not in decision.decide}
            for _, sites in program.nodes]
    state = State(moments, f, passes, jnp.where(jnp.isfinite(f), -1, 0), settled, measured)
    gains = [{n: (r.gain, r.cov) for n, r in here.items()} for here in policy]
    return bound, state, history.at[:len(past)].set(past), Plan(mean, cov, gains, told, cost, which)


def _known(decision: Decision, bound: Evidence) -> tuple[dict[str, Any], Digits]:
    """Beliefs from the data of the past."""
    engine, watched = decision.past, ()
    moments = start(engine, None, bound).moments
    for block in engine.graph.blocks:
        if block.scan is None:
            continue
        factors = engine.energy.touching(block)
        if any(f.bends(block) for f in factors):
            def again(carry: tuple, block: Belief = block, factors: list = factors) -> tuple:
                i, old, _, _ = carry
                new, found, _ = engine.step(block, factors, old, bound)
                far = block.moved(old[block.name], new[block.name]) > 1e-6
                return i + 1, new, found, far & finite(new[block.name])

            none = jax.tree.map(jnp.zeros_like, block.means(moments[block.name]))
            _, moments, found, _ = jax.lax.while_loop(
                lambda c: c[3] & (c[0] < SMOOTHING), again,
                (jnp.zeros((), int), moments, none, jnp.ones((), bool)))
        else:
            moments, found = engine.watched_update(block, factors, moments, bound)
        watched = found if block is decision.block else watched
    return moments, digits(decision.block, moments[decision.block.name], watched)
