"""What a program is written in. Knows nothing of inference.

    primitives    latent, observe, scan, plate, sparse, Amortized
    query, given, series    sites as data; earlier beliefs in place of priors; how both are looked
                  up
    missing       NaN, and masked entries, in data
    networks      their weights collected and replaced; minibatches of a plate
    replay        the program itself, run with its sites set
    tracing, precision, scan_lengths, keys    how it is run: one at a time, in float64, over series
                  of one length, with keys
    watch, probes, reads    whether it still is what was traced
    sources, blame    which line made what; errors of a user's program while it is traced
    distributions    those that NumPyro lacks and beliefs need

Another word for programs: a function in `primitives.py`, which NumPyro's own handlers can run too.
"""
