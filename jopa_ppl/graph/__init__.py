"""Programs as factor graphs: which parameters may depend on what (`links.py`), what shares a belief
(`blocks.py`), tables and pictures. No inference in here.
"""
