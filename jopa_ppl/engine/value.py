"""Expected costs of what is to come, as quadratic forms, and how the sites of a step leave them.

A form Q stands for 1/2 h' Q h, h = (1, head, z_{t-k}, .., z_t) (see `steps.py`). Going backward
through the program, a site z that nature draws is averaged out, z = M h + noise:

    Q  <-  E[T' Q T] + tr(Q_zz C),   T the identity but for the rows M of z, C its covariance;

a decision is minimised out together with its entropy: q(z | h) = N(-Q_zz^-1 Q_zh h, Q_zz^-1),

    Q  <-  Q - Q_hz Q_zz^-1 Q_zh + log|Q_zz| - n log 2 pi.

Elements that are data cost their -log p and are put in their place first.

What a decision takes off a form may be nearly all of it: Q is then left with the rounding of what
was there. `Form.lost` is a form as well: eps times it is the size of that error.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.linalg import solve_triangular

from jopa_ppl.arrays import where
from jopa_ppl.engine.conditional import Conditional
from jopa_ppl.engine.steps import SiteMap, quadratic
from jopa_ppl.linalg.factors import LOG_2PI
from jopa_ppl.linalg.families import diagonal, inverse_and_logdet, symmetric


class Node(NamedTuple):
    """A latent site of a step (axes: time or 1, plates).

    rule: how it follows where nature draws it; cost (.., H, H): of a decision its own density, of
    another site that of its elements that are data; given (.., n): 1 where it is data; value: the
    data; past: True where it stands before the first decision; fix: L (.., n, n) and d (.., n) of a
    site that is data in part, of mean L m + d where its own is m.
    """

    rule: Conditional
    cost: Array
    given: Array
    value: Array
    past: Array
    fix: tuple[Array, Array] | None = None


class Rule(NamedTuple):
    """How a decision is taken: N(gain h, cov), gain (.., n, H), cov (.., n, n); logdet (..): log
    determinant of the covariance of those of its elements that are free."""

    gain: Array
    cov: Array
    logdet: Array

    @staticmethod
    def of(node: Node) -> Rule:
        """As it would be drawn by the program."""
        free = 1.0 - node.given
        gain = (node.rule.mean * free[..., None]).at[..., 0].add(node.given * node.value)
        both = free[..., :, None] * free[..., None, :]
        cov, eye = node.rule.cov * both, jnp.eye(free.shape[-1], dtype=free.dtype)
        return Rule(gain, cov, inverse_and_logdet(cov + node.given[..., None] * eye)[1])


class Form(NamedTuple):
    """Q (.., H, H), and the form of the numbers that rounding took digits of, lost (.., H, H), or
    None where nobody asks."""

    Q: Array
    lost: Array | None

    def where(self, past: Array, old: Form) -> Form:
        """This form where the step is not of the `past`, else the `old` one."""
        return where(past[..., None, None], old, self)


def corner(constant: Array, size: int) -> Array:
    """A form (.., size, size) of no more than a constant, given twice over."""
    return constant[..., None, None] * jnp.zeros((size, size)).at[0, 0].set(1.0)


def cost(site: SiteMap, weight: Array, logdet: Array) -> Array:
    """E[-log p] of a Gaussian site, `weight` times, as a form (.., H, H).

    Args:
        site: its map.
        weight: (.., n|1), of every element of independent ones.
        logdet: E[log P] (.., n) of independent elements, E[log|P|] (..) of a matrix.
    """
    n = site.K.shape[-2 - len(site.slots)]
    if site.independent:
        form = quadratic(site.K, site.slots, site.precision * weight)
        constant = (jnp.broadcast_to(weight, (*weight.shape[:-1], n)) * (LOG_2PI - logdet)).sum(-1)
    else:
        form = quadratic(site.K, site.slots, site.precision * weight[..., None])
        constant = weight[..., 0] * (n * LOG_2PI - logdet)
    return form + corner(constant, form.shape[-1])


def told(rule: Conditional, fix: tuple[Array, Array]) -> Conditional:
    """How a site follows some elements of which are data: `fix_of` how it would without.

    Args:
        rule: of means (.., n, H); fix: L (.., n, n) and d (.., n).
    """
    L, d = fix
    mean = (L @ rule.mean).at[..., 0].add(d)
    cov, K = L @ rule.cov @ jnp.swapaxes(L, -1, -2), rule.K
    return Conditional(mean, cov, None if K is None else K.after(L), rule.slots)


def fix_of(site: SiteMap, given: Array, value: Array) -> tuple[Array, Array]:
    """L and d of a site some elements of which are data, z_g = value; with P the precision and m
    the mean that it would have without,

        z = L m + d + noise:    z_f = m_f + G (value - m_g),    G = -P_ff^-1 P_fg.

    Args:
        site: its map.
        given: (.., n), 1 where it is data, else 0.
        value: (.., n), the data; any finite number elsewhere.

    Returns:
        L (.., n, n) and d (.., n).
    """
    G = _regression(site, given)[0]
    data, n = given * value, given.shape[-1]
    L = (1.0 - given)[..., None] * jnp.eye(n, dtype=given.dtype) - G
    return L, data + (G @ data[..., None])[..., 0]


def cost_of_data(site: SiteMap, logdet: Array, given: Array) -> Array:
    """E[-log p(z_g | h)] of those elements of a site that are data, as a form in h.

    Args:
        site: its map.
        logdet: as in `cost`.
        given: (.., n), 1 where it is data, else 0.

    Returns:
        (.., H, H).
    """
    G, P, P_fg, logdet_f = _regression(site, given)
    inside = P * given[..., :, None] * given[..., None, :]
    form = quadratic(site.K, site.slots, symmetric(inside + jnp.swapaxes(P_fg, -1, -2) @ G))
    left = ((given * logdet).sum(-1) if logdet.ndim == given.ndim
            else jnp.where(given.any(-1), logdet - logdet_f, 0.0))
    return form + corner(given.sum(-1) * LOG_2PI - left, form.shape[-1])


def _regression(site: SiteMap, given: Array) -> tuple[Array, Array, Array, Array]:
    """G, P, P_fg and log|P_ff| of a site with some elements given; P (.., n, n)."""
    P, free = site.precision, 1.0 - given
    eye = jnp.eye(given.shape[-1], dtype=given.dtype)
    if P.ndim == given.ndim:
        P = P[..., None] * eye
    P_fg = P * free[..., :, None] * given[..., None, :]
    P_ff = P * free[..., :, None] * free[..., None, :] + given[..., None] * eye
    inverse, logdet = inverse_and_logdet(P_ff)
    return -inverse @ P_fg, P, P_fg, logdet


def average(form: Form, node: Node, where: np.ndarray) -> Form:
    """Average out a site that nature draws; M and the noise may be uncertain.

    Args:
        form: what is to come after the site, Q (.., H, H).
        node: the site.
        where: its places in h, (n,).

    Returns:
        the same seen from before the site, zero on its places.
    """
    Q = form.Q + node.cost
    Q_zz = Q[..., where[:, None], where[None, :]]
    out, lost = _substitute(Form(Q, form.lost), node.rule.mean, where)
    if node.rule.K is not None:
        out = out + node.rule.K.excess(node.rule.slots, Q_zz)
    return Form(out + corner((Q_zz * node.rule.cov).sum((-1, -2)), Q.shape[-1]), lost)


def followed(form: Form, node: Node, rule: Rule, where: np.ndarray) -> Form:
    """Average out a decision that is taken by a rule.

    Args:
        form, node, where: as in `average`.
        rule: gain (.., n, H), zero on the places of the decision itself.
    """
    Q, n = form.Q + node.cost, (1.0 - node.given).sum(-1)
    out, lost = _substitute(Form(Q, form.lost), rule.gain, where)
    spread = (Q[..., where[:, None], where[None, :]] * rule.cov).sum((-1, -2))
    return Form(out + corner(spread - rule.logdet - n * (LOG_2PI + 1), Q.shape[-1]), lost)


def decision(form: Form, node: Node, where: np.ndarray
             ) -> tuple[Form, Rule, tuple[Array, Array]]:
    """Minimise a decision out.

    Args:
        form, node, where: as in `average`.

    Returns:
        the form that is left; the rule by which the decision is taken, of covariance Q_zz^-1; how
        many eps of the covariance rounding takes, of its worst element and the sum of squares, 0
        where nobody asks.
    """
    n = len(where)
    eye = jnp.eye(n, dtype=form.Q.dtype)
    free = 1.0 - node.given
    T = jnp.zeros((*node.given.shape[:-1], n, form.Q.shape[-1]))
    T = T.at[..., :, where].set(eye * free[..., None]).at[..., 0].set(node.given * node.value)
    Q, lost = _substitute(Form(form.Q + node.cost, form.lost), T, where)
    Q_zz = symmetric(Q[..., where[:, None], where[None, :]]) + node.given[..., None] * eye
    rows = Q[..., where, :].at[..., where].set(0.0)
    chol = jnp.linalg.cholesky(Q_zz)
    gain = -_solve_lower(chol, _solve_lower(chol, rows), transpose=True)
    white = _solve_lower(chol, jnp.broadcast_to(eye, Q_zz.shape))
    cov = jnp.swapaxes(white, -1, -2) @ white * free[..., :, None] * free[..., None, :]
    logdet = 2 * jnp.log(jnp.diagonal(chol, axis1=-2, axis2=-1)).sum(-1)
    out, after = _substitute(Form(Q, lost), gain, where)
    out = out + corner(logdet - free.sum(-1) * LOG_2PI, Q.shape[-1])
    rule = Rule(gain.at[..., 0].add(node.given * node.value), cov, -logdet)
    if lost is None:
        return Form(out, None), rule, (jnp.zeros(()),) * 2
    # A form of no more than a constant has no digits that a decision could have used.
    before = jnp.maximum(diagonal(Q), 0.0).at[..., where].set(0.0).at[..., 0].set(0.0)
    after = after + before[..., None] * jnp.eye(Q.shape[-1])
    tied = (diagonal(Q_zz) + diagonal(lost)[..., where]) * diagonal(cov)
    tied = jnp.where(node.past[..., None], 0.0, tied)
    return Form(out, after), rule, (tied.max(initial=0.0), (tied**2).sum())


def _substitute(form: Form, rows: Array, where: np.ndarray) -> Form:
    """The form after z = rows h, T' Q T with T the identity but for the rows R of z: of a symmetric
    Q what is not of z, and U' R + R' U, where U = Q_z. + Q_zz R / 2."""
    Q = jnp.stack(jax.tree.leaves(form))
    Q_zz = Q[..., where[:, None], where[None, :]]
    others = np.ones(Q.shape[-1])
    others[where] = 0.0
    U = Q[..., where, :] * others + 0.5 * Q_zz @ rows
    half = (U[..., :, :, None] * rows[..., :, None, :]).sum(-3)
    found = Q * others[:, None] * others + half + jnp.swapaxes(half, -1, -2)
    return Form(found[0], None if form.lost is None else found[1])


def _solve_lower(chol: Array, rhs: Array, transpose: bool = False) -> Array:
    """Triangular solve with broadcast batch axes."""
    chol = jnp.broadcast_to(chol, (*rhs.shape[:-2], *chol.shape[-2:]))
    return solve_triangular(chol, rhs, lower=True, trans=1 if transpose else 0)
