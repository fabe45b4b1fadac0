"""A program run once: its sites, their parameters and what these depend on, carries unrolled.

    trace         runs it, under handlers; in_body, spellings, naming: data of the sites of a scan,
                  sites as NumPyro lets them be written, and what they may be called
    families, parameters, likelihood, tallies    a row a family; a reader a distribution; the
                  density that it is scored by; successes and failures that a probability tells of
    program, refs    what was traced, as data; a value as a step reads it
    carry, segments    where a step looks back to: seeds, outputs composed of steps; and the steps
                  that a factor speaks of
    fingerprint   what it is, as one hashable value
    flat          latents that something has no slope in
    determinants, loops, scan_inputs    matrices of latents; scans that draw nothing; inputs that
                  have to be data

Then it is put, a step at a time, into the one form that is proved:

    latent_data, latent_inputs    what observes latents, and inputs of scans that are made of them
    fused, after_scan    scans that read each other's states, and sites written after a scan: one
                         scan whose steps do it all
    continued    scans that begin where another one ended: one, whose sites know their steps
    recursions    what a carry makes of older carries: latents that follow with certainty
    drawn_apart   precisions that every step draws anew: drawn all at once, before
    unconstrained    Gammas, Betas and Dirichlets read in unconstrained space, where nothing
                  conjugate fits

Each takes a `Program` and gives one, most through `rewriting` (and `in_time`, where values of all
steps become those of one); another way of writing what can already be proved is one more file
beside them.

Another distribution for sites: a row of `families.py` (what the proof asks of it), a reader of its
NumPyro object in `parameters.py`, a row of `jopa_ppl.engine.densities` (its expected log density)
and, where it may be latent and is no Gaussian, a belief in `jopa_ppl.beliefs`, whose row of `KINDS`
has the name that `Family.belief` has. Of counts that a probability tells of: `tallies.tally` as
well. Where it may be read in unconstrained space (`freely`): what makes it, in `unconstrained`.
What a run tells of wrong parameters of it: a row of `jopa_ppl.engine.faults`.
"""
