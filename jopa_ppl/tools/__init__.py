"""What is made with posteriors.

    compiling, explaining    `jp.compile` and `jp.explain`: before a run
    validate, hindcast, controllability    `jp.validate`: is it fit to plan with?
    guides, runs    for `jp.compare` (`jopa_ppl.compare`, `jopa_ppl.engines`): a guide of SVI's that
                  knows chains; what engines run and give

Another check of `validate`: a function that returns its rows, beside `hindcast.py`. Another engine:
a function from a `runs.Program` to a `runs.Run` in `jopa_ppl.engines`, and a row of
`jopa_ppl.compare.ENGINES`.
"""
