"""Jointly Gaussian variables of any structure, with plates, eliminated by Funsor.

The density is proportional to exp(-1/2 z' J z + v' z), its precision J a sum of terms
-1/2 w' Lambda w over cliques w of named variables. Funsor's plated `sum_product` (Obermeyer et
al. 2019, "Tensor variable elimination") gives log Z; all else is a derivative of it.

Funsor holds a Gaussian as -1/2 |P' w - c|^2, Lambda = P P'. The square root of a singular Lambda
has no derivative, but needs none: append a column e to P and 0 or 1 to c, and at e = 0

    c = 0:  d^2 log Z / de de' = -Cov(w), and zero between columns of different cliques;
    c = 1:  d^2 log Z / da db' = Cov(w_a, w_b) for columns a and b of any two cliques.

The first gives every covariance in max(L) products, the second J^-1 times a vector. Funsor's QR
compression is off, having no derivative at singular matrices either.

Variables of no plate are eliminated by one dense Cholesky, cubic in their number; those in a
plate in each of its indices at once, then quadratic in the number of members where these are
summed onto a variable that is itself in a plate. Plates that cross (rows and columns) cost as
much as the smaller one unrolled, which Funsor does.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array


class Variable(NamedTuple):
    """A vector of length dim, replicated over plates."""

    dim: int
    plates: tuple[str, ...] = ()


class Term(NamedTuple):
    """-1/2 w' precision w, w the named variables side by side, once for each index of plates.

    precision (*plate sizes, L, L) is positive semi-definite, L the sum of the dims; plates hold
    those of every named variable, which is shared over the others.
    """

    names: tuple[str, ...]
    plates: tuple[str, ...]
    precision: Array


class Moments(NamedTuple):
    """mean[name] (*plates, dim) = J^-1 v; cov[i] (*plates, L, L) of the i-th term; log|J|."""

    mean: dict[str, Array]
    cov: list[Array]
    logdet: Array


class _Clique(NamedTuple):
    names: tuple[str, ...]
    plates: tuple[str, ...]  # exactly those of its variables, in the order of sizes
    root: Array  # root root' is the precision


def marginals(
    variables: dict[str, Variable],
    sizes: dict[str, int],
    terms: Sequence[Term],
    vectors: dict[str, Array],
) -> Moments:
    """Means, clique covariances and log|J| of the joint Gaussian of all variables.

    NaN where J is not positive definite or a precision not positive semi-definite.

    Args:
        variables: by name; sizes: lengths of plates; terms: of J, one at least; vectors: v by
            variable, (*plates, dim).

    Raises:
        ValueError: terms or vectors do not fit the variables.
    """
    _check(variables, sizes, terms, vectors)
    cliques, homes = _merge(variables, sizes, terms)
    value, hessian, columns, carriers = _linearise(variables, sizes, cliques)

    # All products at once: one for each row of the largest clique, and one for the vectors.
    rows = max(c.shape[-1] for c in columns)
    tangents = [jnp.zeros((rows + 1, *c.shape), c.dtype) for c in columns]
    for k in range(rows):
        tangents = [t.at[k, ..., k].set(1, mode="drop") for t in tangents]
    right = {n: jnp.zeros((rows, *c.shape), c.dtype) for n, c in carriers.items()}
    vectors = _ordered(vectors, variables, sizes)
    right = {n: jnp.concatenate([x, vectors[n][None]]) for n, x in right.items()}
    covs, mean = jax.vmap(hessian)(tangents, right)

    covs = [-jnp.moveaxis(c[: c.shape[-1]], 0, -1) for c in covs]
    covs = [0.5 * (c + jnp.swapaxes(c, -1, -2)) for c in covs]
    cov = [
        _spread(covs[home][..., index[:, None], index], cliques[home].plates, term.plates, sizes)
        for term, (home, index) in zip(terms, homes)
    ]
    mean = _ordered({n: m[-1] for n, m in mean.items()}, variables, sizes, back=True)

    count = [math.prod(sizes[p] for p in v.plates) for v in variables.values()]
    total = sum(n * v.dim for n, v in zip(count, variables.values()))
    value = value + sum(count)  # two carriers of -1/2 each
    return Moments(mean, cov, total * math.log(2 * math.pi) - 2 * value)


def sample(
    rng_key: Array,
    variables: dict[str, Variable],
    sizes: dict[str, int],
    terms: Sequence[Term],
    sample_shape: tuple[int, ...] = (),
) -> dict[str, Array]:
    """Joint draws from N(0, J^-1), name -> (*sample_shape, *plates, dim).

    J^-1 applied to a draw of N(0, J), the sum of a draw of N(0, Lambda) for each clique
    (Papandreou & Yuille 2010, perturb and solve). Arguments and errors: as in `marginals`;
    sample_shape of independent draws.
    """
    _check(variables, sizes, terms, None)
    cliques, _ = _merge(variables, sizes, terms)
    _, hessian, columns, carriers = _linearise(variables, sizes, cliques)

    def draw(key):
        vectors = dict(carriers)
        for clique, own_key in zip(cliques, jax.random.split(key, len(cliques))):
            noise = jax.random.normal(own_key, clique.root.shape[:-1], clique.root.dtype)
            noise = jnp.einsum("...ij,...j->...i", clique.root, noise)
            for name in clique.names:
                own = noise[..., _rows(variables, clique.names, (name,))]
                kept = _canonical(variables[name].plates, sizes)
                vectors[name] += _gather(own, clique.plates, kept)
        return _ordered(hessian(columns, vectors)[1], variables, sizes, back=True)

    # A product costs as much memory as log Z itself, so not all draws at once.
    keys = jax.random.split(rng_key, math.prod(sample_shape))
    draws = jax.lax.map(draw, keys, batch_size=32)
    return {name: z.reshape(*sample_shape, *z.shape[1:]) for name, z in draws.items()}


def _linearise(variables, sizes, cliques):
    """log Z and its second derivative, a linear map, at columns and carriers of zero.

    The map takes tangents of (columns, right carriers) to those of the gradient in (columns,
    left carriers). Returns log Z, the map, and the zeros.
    """
    dtype = cliques[0].root.dtype
    columns = [jnp.zeros(c.root.shape[:-1], dtype) for c in cliques]
    carriers = {
        name: jnp.zeros((*(sizes[p] for p in _canonical(v.plates, sizes)), v.dim), dtype)
        for name, v in variables.items()
    }

    def gradient(columns, right):
        def log_z(columns, left):
            return _log_partition(variables, sizes, cliques, columns, left, right)

        value, gradient = jax.value_and_grad(log_z, (0, 1))(columns, carriers)
        return gradient, value

    _, hessian, value = jax.linearize(gradient, columns, carriers, has_aux=True)
    return value, hessian, columns, carriers


def _log_partition(variables, sizes, cliques, columns, left, right):
    """log Z with one column for each clique and two carriers for each variable."""
    funsor = _funsor()
    from funsor.gaussian import Gaussian
    from funsor.sum_product import sum_product

    # Funsor's names: ours may coincide (a plate and a variable "x") or mean something to it.
    plate = {p: f"plate{i}" for i, p in enumerate(sizes)}
    site = {v: f"site{i}" for i, v in enumerate(variables)}
    dtype = cliques[0].root.dtype
    waiting = set(variables)  # for a clique in just their plates, to hold their carriers

    def factor(group):  # cliques of the same plates, side by side
        names = tuple(n for n in variables if any(n in cliques[i].names for i in group))
        plates = cliques[group[0]].plates
        blocks, white = [], []
        for i in group:
            rows = _rows(variables, names, cliques[i].names)
            blocks += [(cliques[i].root, rows), (columns[i][..., None], rows)]
            white += [0] * (cliques[i].root.shape[-1] + 1)
        for name in waiting.intersection(n for n in names if local(n, plates)):
            waiting.remove(name)
            rows = _rows(variables, names, (name,))
            blocks.append((jnp.stack([left[name], right[name]], -1), rows))
            white += [1, 1]
        eye = np.eye(sum(variables[n].dim for n in names), dtype=dtype)
        root = jnp.concatenate([eye[:, rows] @ block for block, rows in blocks], -1)
        white = jnp.broadcast_to(jnp.array(white, dtype), (*root.shape[:-2], len(white)))
        inputs = [(plate[p], funsor.Bint[sizes[p]]) for p in plates]
        inputs += [(site[n], funsor.Reals[variables[n].dim]) for n in names]
        return Gaussian(white, root, tuple(inputs))

    def local(name, plates):
        return set(variables[name].plates) == set(plates)

    groups = []  # of cliques that share a variable of just their plates
    for i, (names, plates, _) in enumerate(cliques):
        meets = [
            g
            for g in groups
            if cliques[g[0]].plates == plates
            and any(n in cliques[j].names and local(n, plates) for j in g for n in names)
        ]
        groups = [g for g in groups if g not in meets] + [[i, *(j for g in meets for j in g)]]

    with Gaussian.set_compression_threshold(math.inf):
        result = sum_product(
            funsor.ops.logaddexp,
            funsor.ops.add,
            [factor(group) for group in groups],
            eliminate=frozenset([*site.values(), *plate.values()]),
            plates=frozenset(plate.values()),
        )
    return result.data


def _funsor():
    """Funsor on JAX. Its backend is one for the whole process, so it is set at first use."""
    import funsor

    funsor.set_backend("jax")
    return funsor


def _merge(variables, sizes, terms):
    """Terms summed into cliques of distinct variables, over exactly the plates of these.

    Every variable is in a clique of just its own plates, so that Funsor knows them; that of a
    variable with no such term is empty. Returns the cliques and each term's clique and rows.
    """
    keys, sums, homes = [], [], [None] * len(terms)

    def home_of(names, plates):
        for j, (others, same) in enumerate(keys):
            if plates == same and set(names) <= set(others):
                return j
        length = sum(variables[n].dim for n in names)
        keys.append((names, plates))
        sums.append(jnp.zeros((*(sizes[p] for p in plates), length, length), dtype))
        return len(keys) - 1

    dtype = jnp.result_type(*(t.precision for t in terms))
    for i in sorted(range(len(terms)), key=lambda i: -len(terms[i].names)):  # largest first
        names, own, precision = terms[i]
        plates = _canonical({p for n in names for p in variables[n].plates}, sizes)
        home = home_of(names, plates)
        index = _rows(variables, keys[home][0], names)
        precision = _gather(precision, own, plates, event=2)
        sums[home] = sums[home].at[..., index[:, None], index].add(precision)
        homes[i] = home, index
    for name, variable in variables.items():
        home_of((name,), _canonical(variable.plates, sizes))
    return [_Clique(*key, _root(total)) for key, total in zip(keys, sums)], homes


def _canonical(plates, sizes):
    return tuple(p for p in sizes if p in plates)


def _ordered(values, variables, sizes, back=False):
    """Values by variable, from its own order of plates to that of sizes, or back."""
    pairs = {n: (v.plates, _canonical(v.plates, sizes)) for n, v in variables.items()}
    return {n: _gather(values[n], *(p[::-1] if back else p)) for n, p in pairs.items()}


def _rows(variables, names, chosen):
    """Where the chosen variables lie in the vector of the named ones."""
    ends = np.cumsum([0, *(variables[n].dim for n in names)])
    spans = {n: np.arange(a, b) for n, a, b in zip(names, ends, ends[1:])}
    return np.concatenate([spans[n] for n in chosen])


def _gather(x, plates, kept, event=1):
    """Sum x (*plates, *event) over the plates that are not kept, the others in kept's order."""
    x = x.sum(tuple(i for i, p in enumerate(plates) if p not in kept))
    left = [p for p in plates if p in kept]
    axes = [left.index(p) for p in kept]
    return jnp.transpose(x, (*axes, *range(len(axes), len(axes) + event)))


def _spread(x, plates, wanted, sizes):
    """Repeat x (*plates, L, L) over the wanted plates it lacks, in wanted's order."""
    axes = [plates.index(p) for p in wanted if p in plates]
    x = jnp.transpose(x, (*axes, x.ndim - 2, x.ndim - 1))
    x = x.reshape(*(sizes[p] if p in plates else 1 for p in wanted), *x.shape[-2:])
    return jnp.broadcast_to(x, (*(sizes[p] for p in wanted), *x.shape[-2:]))


def _root(precision):
    """P with P P' = precision, which may be singular; NaN where it is indefinite.

    The eigenvalues are those of the matrix scaled to unit diagonal, so that directions of very
    different precision keep their digits.
    """
    variance = jnp.diagonal(precision, axis1=-2, axis2=-1)
    scale = jnp.sqrt(jnp.where(variance == 0, 1, variance))
    scaled = precision / (scale[..., :, None] * scale[..., None, :])
    values, vectors = jnp.linalg.eigh(scaled)
    values = jnp.where(values < -jnp.sqrt(jnp.finfo(values.dtype).eps), jnp.nan, values)
    root = vectors * jnp.sqrt(jnp.maximum(values, 0))[..., None, :]
    return jax.lax.stop_gradient(scale[..., :, None] * root)


def _check(variables, sizes, terms, vectors):
    """ValueError where the parts of the description do not fit together."""
    if not terms:
        raise ValueError("a joint Gaussian needs at least one term")
    for name, variable in variables.items():
        if missing := set(variable.plates) - set(sizes):
            raise ValueError(f"variable {name!r}: no size for the plates {sorted(missing)}")
        shape = (*(sizes[p] for p in variable.plates), variable.dim)
        if vectors is not None and (name not in vectors or vectors[name].shape != shape):
            found = vectors[name].shape if name in vectors else "none"
            raise ValueError(f"variable {name!r}: expected a vector {shape}, found {found}")
    for term in terms:
        if unknown := set(term.names) - set(variables):
            raise ValueError(f"term {term.names}: unknown variables {sorted(unknown)}")
        own = {p for n in term.names for p in variables[n].plates}
        if missing := own - set(term.plates):
            raise ValueError(f"term {term.names}: needs the plates {sorted(missing)}")
        if missing := set(term.plates) - set(sizes):
            raise ValueError(f"term {term.names}: no size for the plates {sorted(missing)}")
        length = sum(variables[n].dim for n in term.names)
        shape = (*(sizes[p] for p in term.plates), length, length)
        if term.precision.shape != shape:
            raise ValueError(
                f"term {term.names}: expected a precision {shape}, found {term.precision.shape}"
            )
