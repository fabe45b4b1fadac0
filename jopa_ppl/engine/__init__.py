"""What runs, in the order of a run. All of it pure functions of arrays, jitted in `compiled.py`.

    signature     the leaves of a call; whether its program was traced before
    evidence, reading, numbers    the numbers of every factor; the program's own functions at data;
                  the numbers made of these
    reach         which latents data reach; the rest follows the program and adds nothing to F
    densities     what a family of factors answers; coefficients: those of its residual
    likelihoods, bent   what a factor that is not conjugate is made of, and its expectations
    energy        U = E_q[log p], a factor at a time; every message is its gradient. What factors
                  ask of it is named in `expectations`
    arithmetic    a graph at data and beliefs: its evidence, statistics and F
    schedule, state, engine    the order of updates, what a sweep leaves, and the sweeps
    beginnings    beliefs before the first sweep
    extrapolation sweeps that start ahead of where the last one ended
    plan, value   decisions: backward over quadratic costs
    coordinates, steps    the sites of a chain's step as linear maps on one vector
    complete, forward    what data do not reach, predicted from beliefs about the rest
    marginals     beliefs site by site
    rounding, faults, outcome   what can go wrong with the numbers of a run, told by site
"""
