"""What runs, in the order of a run. All of it pure functions of arrays, jitted in `compiled.py`.

    signature     the leaves of a call; whether its program was traced before
    evidence      the numbers of every factor, and where they have one
    reach         which latents data reach; the rest follows the program and adds nothing to F
    densities     what a family of factors answers; coefficients: those of its residual
    likelihoods, bent   what a factor that is not conjugate is made of, and its expectations
    energy        U = E_q[log p], a factor at a time; every message is its gradient
    schedule, engine    the order of updates, and the sweeps
    extrapolation sweeps that start ahead of where the last one ended
    plan, value   decisions: backward over quadratic costs
    complete, forward, steps    what data do not reach, predicted from beliefs about the rest
    marginals     beliefs site by site
    rounding, faults, outcome   what can go wrong with the numbers of a run, told by site
"""
