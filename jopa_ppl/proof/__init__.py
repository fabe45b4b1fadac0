"""How each output of a jaxpr depends on named inputs, proved primitive by primitive.

    dependence    what is proved, and what blames a line where it fails
    analyse       the walk
    rules, axes, loops    primitives: element by element; that move axes; that loop

A new primitive: one rule in `rules.py`, `axes.py` or `loops.py`.
"""
