"""The table's models that compiled as shipped when it was made."""

from __future__ import annotations

from functools import partial

import numpy as np

from models.local_level import NILE

from . import conjugate as J
from . import kalman as K
from . import learnt as L
from . import regressions as R
from .exact import dense
from .judges import grid
from .row import BAYESPY, DOCS, DYNAMAX, EX, JOPA, NB, RXINFER, STATS, TEST, Row

_NILE = (NILE - 900.0) / 150.0
_HOLES = K.THREE.copy()
_HOLES[4, 1] = _HOLES[9, 2] = np.nan
_MIXED = np.clip(np.linspace(-0.2, 1.2, K.T), 0.0, 1.0)

SHIPPED: tuple[Row, ...] = (
    # -- no time
    Row("regression", BAYESPY, J.regression, (R.A, J.LINE)),
    Row("quickstart", BAYESPY, J.quickstart, (J.LINE,), grid()),
    Row("pca (ARD, missing)", BAYESPY, J.components, (J.LOADED,)),
    Row("robust regression (scale mixture)", BAYESPY, J.scale_mixture, (R.A, R.TAIL)),
    Row("Gaussian-Wishart", BAYESPY, J.gaussian_wishart, (R.SQUARE,)),
    Row("Gamma-Gamma", BAYESPY, J.gamma_gamma, (J.LINE,), grid()),
    Row("gp, kernel fixed, noise learnt", EX, J.kernel_known, (J.POINTS, J.WAVE)),
    Row("hsgp, hyperparameters fixed", NB, J.functions_known, (J.POINTS, J.WAVE)),
    Row("eight schools, LocScaleReparam, tau fixed", DOCS, J.schools, (R.ERRORS, R.SCHOOLS),
        dense()),
    Row("bad_posterior_geometry: two MVN", NB, J.two_vectors, (R.SQUARE,), dense()),
    Row("Bayesian Linear Regression", RXINFER, J.weights_known_noise, (R.X[:, :3], J.LINE),
        dense()),
    Row("Bike rental", RXINFER, J.outputs, (R.X[:, :3], J.TWO)),
    Row("mv iid Wishart", RXINFER, J.gaussian_wishart, (R.SQUARE,)),
    Row("Incomplete data", RXINFER, J.gaps, (R.A, J.GAPPED)),
    Row("Solving linear systems", RXINFER, J.linear_system, (J.RIGHT,), dense()),
    Row("Infinite data stream", RXINFER, J.weights_known_noise, (R.X[:, :3], J.LINE),
        L.streamed),
    # -- parameters known
    Row("test_scan_svi (plated walk)", TEST, K.batch, (K.MANY,), dense()),
    Row("test_scan_plate_mask", TEST, K.masked_walks, (K.TWO,), dense()),
    Row("test_scan_mvn", TEST, K.vector_walk, (K.TWO,), dense()),
    Row("LGSSM smoother, all parameters, inputs", DYNAMAX, K.inputs, (K.PUSH[:, 0], K.THREE),
        dense()),
    Row("LGSSM time-varying", DYNAMAX, K.varying, (K.MATRICES, K.TWO), dense()),
    Row("LGSSM filter", DYNAMAX, K.plain, (K.TWO,), L.filtered),
    Row("kf_tracking", DYNAMAX, K.tracking, (K.TWO,), dense()),
    Row("LGSSM, batch of sequences", DYNAMAX, K.batch, (K.MANY,), dense()),
    Row("kf_linreg", DYNAMAX, K.constant_coefficient, (K.INPUT, K.ONE), dense()),
    Row("SLDS, regimes known", DYNAMAX, K.regimes_known, (K.REGIMES, K.TWO), dense()),
    Row("Kalman filtering and smoothing, mlgssm, RTS vs BIFM", RXINFER, K.plain, (K.TWO,),
        dense()),
    Row("local level (Nile)", STATS, K.level, (_NILE,), dense()),
    Row("local level, gaps", STATS, K.level, (K.GAPS,), dense()),
    Row("local level, P1=1e12", STATS, K.level_diffuse, (K.ONE,), dense(1e-5)),
    Row("local linear trend", STATS, K.trend, (K.ONE,), dense()),
    Row("trend + trigonometric seasonal 12 (CO2)", STATS, K.wave, (K.MONTHS,), dense()),
    Row("level + damped cycle", STATS, K.cycle, (K.ONE,), dense()),
    Row("time-varying regression", STATS, K.varying_coefficient, (K.INPUT, K.ONE), dense()),
    Row("DynamicFactor", STATS, K.factor, (K.THREE,), dense()),
    # -- parameters learnt
    Row("LGSSM learning (EM / Gibbs)", DYNAMAX, L.learning, (K.TWO,)),
    Row("lssm (ARD, missing)", BAYESPY, L.loadings, (_HOLES,)),
    Row("lssm, time-varying dynamics", BAYESPY, L.mixing, (_MIXED, K.TWO)),
    Row("Autoregressive Models (observed)", RXINFER, partial(L.autoregression, order=2),
        (K.LONG,)),
    Row("Latent AR(2), scalars in the carry", RXINFER, L.latent_pair, (K.ONE,)),
    Row("Latent VAR", RXINFER, L.learning, (K.TWO,)),
    Row("GP regression by SSM", RXINFER, K.matern, (K.ONE,)),
    Row("Bayesian structured time series", RXINFER, L.structured, (K.MONTHS,)),
    Row("DynamicFactor, learnt", STATS, L.factor, (K.THREE,)),
    Row("VARMAX(1,0) + measurement error", STATS, L.learning, (K.TWO,)),
    Row("AutoReg(4)", STATS, partial(L.autoregression, order=4), (K.LONG,)),
    Row("AutoReg(12)", STATS, partial(L.autoregression, order=12), (K.LONG,)),
    Row("controlled LDS: learn", JOPA, L.controlled, (K.PUSH, K.TWO)),
    Row("plan", JOPA, L.planned, (L.GOAL,), L.best_plan, options={"decide": "u"}),
)
