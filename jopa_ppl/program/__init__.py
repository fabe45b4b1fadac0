"""A program run once: its sites, their parameters and what these depend on, carries unrolled.

Another distribution for sites: a row of `families.py` (what the proof asks of it), a reader of its
NumPyro object in `parameters.py`, a row of `jopa_ppl.engine.densities` (its expected log density)
and, where it may be latent and is no Gaussian, a belief in `jopa_ppl.beliefs`.
"""
