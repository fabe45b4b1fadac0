"""A Gaussian over matrices side by side, [A B ..] (n, p), with precision W (x) S + U (x) V.

It is what a product A x + B u in the mean of a Gaussian with precision W leaves of a prior that is
independent by element with U (x) V for its precisions: the first term comes from the product, the
second from the priors. See `linalg.matrix` for how it is solved.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array, random
from jax.scipy.linalg import solve_triangular

from jopa_ppl.beliefs.base import Factor, Variable
from jopa_ppl.beliefs.gaussian import NARROW, GaussianBelief, log_density
from jopa_ppl.language.distributions import MatrixSpread
from jopa_ppl.linalg import matrix
from jopa_ppl.linalg.coefficients import Coefficients
from jopa_ppl.linalg.families import diagonal, symmetric
from jopa_ppl.linalg.matrix import MatrixEntries, MatrixMoments, MatrixProduct
from jopa_ppl.linalg.slopes import expand_at
from jopa_ppl.program.refs import Ref


class Own(NamedTuple):
    """Coefficients of a factor in a form of the belief's own.

    K: the coefficients; fits: whether they are all there is to the residual; noise: the precision
    (n,) of the elements of this residual and its logarithm, where it is not that of the site.
    """

    K: Coefficients | Array
    fits: Array | bool = True
    noise: tuple[Array, Array] | None = None


class Terms(NamedTuple):
    """Both terms of the precision, W (x) S + U (x) V."""

    W: Array
    S: Array
    U: Array
    V: Array


class MatrixGaussian(NamedTuple):
    """Mean (n, p), the pencils of the precision, and its terms."""

    mean: Array
    left: Array
    right: Array
    spread: Array
    logdet: Array
    terms: Terms

    @property
    def moments(self) -> MatrixMoments:
        n, p = self.mean.shape
        return MatrixMoments(self.mean, self.left, self.right, self.spread, jnp.zeros((n, n)),
                             jnp.zeros((p, p)))


class MatrixBelief(GaussianBelief):
    """Members of shape (n, p_k) or (n,), side by side: M (n, p).

    Its statistics are the mean, the covariance as `linalg.matrix.MatrixMoments` has it, and zeros
    (X, Y) by term ("link", "prior"), whose slopes are its message.
    """

    kind, label, rank = "matrix", "joint Gaussian (matrix: W (x) S + U (x) V)", 2
    note = "one matrix, its precision W (x) S + U (x) V, solved in O(d^3)"
    parts = ("mean", "left", "right", "spread")
    checked = True

    def __init__(self, latents: Mapping[str, Variable], **about: Any) -> None:
        super().__init__(latents, **about)
        self.columns: dict[str, slice] = {}
        self.p = 0
        for name, v in latents.items():
            self.n = v.site.shape[0]
            self.columns[name] = slice(self.p, self.p + v.dims // self.n)
            self.p += v.dims // self.n

    def fits(self, arrays: Mapping[str, Any]) -> Array | bool:
        """Whether the product is one, its known noise the same in all elements of its plates, and
        the precisions of the priors U (x) V_k: with P_ij the precisions of elements that R and C
        whiten, R' diag(P_ij, i) R is U but for a factor."""
        alike, first = [], None
        for name in arrays.keys() - set(self.members):
            P = arrays[name].precision
            if P is not None:
                flat = P.reshape((-1, *P.shape[arrays[name].offset.ndim - 1:]))
                alike.append(~(jnp.abs(flat - flat[0]).max() > 1e-12 * jnp.abs(flat[0]).max()))
        for name in self.members:
            rows, P = arrays[name].K.rows, arrays[name].precision.reshape(self.n, -1)
            U = jnp.einsum("ai,aj,ak->jik", rows, P / P[:1], rows)
            U = U / jnp.trace(U, axis1=1, axis2=2)[:, None, None]
            first = U[0] if first is None else first
            alike.append(~(jnp.abs(U - first).max() > 1e-10 * jnp.abs(first).max()))
        fine = jnp.stack(alike).all()
        return jnp.stack([jnp.asarray(a.fits) for a in arrays.values()]).all() & fine

    def zero(self) -> MatrixGaussian:
        n, p = self.n, self.p
        terms = Terms(jnp.eye(n), jnp.zeros((p, p)), jnp.eye(n), jnp.eye(p))
        return MatrixGaussian(jnp.zeros((n, p)), jnp.eye(n), jnp.eye(p), jnp.zeros((n, p)),
                              jnp.zeros(()), terms)

    def stats(self, q: MatrixGaussian, mask: None) -> tuple[Array, tuple, dict]:
        return q.mean, (q.left, q.right, q.spread), {
            term: (jnp.zeros((self.n, self.n)), jnp.zeros((self.p, self.p)))
            for term in ("link", "prior")}

    def view(self, stats: tuple[Array, tuple, dict], factor: Factor) -> MatrixMoments:
        mean, (left, right, spread), probes = stats
        rows, columns = probes["prior" if factor.site.name in self.latents else "link"]
        at = self.places(factor)
        found = MatrixMoments(mean[:, at], left, right[at], spread, rows,
                              columns[at[:, None], at[None, :]])
        lead = (None,) * (len(factor.plates) + factor.in_time)
        return jax.tree.map(lambda x: x[lead] if lead else x, found)

    def places(self, factor: Factor) -> np.ndarray:
        """The columns of M that a factor touches, in its order."""
        return np.concatenate([np.arange(self.p)[self.columns[r.site]]
                               for r in factor.instances_of(self)])

    def own_coefficients(self, factor: Factor, residual: Callable, sizes: tuple[int, int],
                         roots: Callable[[], list[Array]]) -> Own:
        """The coefficients of a factor: of a site that it meets `MatrixProduct`, with batch axes of
        size 1 (0 of a mean that is not affine, whose `own_slopes` are taken at every belief), and
        of its own prior `MatrixEntries`.

        Args:
            factor: one that the matrix is in.
            residual: (*1, n) of vectors: the matrix's members one after another, the main slot
                where there is another block, and what is known.
            sizes: of the last two.
            roots: gives the Cholesky factors of the covariance of rows and of columns, of a prior
                that has these.
        """
        if factor.site.name in self.members:
            constant = residual(jnp.zeros(self.latents[factor.site.name].dims), jnp.zeros(0))
            constant = constant.reshape(self.n, -1)
            if "row" not in factor.site.outputs:
                return Own(MatrixEntries(constant, *(jnp.eye(n) for n in constant.shape)))
            rows, columns = (solve_triangular(x, jnp.eye(len(x), dtype=x.dtype), lower=True)
                             for x in roots())
            logdet = 2 * (jnp.log(jnp.diagonal(rows)).sum() / len(rows)
                          + jnp.log(jnp.diagonal(columns)).sum() / len(columns))
            one = jnp.ones(constant.size)
            return Own(MatrixEntries(constant, rows, columns), noise=(one, logdet * one))
        refs, main = factor.instances_of(self), sizes[0]
        p = sum(self.latents[r.site].dims for r in refs) // self.n

        def product(M: Array, h: Array) -> Array:
            found = residual(self._vector(refs, M), h[:main], h[main:])
            return found[(0,) * (found.ndim - 1)]

        about = product, self.n, p, sum(sizes)
        if factor.curved:
            return Own(jnp.zeros(()), matrix.is_product(*about))
        found, fits = matrix.probed(*about)
        lead = (None,) * (factor.in_time + len(factor.plates))
        return Own(jax.tree.map(lambda x: x[lead] if lead else x, found), fits)

    def own_slopes(self, factor: Factor, residual: Callable, points: Sequence[Array],
                   copied: Sequence[bool]) -> MatrixProduct:
        """The coefficients of a mean M f(h), linearised in h: from its first row.

        Args:
            factor: whose mean it is.
            residual: (*batch, n) of the members' values, {ref: value}, and vectors.
            points: of the other slots, to linearise at; copied: as `linalg.slopes.expand_at` asks.
        """
        at, lead = self.places(factor), (1,) * (factor.in_time + len(factor.plates))

        def at_row(row: Array, *points: Array) -> Array:
            M = jnp.zeros((self.n, self.p), row.dtype).at[0, at].set(row)
            return residual({Ref(n): v for n, v in self._values(M).items()}, *points)

        none = jnp.zeros(len(at))
        constant = expand_at(partial(at_row, none), points, copied)
        carried = expand_at(lambda *v: at_row(*v)[..., :1], [none, *points], [False, *copied])
        return MatrixProduct(constant, jnp.eye(self.n).reshape((*lead, self.n, self.n)),
                             carried[..., 0, 1:, :])

    def terms(self, message: tuple) -> Terms:
        """The precision that a message gives."""
        found = []
        for term in ("link", "prior"):
            rows, columns = message[2][term]
            size = jnp.trace(rows)                                  # -1/2 tr(W) tr(S), below 0
            W = jnp.where(size < 0, self.n * rows / jnp.where(size < 0, size, 1.0),
                          jnp.eye(self.n))
            found += [symmetric(W), symmetric(-2 / self.n * columns)]
        return Terms(*found)

    def update(self, q: MatrixGaussian, message: tuple, mask: None) -> MatrixGaussian:
        terms = self.terms(message)
        pencils = matrix.solve(*terms)
        mean = q.mean + matrix.apply_covariance(pencils, message[0])
        return MatrixGaussian(mean, *pencils, terms)

    def message(self, q: MatrixGaussian, mask: None) -> tuple[Array, tuple, dict]:
        W, S, U, V = q.terms
        slopes = lambda a, b: (-0.5 * a * jnp.trace(b), -0.5 * b * jnp.trace(a))
        return jnp.zeros_like(q.mean), jax.tree.map(jnp.zeros_like, q[1:4]), {
            "link": slopes(W, S), "prior": slopes(U, V)}

    def free_dims(self, mask: None) -> int:
        return self.n * self.p

    def precisions(self, message: tuple, mask: None) -> Array:
        W, S, U, V = map(diagonal, self.terms(message))
        return W[:, None] * S + U[:, None] * V

    def variances(self, q: MatrixGaussian) -> Array:
        return q.moments.variance

    def completed(self, q: MatrixGaussian, mask: None) -> MatrixGaussian:
        return q

    def _members(self, vector: Array) -> Array:
        """Numbers in the order of the members' elements, (n p,), as M."""
        sizes = np.cumsum([v.dims for v in self.latents.values()])[:-1]
        return jnp.concatenate([x.reshape(self.n, -1) for x in jnp.split(vector, sizes)], -1)

    def _vector(self, refs: Sequence[Ref], M: Array) -> Array:
        """The elements of some members one after another, from these side by side, (n, p)."""
        sizes = [self.latents[r.site].dims // self.n for r in refs]
        pieces = jnp.split(M, np.cumsum(sizes)[:-1], -1)
        return jnp.concatenate([x.ravel() for x in pieces])

    def _values(self, M: Array) -> dict[str, Array]:
        return {n: M[:, self.columns[n]].reshape(v.site.shape) for n, v in self.latents.items()}

    def break_symmetry(self, q: MatrixGaussian, key: Array, size: Array | float) -> MatrixGaussian:
        noise = self._members(random.normal(key, (self.n * self.p,), q.mean.dtype))
        return q._replace(mean=q.mean + size * jnp.sqrt(q.moments.variance) * noise,
                          spread=NARROW * q.spread)

    def draw(self, q: MatrixGaussian, key: Array, mask: Any
             ) -> tuple[MatrixGaussian, dict[str, Array]]:
        noise = random.normal(key, q.mean.shape, q.mean.dtype)
        M = q.mean + q.left @ (jnp.sqrt(q.spread) * noise) @ q.right.T
        return q._replace(mean=M, spread=jnp.zeros_like(q.spread)), self._values(M)

    def log_prob(self, q: MatrixGaussian, mask: None, values: Mapping[str, Array]) -> Array:
        gap = jnp.concatenate([values[n].reshape(self.n, -1) for n in self.members], -1) - q.mean
        W, S, U, V = q.terms
        square = jnp.sum(gap * (W @ gap @ S + U @ gap @ V))
        return log_density(square, q.logdet, self.n * self.p)

    def site(self, q: MatrixGaussian, name: str) -> tuple[Array, ...]:
        at = self.columns[name]
        return q.mean[:, at], q.left, q.right[at], q.spread

    def shaped(self, name: str, parts: Mapping[str, Array]
               ) -> tuple[Array, Array, dict[str, Array]]:
        shape, own = self.latents[name].site.shape, dict(parts)
        variance = matrix.variances(own["left"], own["right"], own["spread"])
        return own["mean"].reshape(shape), variance.reshape(shape), own

    def distribution(self, name: str, parts: Mapping[str, Array], certain: bool
                     ) -> dist.Distribution:
        return MatrixSpread(*(parts[p] for p in self.parts), self.latents[name].site.shape)

    def jointly(self, chosen: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(n for n in self.members if n in chosen)

    def joint(self, q: MatrixGaussian, names: tuple[str, ...]) -> tuple[Array, Array]:
        """Mean (m,) and covariance (m, m): as many numbers as the square of the members' own."""
        roots = [jnp.einsum("ia,jb,ab->ijab", q.left, q.right[self.columns[n]],
                            jnp.sqrt(q.spread)).reshape(self.latents[n].dims, -1) for n in names]
        root = jnp.concatenate(roots)
        values = self._values(q.mean)
        return jnp.concatenate([values[n].ravel() for n in names]), root @ root.T

    def temper(self, q: MatrixGaussian, power: float, mask: None) -> MatrixGaussian:
        terms = q.terms._replace(W=power * q.terms.W, U=power * q.terms.U)
        return q._replace(left=q.left * power**-0.5, terms=terms,
                          logdet=q.logdet + self.n * self.p * jnp.log(power))
