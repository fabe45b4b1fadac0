"""Programs as factor graphs: which parameters may depend on what (`links.py`), what shares a belief
(`blocks.py`, `matrices.py`), tables and pictures. No inference in here.

Another distribution for sites: its parameters in `jopa_ppl.program.parameters`, what they may
depend on in `links.py`, its expected log density in `jopa_ppl.engine.energy`, and, where it is a
belief too, that in `jopa_ppl.beliefs`.
"""
