"""What is asked of the energy by the factors that it is a sum of: `Energy` answers."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from jax import Array

from jopa_ppl.engine.evidence import FactorArrays
from jopa_ppl.graph.factor import Factor, Graph
from jopa_ppl.linalg.factors import Moments
from jopa_ppl.linalg.nonconjugate import Score

Stats = dict[str, Any]                  # by block, what the energy is differentiated in


class Message(NamedTuple):
    """What the message to some latents is made of: a log density of theirs, their moments, and the
    rule by which expectations are taken."""

    score: Score
    at: Moments
    rule: str


class Expectations(Protocol):
    """Expectations under the present beliefs, of which log densities are made. Every method takes
    a factor, its numbers, and the statistics of all blocks."""

    graph: Graph

    def parts(self, factor: Factor, arrays: FactorArrays, stats: Stats
              ) -> tuple[Array, Array, Array, Array]:
        """Of a Gaussian: summed E[r r'], summed weights, E[P] and E[log P]."""

    def noise(self, factor: Factor, arrays: FactorArrays, stats: Stats) -> tuple[Array, Array]:
        """E[P] and E[log P] (or E[log|P|]), batch axes in front (size 1 for time)."""

    def monomial(self, factor: Factor, arrays: FactorArrays, stats: Stats, key: str
                 ) -> tuple[Array, Array]:
        """E and E[log] of its parameter `key`, a product of data and precisions."""

    def log_scale(self, factor: Factor, noise: Array) -> Array:
        """log P of the parameter that the user gave, split by plates."""

    def scored(self, factor: Factor, arrays: FactorArrays, stats: Stats) -> tuple[Score, Moments]:
        """Its density as its program scores it, and the moments of its latents."""

    def messages(self, factor: Factor, arrays: FactorArrays, stats: Stats) -> list[Message]:
        """What its messages are made of where they go over points."""

    def views(self, factor: Factor, arrays: FactorArrays, stats: Stats) -> list[Moments]:
        """By message of one that is not scored, the moments of its latents."""
