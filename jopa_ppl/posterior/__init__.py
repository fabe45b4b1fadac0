"""What a run is looked at with: marginals, draws, densities, predictions, ArviZ, files.

What is known of one block is asked of its belief (`jopa_ppl.beliefs.base`); here blocks are put
together: `inferred` knows sites and draws, `posterior` adds what is made of them. A group for
ArviZ: its draws in `run_data.py`, or its arrays in `arviz.py`, and its name in `arviz.GROUPS`. An
entry of files: written by `write.describe`, its form in `stored._FORM`, read by `stored.restore`;
older files lack it, so it has a default there.
"""
