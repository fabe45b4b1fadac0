"""Plans through steps that are not affine: policies along a path, each better than the last.

A path h_t, t = 1..T, is what a policy comes to without noise: actions by the policy, states by the
program's own functions. Along it every step is linearised, and the plan of that affine program
(`engine.plan`) is a new policy for all of h, u = k_t + K_t h. How far to go there is told by the
expected cost: of the policies

    u  =  u_t + a (k_t + K_t h_t - u_t) + K_t (h - h_t),      a = 1, 1/3, 1/9, ..

with the covariance of the new one, the first is taken that lowers F once its own path is rolled out
and linearised there (h_t, u_t is the path so far). So F falls, and where the program is affine the
first step ends it. It settles in a path that no step improves by more than `tol`: of a cost with
several valleys the one that it began in, which is why several beginnings go side by side (`starts`)
and the best is kept, for each element of the chain's plates.

Sources: Li & Todorov 2004, "Iterative linear quadratic regulator design for nonlinear biological
movement systems"; Tassa, Erez & Todorov 2012 (the line search on paths that are rolled out).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jopa_ppl.engine.decision import OFFSETS, Affine, Decision, Policy
from jopa_ppl.engine.forward import walk
from jopa_ppl.engine.functions import Mean, affine, means_of
from jopa_ppl.engine.problem import Problem
from jopa_ppl.engine.value import Rule
from jopa_ppl.program.refs import Ref

LEAST = 0.01            # share of the way to a new policy


class Found(NamedTuple):
    """Policies, their paths (T, *plates, H) and F (*plates) less what no decision changes.

    ahead: the policy that is best along this path; share (*plates): how far towards it the next
    one goes; settled (*plates): whether no share improves F by more than `tol`; past (most,
    *plates): F after each policy that was tried.
    """

    policy: Policy
    path: Array
    cost: Array
    ahead: Policy
    share: Array
    settled: Array
    past: Array


def starts(decision: Decision, nodes: list, given: dict[str, Array]) -> Policy:
    """Policies to begin with, (starts, T, *plates, ..): first the actions that were `given`,
    (T, *plates, n) by site, where they are not NaN; then the prior moved by each of `OFFSETS`."""
    found, at, plates = [], 0, decision.block.batch
    for steps, sites in nodes:
        here = {}
        for name, node in sites:
            if name not in decision.decide:
                continue
            rule, window = Rule.of(node), slice(at, at + steps)
            gain, cov, logdet = (
                jnp.broadcast_to(x, (steps, *plates, *x.shape[1 + len(plates):])) for x in rule)
            sd = jnp.sqrt(jnp.diagonal(cov, axis1=-2, axis2=-1))
            moved = [gain.at[..., 0].add(a * sd) for a in OFFSETS.values()]
            first = jnp.where(node.given > 0, node.value, given[name][window])[..., None]
            own = jnp.where(jnp.isnan(first), gain, jnp.zeros_like(gain).at[..., :1].set(first))
            gains = jnp.stack([own, *moved])
            here[name] = Rule(gains, *(jnp.broadcast_to(x, (len(gains), *x.shape))
                                       for x in (cov, logdet)))
        found.append(here)
        at += steps
    return found


class Paths:
    """What the paths of a decision are made of: one run's evidence and beliefs."""

    def __init__(self, problem: Problem) -> None:
        self.problem, self.decision, self.c = problem, problem.decision, problem.decision.c
        self.exact = means_of(self.decision.engine, self.decision.block, problem.bound,
                              problem.moments)

    def path(self, policy: Policy, program: Affine) -> Array:
        """h of every step, (T, *plates, H): means alone, by the program's own functions and what is
        affine of `program`."""
        segments = []
        for (steps, sites), mine, exact in zip(program.nodes, policy, self.exact):
            here, times = [], jnp.arange(steps)
            for name, node in sites:
                where = self.c.of(Ref(name, 0))
                if name in mine:
                    here.append((where, mine[name].gain, affine))
                elif name in exact:
                    here.append((where, (node.fix, times), _fixed(exact[name])))
                else:
                    here.append((where, node.rule.mean, affine))
            segments.append((steps, here))
        return walk(self.problem.start, segments, self.c)

    def improved(self, begun: Policy, tol: float, most: int) -> tuple[Found, Array]:
        """From policies (starts, ..) to those that no step improves by more than `tol`, each pass
        of the loop one that is tried by every start; and how many passes there were."""
        problem, c = self.problem, self.c
        plates = self.decision.block.batch

        def tried(old: Found, at: Array) -> Found:
            policy = self._mixed(old)
            path = self.path(policy, problem.affine)
            program = problem.along(path)
            cost = problem.expected(problem.backward(program, policy).value)
            # Nobody goes on from the last one.
            ahead = jax.lax.cond(at + 1 < most, lambda: problem.backward(program).policy,
                                 lambda: old.ahead)
            fine = ~old.settled & (cost < old.cost)
            gained = fine & (old.cost - cost > tol * jnp.maximum(1.0, jnp.abs(cost)))
            share = jnp.where(fine, 1.0, old.share / 3)
            stuck = (~fine & (share < LEAST)) | (fine & ~gained)
            cost = jnp.where(fine, cost, old.cost)
            return Found(_where(fine, policy, old.policy), _where(fine, path, old.path), cost,
                         _where(fine, ahead, old.ahead), share, old.settled | stuck,
                         old.past.at[at].set(cost))

        first = jax.vmap(lambda policy: Found(
            policy, jnp.zeros((self.decision.length, *plates, c.size)), jnp.full(plates, jnp.inf),
            policy, jnp.ones(plates), jnp.zeros(plates, bool), jnp.zeros((most, *plates))))(begun)
        each = jax.vmap(tried, (0, None))
        return jax.lax.while_loop(lambda f: ~f[0].settled.all() & (f[1] < most),
                                  lambda f: (each(*f), f[1] + 1), (first, jnp.zeros((), int)))

    def _mixed(self, old: Found) -> Policy:
        """The policy that goes a share of the way from the old path to the policy ahead."""
        at, found = 0, []
        for here, steps in zip(old.ahead, self.decision.lengths):
            mixed = {}
            for name, rule in here.items():
                h = old.path[at:at + steps]
                gap = h[..., self.c.of(Ref(name, 0))] - affine(rule.gain, h)
                gain = rule.gain.at[..., 0].add((1 - old.share[..., None]) * gap)
                mixed[name] = rule._replace(gain=gain)
            found.append(mixed)
            at += steps
        return found


def _fixed(exact: Mean) -> Callable[[Any, Array], Array]:
    """A mean where the site may be data in part (`value.fix_of`)."""
    def mean(numbers: tuple, h: Array) -> Array:
        fix, step = numbers
        found = exact(step, h)
        return found if fix is None else affine(fix[0], found) + fix[1]

    return mean


def _where(fine: Array, new: Any, old: Any) -> Any:
    """Leaves (T, *plates, ..) of `new` where `fine` (*plates), else of `old`."""
    def one(a: Array, b: Array) -> Array:
        mask = fine.reshape((1, *fine.shape, *(1,) * (a.ndim - 1 - fine.ndim)))
        return jnp.where(mask, a, b)

    return jax.tree.map(one, new, old)


def best_of(found: Found, passes: Array) -> tuple[Policy, Array, Array, Array]:
    """Of starts (the first axis) the one of least F for each element of the plates: its policy,
    path, F after each pass (most, *plates), and which it is."""
    which = jnp.argmin(jnp.where(jnp.isfinite(found.cost), found.cost, jnp.inf), 0)

    def pick(x: Array, lead: int) -> Array:
        index = which.reshape((1,) * (1 + lead) + which.shape
                               + (1,) * (x.ndim - 1 - lead - which.ndim))
        index = jnp.broadcast_to(index, (1, *x.shape[1:]))
        return jnp.take_along_axis(x, index, 0)[0]

    policy = jax.tree.map(lambda x: pick(x, 1), found.policy)
    done = jnp.arange(found.past.shape[1]) >= passes
    past = jnp.where(done.reshape((-1, *(1,) * which.ndim)), found.cost[:, None], found.past)
    return policy, pick(found.path, 1), pick(past, 1), which
