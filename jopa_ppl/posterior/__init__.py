"""What a run is looked at with.

    inferred, posterior    sites, marginals and draws; all that is made of them
    draws, density, prediction, forecast    jointly drawn; log densities; sites that are only
                  predicted; steps to come
    state         what a scan carries, as the belief a program goes on from
    unconstrained    latents x = T(u) whose belief is about u
    arviz, run_data, labels    for ArviZ; what a run saw; names of axes
    storage, write, stored, read    files: tensors, what is written, what comes back, checkpoints

What is known of one block is asked of its belief (`jopa_ppl.beliefs.base`); here blocks are put
together. A group for ArviZ: its draws in `run_data.py` and its name in `arviz.RUN`, or its arrays
in `arviz.py`, and its name in `arviz.GROUPS`. An entry of files: written by `write.describe`, its
form in `stored._FORM`, read by `stored.restore`; older files lack it, so it has a default there.
"""
