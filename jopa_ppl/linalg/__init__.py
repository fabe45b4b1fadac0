"""The mathematics of message passing: arrays in, arrays out, the formula in the docstring. Knows
nothing of ours.

    families, factors    exponential families; the expected log density of a Gaussian site
    coefficients  of a residual, in whatever form they are held
    chain, recursion, elimination, together    block-tridiagonal Gaussians; with parts that follow
                  with certainty; any structure, by Funsor; and of few numbers, dense
    matrix        W (x) S + U (x) V
    nonconjugate, corners, slopes    messages of likelihoods, also of those with corners; slopes of
                  functions of a batch
    extrapolation, bfgs    where an iteration is going; steps down a function, from its slopes
    lanes         small matrices side by side

A kernel for chains: a function beside those of `chain.py`, from the blocks of a precision to
`chain.Marginals`, and its name in `chain.METHODS`. A rule for messages of factors that are not
conjugate: a branch of `expected_score` and `curvature` in `nonconjugate.py` (the message is their
gradient), its name in `RULES` of `jopa_ppl.graph.factor`, and what `explain` says of it in
`jopa_ppl.graph.tables`. Coefficients of a form of their own, as `matrix.MatrixProduct`: a class
of `coefficients.Coefficients`, which the belief whose form it is makes (`own_coefficients`).
"""
