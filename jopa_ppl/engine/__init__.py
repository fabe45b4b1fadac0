"""What runs, in the order of a run. All of it pure functions of arrays, jitted in `compiled.py`.

    signature     the leaves of a call; whether its program was traced before
    compiled      a program compiled for given shapes: cache, options, jitted stages
    evidence, reading, numbers    the numbers of every factor; the program's own functions at data;
                  the numbers made of these
    reach         which latents data reach; the rest follows the program and adds nothing to F
    density, densities, counts    what a family of factors answers: the contract; those of
                  Gaussians and precisions, and the table; those of probabilities and counts
    likelihoods, bent   what a factor that is not conjugate is made of, and its expectations
    energy        U = E_q[log p], a factor at a time; every message is its gradient. What factors
                  ask of it is named in `expectations`
    arithmetic    a graph at data and beliefs: its evidence, statistics and F
    schedule, state, engine    the order of updates, what a sweep leaves, and the sweeps
    beginnings, tempering, filtering    beliefs before the first sweep; a way from there to far
                  data; the path of a filter
    extrapolation, rotation    slow sweeps: they start ahead of where the last one ended, and turn
                  states
    plan, decision, value    decisions: their evidence and what follows from it; backward over
                  quadratic costs, step by step
    problem, paths   decisions whose states bend: the program along a path, and the search for one
    coordinates, steps, functions    the sites of a chain's step as linear maps on one vector, and
                  where they are none, as the program's own functions
    complete, conditional, forward    what data do not reach, predicted from beliefs about the rest:
                  outside scans; how a site follows from what its step sees; along a chain
    marginals, exact    beliefs site by site; blocks that are exact given all else: their evidence
    rounding, lost_digits, faults, outcome   what can go wrong with the numbers of a run: how many
                  digits it has left, and what is said of it, by site

Another fault of data: a flag among `Evidence.checks` and what is said of it, in `faults.py`.
Another stage of a compiled program: `Compiled.stage(name, make)`, from wherever it is needed.
"""
