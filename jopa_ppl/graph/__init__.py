"""Programs as factor graphs: which parameters may depend on what (`links.py`), what shares a belief
(`blocks.py`, `matrices.py`), tables and pictures. No inference in here.

`factor.Factor` is the contract: what is proved of a factor (by `proving.py`), and all that the
engine knows of it.
"""
