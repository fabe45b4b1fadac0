"""How each output of a jaxpr depends on named inputs, proved primitive by primitive.

A new primitive: one rule in `rules.py` (element by element), `axes.py` (what moves axes) or
`loops.py`.
"""
