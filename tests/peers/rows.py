"""The table's models whose latents are continuous and that did not compile as shipped when it was
made; with those that did, and those of discrete latents, every row there is."""

from __future__ import annotations

from functools import partial

import numpy as np

import jopa_ppl as jp

from . import counts, curved, forecasts, regressions, series
from .judges import draws, grid, whole
from .open import UNRUN, WHY
from .row import BAYESPY, DOCS, DYNAMAX, EX, NB, RXINFER, STATS, TEST, Row
from .rows_discrete import DISCRETE
from .rows_further import FURTHER
from .rows_shipped import SHIPPED

R, C, S, B, F = regressions, counts, series, curved, forecasts

_CLASSES = (R.SPARSE > 0).astype(float)
_UCB = (C.DEPT, C.MALE, C.APPLIED, C.ADMITTED)
_VISITS = (R.PATIENT, R.WEEK, R.FVC)
_IMPUTED = jp.condition(R.imputation, {"x": R.HOLES})

CONTINUOUS: tuple[Row, ...] = (
    Row("Poisson regression", BAYESPY, C.poisson_regression, (C.X, C.COUNTS)),
    Row("effect_handlers: regression", NB, R.effects, (R.X, R.SPARSE)),
    Row("ar2 (scan, condition)", EX, S.ar2_scan, (S.AR,)),
    Row("local level (Nile): scale priors", STATS, S.local_level, (S.SERIES,), nuts=0.3),
    Row("ucbadmit: no correlation", EX, C.ucbadmit_independent, _UCB),
    # -- regressions and hierarchies
    Row("minipyro: in a plate", EX, R.minipyro_plated, (R.DIVORCE,), grid()),
    Row("bayesian_regression: intercept", NB, R.divorce_centred, (R.DIVORCE,), grid()),
    Row("bayesian_regression: age", NB, R.divorce_age, (R.A, R.DIVORCE)),
    Row("bayesian_regression: age and marriage", NB, R.divorce_both, (R.A, R.M, R.DIVORCE)),
    Row("bayesian_regression, measurement error", NB, R.measurement_error,
        (R.A, R.SPREAD, R.MEASURED), nuts=0.3),
    Row("hierarchical linear regression", NB, R.hierarchical, _VISITS, nuts=0.3),
    Row("hierarchical linear regression, smoking levels", NB, R.smoking,
        (R.SMOKES, *_VISITS), nuts=0.3),
    Row("eight schools", DOCS, R.eight_schools, (R.ERRORS, R.SCHOOLS)),
    # What a spread may be off says where a belief is short of its own best: nu, mu.
    Row("eight schools: not centred", DOCS, R.eight_schools_noncentred, (R.ERRORS, R.SCHOOLS),
        draws(scale=0.4)),
    Row("horseshoe (normal): centred", EX, R.horseshoe_centred, (R.X, R.SPARSE)),
    Row("horseshoe (bernoulli)", EX, R.horseshoe_bernoulli, (R.X, _CLASSES)),
    Row("robust regression (scale mixture): Student-t", BAYESPY, R.robust, (R.A, R.TAIL),
        draws(scale=0.6), nuts=0.3),
    Row("a line for the log scale", NB, R.heteroscedastic, (R.A, R.TAIL)),
    Row("bayesian_cuped: factored", NB, R.cuped_factored, (R.CUPED[:, 0], R.CUPED[:, 1])),
    Row("consensus_mc", NB, R.consensus, (R.DECAY_X, R.DECAY), nuts=0.3),
    Row("mv iid inverse Wishart: InverseGamma", RXINFER, R.inverse_gamma, (R.SQUARE,)),
    # -- counts, coins, choices
    Row("Coin toss", RXINFER, C.coin_toss, (C.COINS,), grid()),
    Row("Coin toss: Binomial", RXINFER, C.coin_binomial, (np.array(21.0),), grid()),
    Row("Litter model", RXINFER, C.litter, (C.LITTERS,), grid()),
    Row("baseball: fully pooled", EX, C.fully_pooled, (C.BATS, C.HITS), grid()),
    Row("baseball: pooled (Beta-Binomial)", EX, C.partially_pooled, (C.BATS, C.HITS)),
    Row("baseball: partially pooled logit", EX, C.pooled_logit, (C.BATS, C.HITS)),
    Row("logistic_regression", NB, C.logistic, (C.X, C.CLASS), nuts=0.3),
    Row("Binomial regression", RXINFER, C.binomial_regression, (C.X, C.TRIALS)),
    Row("contextual bandits", RXINFER, C.bandit, (C.ARMS, C.PULLS, C.REWARD)),
    Row("truncated", NB, C.truncated, (np.abs(C.X[:, 0]) + 0.3,), grid()),
    # -- series
    Row("CMGF Bernoulli SSM", DYNAMAX, S.bernoulli_series, (S.COINS,), nuts=0.3),
    # -- structural models, forecasts
    Row("test_scan_promote (obs=1.0)", TEST, B.promoted, (10,)),
    # -- what bends
    Row("gp (LogNormal hyperparameters)", EX, B.gp, (B.CURVE, B.WIGGLE)),
    Row("EKF/UKF pendulum", DYNAMAX, B.pendulum_ekf, (B.ANGLES,), nuts=0.3),
    Row("EKF/UKF spiral", DYNAMAX, B.spiral, (B.SPIRAL,)),
    Row("EKF/UKF spiral, EKF MLP: network", DYNAMAX, B.network_transition, (B.SPIRAL,)),
    Row("ode (Lotka-Volterra)", EX, B.lotka_volterra, (B.PREY,)),
    Row("Nonlinear sensor fusion", RXINFER, B.sensor_fusion, (B.RANGES,)),
    Row("CVI: nonlinear, noise learnt", RXINFER, partial(B.cvi, learnt=True), (B.BENDS,),
        nuts=0.3),
    Row("CVI: nonlinear, noise fixed", RXINFER, partial(B.cvi, learnt=False), (B.BENDS,)),
    # -- more of each
    Row("gamma_shape", BAYESPY, C.gamma_shape, (C.SHAPED,), grid(0.9, 0.3, 0.2)),
    Row("dais_demo (GP classification)", EX, B.gp_classes, (B.CURVE, B.LABELS)),
    Row("bayesian_imputation: condition", NB, _IMPUTED, (None, R.DIVORCE),
        whole(R.imputation, (None, R.DIVORCE))),
    Row("Litter model: shape unknown", RXINFER, C.litter_unknown_shape, (C.LITTERS,)),
    Row("baseball: not pooled", EX, C.not_pooled, (C.BATS, C.HITS)),
    Row("mortality", EX, C.mortality, (C.AGE, C.AREA, C.YEAR, C.PEOPLE, C.DEATHS), nuts=0.3),
    Row("Multinomial regression", RXINFER, C.multinomial_regression, (C.X, C.GRADES)),
    Row("Assessing people skills: Bradley and Terry", RXINFER, C.skills, (C.LEFT, C.RIGHT, C.WON)),
    Row("ordinal", NB, C.ordinal, (C.X[:, 0], C.GRADES)),
    Row("censoring", NB, C.censored, (C.STOPPED, C.SEEN), grid()),
    Row("ar2 (python loop)", EX, S.ar2_loop, (S.AR,)),
    Row("stochastic_volatility", EX, S.volatility, (S.RETURNS,)),
    Row("stochastic_volatility: scan", EX, S.volatility_scan, (S.RETURNS,), nuts=0.3),
    Row("stochastic_volatility: mean-reverting", EX, S.volatility_ar, (S.RETURNS,)),
    Row("CMGF Poisson SSM", DYNAMAX, S.poisson_series, (S.COUNTS,), nuts=0.3),
    Row("Probit SSM", RXINFER, S.probit_series, (S.COINS,)),
    Row("robust LSSM (Gamma per step)", BAYESPY, S.robust_level, (S.SERIES,)),
    Row("robust LSSM (Gamma per step): Student-t", BAYESPY, S.robust_t_level, (S.SERIES,)),
    Row("seasonal dummy (4): scalars", STATS, S.seasonal_scalars, (S.SEASON,)),
    Row("level + regression", STATS, F.level_regression, (F.INPUT, F.REGRESSED)),
    Row("ARMA(1,1): observation noise .1", STATS, partial(F.arma, noise=0.1), (F.ARMA,)),
    Row("hierarchical_forecasting: levels drawn", NB, F.panel_levels, (F.PANEL,)),
    Row("LGSSM with singular Q: jitter", DYNAMAX, F.jittered, (F.FORCE, F.HEIGHTS)),
    Row("tbip", NB, F.ideal_points, (F.WORDS,)),
    Row("MNIW prior (A | W)", DYNAMAX, F.matrix_normal, (F.OSCILLATION + 0.1,)),
    Row("gp, amplitude learnt (K/k)", EX, B.gp_amplitude, (B.CURVE, B.WIGGLE)),
    Row("hsgp (birthdays)", EX, B.hsgp, (B.CURVE, B.WIGGLE)),
    Row("bnn", EX, B.bnn, (B.CURVE, B.WIGGLE)),
    Row("CMGF MLP classification", DYNAMAX, B.bnn_classes, (B.CURVE, B.LABELS)),
    Row("Lorenz", RXINFER, B.lorenz, (B.LORENZ,)),
    Row("ode (Lotka-Volterra): rates", EX, B.lotka_volterra_rates, (B.PREY,)),
    Row("Mountain car", RXINFER, B.mountain_car, (B.CAR,)),
    # -- once refused
    Row("funnel", EX, B.funnel, ()),
    Row("funnel: small", EX, B.small_funnel, (), grid(0.2, 0.1, 0.7)),
    Row("HGF", RXINFER, S.hgf, (S.SERIES,)),
    Row("minipyro", EX, R.minipyro, (R.DIVORCE,)),
    Row("horseshoe (normal)", EX, R.horseshoe, (R.X, R.SPARSE)),
    Row("bayesian_cuped (joint)", NB, R.cuped, (R.CUPED,)),
    Row("mv iid inverse Wishart", RXINFER, R.inverse_wishart, (R.SQUARE,)),
    Row("bayesian_imputation (obs with latents)", NB,
        partial(R.imputation_in_place, R.HOLES), (R.DIVORCE,)),
    Row("ucbadmit", EX, C.ucbadmit, _UCB),
    Row("var2 (LKJ)", EX, S.var_lkj, (S.VAR,)),
    Row("holt_winters", EX, S.holt_winters, (S.SERIES,)),
    Row("holt_winters, smoothing fixed", EX, S.holt_winters_fixed, (S.SERIES,)),
    Row("ulgssm (deterministic drift)", RXINFER, S.deterministic_drift, (S.SERIES,)),
    Row("smooth trend", STATS, S.smooth_trend, (S.SERIES,)),
    Row("seasonal dummy (4), vector carry", STATS, partial(S.seasonal, period=4), (S.SEASON,)),
    Row("seasonal dummy (12)", STATS, partial(S.seasonal, period=12), (S.SEASON,)),
    Row("Latent AR(2), vector carry", RXINFER, partial(S.ar_register, order=2), (S.SERIES,)),
    Row("latent AR(4) + noise, vector carry", STATS, partial(S.ar_register, order=4),
        (S.SERIES,)),
    Row("ARMA(1,1)", STATS, F.arma_exact, (F.ARMA,)),
    Row("ARMA, innovations form", STATS, F.arma_innovations, (F.ARMA,)),
    Row("time_series_forecasting (SGT)", NB, F.global_trend, (F.SALES,)),
    Row("hierarchical_forecasting", NB, F.panel, (F.PANEL,)),
    Row("Structural dynamics (augmented KF)", RXINFER, F.singular, (F.FORCE, F.HEIGHTS)),
    Row("hierarchical_stacking", NB, F.stacking, (F.PLACES, F.MODELS)),
    Row("gaussian_shells / neutra: a factor", EX, B.banana, ()),
    Row("test_scan (running mean carry)", TEST, B.running_mean, (B.BENDS,)),
    Row("test_scan_reparam (LogNormal states)", TEST, B.lognormal_states, (np.abs(B.BENDS),)),
    Row("test_cond", TEST, B.conditional, (B.BENDS,)),
)

EVERY = CONTINUOUS + DISCRETE + SHIPPED + FURTHER
ROWS = tuple(r for r in EVERY if r.name not in WHY)
UNTRIED = tuple(r for r in EVERY if WHY.get(r.name) == UNRUN)
OPEN = tuple(r for r in EVERY if WHY.get(r.name, UNRUN) != UNRUN)
