"""The mathematics of message passing: families, factors, chains, elimination, matrices.

Knows nothing of ours: arrays in, arrays out, the formula in the docstring.

A kernel for chains: a function beside those of `chain.py`, from the blocks of a precision to
`chain.Marginals`, and its name in `chain.METHODS`. A rule for messages of factors that are not
conjugate: a branch of `expected_score` and `curvature` in `nonconjugate.py` (the message is their
gradient), and its name in `RULES` of `jopa_ppl.graph.factor`. Coefficients of a form of their own,
as `matrix.MatrixProduct`: what `factors.expected_square` and `engine.steps` ask of a tensor.
"""
