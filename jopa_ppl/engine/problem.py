"""A decision with its evidence: what plans are found by, backward along a program and forward.

`decision.py` tells where the decision stands, `paths.py` what is done where steps are not affine.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from jopa_ppl.engine.complete import complete
from jopa_ppl.engine.conditional import Conditional
from jopa_ppl.engine.decision import Affine, Decision, Policy, Solved, Split
from jopa_ppl.engine.evidence import Evidence
from jopa_ppl.engine.forward import roll, smoothed
from jopa_ppl.engine.value import Rule
from jopa_ppl.program.refs import Ref


class Problem:
    """A decision with its evidence: what passes backward and forward are made of."""

    def __init__(self, decision: Decision, bound: Evidence, moments: dict, split: Split) -> None:
        self.decision, self.bound, self.moments, self.split = decision, bound, moments, split
        self.step = split.first // len(decision.order)
        engine, block = decision.engine, decision.block
        self.stats = engine.stats(moments, bound.clamps)
        self.start = smoothed(engine, block, *complete(engine, moments, bound, (block,)))
        here = engine.at(moments, bound) if decision.curved else bound
        self.affine = decision.nodes(here, moments, split)
        *_, h, S = self.rolled(self.affine, self.own, self.step)
        self.second = S + h[..., :, None] * h[..., None, :]

    @property
    def own(self) -> Policy:
        """Decisions as the program would draw them."""
        return [{n: Rule.of(node) for n, node in sites if n in self.decision.decide}
                for _, sites in self.affine.nodes]

    def along(self, path: Array) -> Affine:
        """The program linearised along a path (T, *plates, H)."""
        d = self.decision
        means = d.block.with_means(self.stats[d.block.name], path[..., d.c.size - d.c.width:])
        bound = d.engine.at(self.moments, self.bound, **{d.block.name: means})
        return d.nodes(bound, self.moments, self.split, self.affine)

    def backward(self, program: Affine, policy: Policy | None = None, watched: bool = False
                 ) -> Solved:
        """As `Decision.backward`, from the first decision on."""
        return self.decision.backward(program.nodes, program.costs, self.step, policy, watched)

    def expected(self, value: Array) -> Array:
        """What is to be expected of the future (*plates), from its value at the first decision."""
        return 0.5 * jnp.sum(value * self.second, (-2, -1))

    def rolled(self, program: Affine, policy: Policy, look: Array | None = None
               ) -> tuple[Array, ...]:
        """Moments of the sites of every step; of those up to `look`, and of h there."""
        c = self.decision.c
        rules = [(steps, [(c.of(Ref(name, 0)), Conditional(*mine[name][:2]) if name in mine
                           else node.rule) for name, node in sites])
                 for (steps, sites), mine in zip(program.nodes, policy)]
        return roll(self.start, rules, c, look)
