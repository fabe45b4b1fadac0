"""Beliefs: each owns its mathematics, and answers whatever a sweep or a posterior asks of it.

    base                       the contract, method by method
    gaussian                   what all Gaussian ones share; then by their form:
    dense, tree, chain, matrix, recursion    one matrix; with plates; along time; W (x) S + U (x) V;
                               along time, where members follow from others with certainty
    precision                  Gamma and Wishart
    discrete, table, markov    one of a few values: alone (and Dirichlet and Beta), several jointly,
                               along time
    layout                     arrays of sites as vectors over plates, and back

A Gaussian of another form (sparser, of another structure) is one file beside `dense`, `tree` and
`chain`, a subclass of `gaussian.GaussianBelief`; another family is one file beside `precision` and
`discrete`, a subclass of `base.Belief`. Either is then a row of `KINDS`, by which files name it,
and `jopa_ppl.graph.blocks` says which latents get it. What else asks what kind it is, is counted by
`tests/test_layout.py`. Where factors have coefficients in a form of the belief's own (`checked`),
it makes them: `own_coefficients`, `own_slopes`, and whether they are right, `fits`; as `matrix`
does, with a class of `jopa_ppl.linalg.coefficients`.
"""

from jopa_ppl.beliefs.base import Belief, Clamp, Variable
from jopa_ppl.beliefs.chain import ChainBelief
from jopa_ppl.beliefs.dense import DenseBelief
from jopa_ppl.beliefs.discrete import BetaBelief, CategoricalBelief, DirichletBelief
from jopa_ppl.beliefs.markov import DiscreteChainBelief
from jopa_ppl.beliefs.matrix import MatrixBelief
from jopa_ppl.beliefs.precision import GammaBelief, WishartBelief
from jopa_ppl.beliefs.recursion import RecursionBelief
from jopa_ppl.beliefs.table import TableBelief
from jopa_ppl.beliefs.tree import TreeBelief

KINDS = {b.kind: b for b in (
    ChainBelief, RecursionBelief, TreeBelief, DenseBelief, MatrixBelief, GammaBelief, WishartBelief,
    CategoricalBelief, DiscreteChainBelief, TableBelief, DirichletBelief, BetaBelief)}

__all__ = ["KINDS", "Belief", "BetaBelief", "CategoricalBelief", "ChainBelief", "Clamp",
           "DenseBelief", "DirichletBelief", "DiscreteChainBelief", "GammaBelief", "MatrixBelief",
           "RecursionBelief", "TableBelief", "TreeBelief", "Variable", "WishartBelief"]
