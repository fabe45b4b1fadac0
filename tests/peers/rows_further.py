"""The table's models of `further`."""

from __future__ import annotations

import numpy as np

from . import curved as B
from . import further as X
from . import kalman as K
from . import regressions as R
from .exact import dense, enumerated
from .judges import draws, without
from .row import DYNAMAX, EX, NB, RXINFER, Row

FURTHER: tuple[Row, ...] = (
    Row("bayesian_regression: marriage", NB, X.divorce_marriage, (R.M, R.DIVORCE)),
    Row("effect_handlers: scope", NB, X.scoped, (R.A, R.DIVORCE)),
    Row("effect_handlers: scale", NB, X.scaled, (R.A, R.DIVORCE)),
    Row("effect_handlers: do", NB, X.intervened, (R.A, R.DIVORCE),
        without("b", draws())),
    Row("sparse_regression", EX, X.sparse, (X.SQUARES, X.PRODUCT)),
    Row("stein_bnn", EX, X.bnn_subsampled, (B.CURVE, B.WIGGLE)),
    Row("thompson_sampling", EX, X.optimised, (X.POINTS, X.VALUES)),
    Row("circulant_gp", NB, X.circulant, (X.RING,)),
    Row("stein_dmm: networks known", EX, X.notes, (X.NOTES,)),
    Row("lotka_volterra_multiple: by Euler's steps", NB, X.hunters, (X.PAIRS,)),
    Row("robotic arm", RXINFER, X.arm, (X.ARM,)),
    Row("drone", RXINFER, X.drone, (X.DRONE,)),
    Row("multi-agent", RXINFER, X.agents, (X.MEET,)),
    Row("forgetting factors", RXINFER, X.forgetting, (R.A, R.DIVORCE), dense()),
    Row("chance constraints", RXINFER, X.constrained, (np.array([-0.1, 0.2, -0.3, 0.0, -0.2]),)),
    Row("Assessing people skills", RXINFER, X.student, (np.array([1, 1, 1, 0, 0]),), enumerated()),
    Row("LGSSM with singular Q", DYNAMAX, X.singular, (K.ONE,), X.singular_exact),
)
