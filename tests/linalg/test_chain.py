"""Block-tridiagonal Gaussians against the dense joint."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jopa_ppl.linalg import chain

METHODS = ("sequential", "parallel")
marginals = jax.jit(chain.marginals, static_argnums=3)
log_normaliser = jax.jit(chain.log_normaliser, static_argnums=3)
gradient = jax.jit(jax.grad(chain.log_normaliser, (0, 1, 2)), static_argnums=3)
sample = jax.jit(chain.sample, static_argnums=(3, 4))


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def make(blocks, batch=(), dim=3, seed=0, scales=None):
    """Random potentials: a sum of full-rank node and pair terms, node and pair scaled at will."""
    rng = np.random.default_rng(seed)
    node, pair = scales if scales is not None else (np.ones(blocks), np.ones(blocks))
    root = rng.normal(size=(blocks, *batch, dim, dim + 2))
    diag = np.einsum("g,g...ik,g...jk->g...ij", node, root, root)
    off = np.zeros((blocks - 1, *batch, dim, dim))
    for g in range(blocks - 1):
        a, b = rng.normal(size=(2, *batch, dim, dim)) * np.sqrt(pair[g])
        diag[g] += a @ np.swapaxes(a, -1, -2)
        diag[g + 1] += b @ np.swapaxes(b, -1, -2)
        off[g] = b @ np.swapaxes(a, -1, -2)
    vector = rng.normal(size=(blocks, *batch, dim))
    return jnp.asarray(diag), jnp.asarray(off), jnp.asarray(vector)


def joint(diag, off):
    """The dense precision of one chain."""
    blocks, dim = diag.shape[:2]
    rows = [[jnp.zeros((dim, dim))] * blocks for _ in range(blocks)]
    for g in range(blocks):
        rows[g][g] = diag[g]
        if g:
            rows[g][g - 1], rows[g - 1][g] = off[g - 1], off[g - 1].T
    return jnp.block(rows)


def dense(diag, off, vector):
    """Marginals of one chain or of each chain of a batch, by a dense inverse."""
    if vector.ndim > 2:
        each = [dense(diag[:, i], off[:, i], vector[:, i]) for i in range(vector.shape[1])]
        return chain.Marginals(*(np.stack(x, -1 if x[0].ndim == 0 else 1) for x in zip(*each)))
    blocks, dim = vector.shape
    precision = np.asarray(joint(diag, off))
    cov = np.linalg.inv(precision)
    mean = (cov @ np.ravel(vector)).reshape(blocks, dim)
    cov = cov.reshape(blocks, dim, blocks, dim)
    own = np.stack([cov[g, :, g] for g in range(blocks)])
    cross = np.array([cov[g + 1, :, g] for g in range(blocks - 1)]).reshape(-1, dim, dim)
    return chain.Marginals(mean, own, cross, np.linalg.slogdet(precision)[1])


def naive(diag, off, vector):
    """One chain, block after block, as a textbook writes it."""
    diag, off, vector = map(np.asarray, (diag, off, vector))
    precision, shift, logdet = [diag[0]], [vector[0]], 0.0
    for g in range(1, len(diag)):
        gain = off[g - 1] @ np.linalg.inv(precision[-1])
        precision.append(diag[g] - gain @ off[g - 1].T)
        shift.append(vector[g] - gain @ shift[-1])
    mean, cov, cross = [None] * len(diag), [None] * len(diag), [None] * (len(diag) - 1)
    for g in reversed(range(len(diag))):
        logdet += np.linalg.slogdet(precision[g])[1]
        cov[g] = np.linalg.inv(precision[g])
        mean[g] = cov[g] @ shift[g]
        if g < len(diag) - 1:
            gain = cov[g] @ off[g].T
            mean[g] = mean[g] - gain @ mean[g + 1]
            cross[g] = -cov[g + 1] @ gain.T
            cov[g] = cov[g] + gain @ cov[g + 1] @ gain.T
    return chain.Marginals(
        np.stack(mean), np.stack(cov), np.array(cross).reshape(off.shape), np.array(logdet)
    )


def assert_close(found, expected, rtol=1e-9):
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * np.max(np.abs(b), initial=0.0))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("batch", [(), (3,)])
@pytest.mark.parametrize("blocks", [1, 2, 3, 7, 16])
def test_marginals_match_dense_joint(blocks, batch, method):
    args = make(blocks, batch)
    assert_close(marginals(*args, method), dense(*args))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("blocks, dim", [(1, 1), (50, 1), (2, 8), (5, 9), (6, 17)])
def test_block_sizes(blocks, dim, method):
    args = make(blocks, dim=dim)
    assert_close(marginals(*args, method), dense(*args))


def test_methods_and_naive_loop_agree():
    args = make(300, dim=2)
    loop = naive(*args)
    assert_close(marginals(*args, "sequential"), loop, 1e-10)
    assert_close(marginals(*args, "parallel"), loop, 1e-10)


def test_chunks_of_chunks(monkeypatch):
    monkeypatch.setattr(chain, "_SHORT", 4)  # a length of its own: nothing compiled is reused
    args = make(119, (2,), dim=2)
    assert_close(marginals(*args, "parallel"), marginals(*args, "sequential"), 1e-10)


FLAG = "--xla_backend_extra_options=xla_cpu_small_while_loop_byte_threshold=65536"


@pytest.mark.parametrize("blocks, batch, dim, flags, method", [
    (499, (), 4, "", "sequential"), (500, (), 4, "", "parallel"), (500, (), 1, "", "sequential"),
    (500, (), 2, "", "parallel"), (500, (), 8, "", "parallel"), (500, (), 9, "", "sequential"),
    (500, (4,), 4, "", "parallel"), (500, (5,), 4, "", "sequential"),
    (500, (2, 2), 4, "", "parallel"), (500, (2, 3), 4, "", "sequential"),
    (500, (), 4, f"--xla_dump_to= {FLAG}", "sequential")])
def test_auto_takes_the_kernel_that_is_faster_on_a_cpu(blocks, batch, dim, flags, method,
                                                        monkeypatch):
    """Long chains of small blocks go in chunks, unless XLA's flag makes a loop's steps cheap."""
    monkeypatch.setenv("XLA_FLAGS", flags)
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    taken, run = [], {m: getattr(chain, f"_{m}") for m in METHODS}
    for m in METHODS:
        monkeypatch.setattr(chain, f"_{m}", lambda *args, m=m: (taken.append(m), run[m](*args))[1])
    shapes = ((blocks, *batch, dim, dim), (blocks - 1, *batch, dim, dim), (blocks, *batch, dim))
    jax.eval_shape(lambda *args: chain.marginals(*args), *(jnp.zeros(s) for s in shapes))
    assert taken[0] == method


def test_auto_on_an_accelerator(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    for blocks, method in ((63, "sequential"), (64, "parallel")):
        assert chain._check(*make(blocks), "auto") == method


def test_auto_agrees_with_the_naive_loop():
    args = make(520, dim=2)
    assert_close(marginals(*args, "auto"), naive(*args), 1e-10)


def test_two_batch_axes():
    args = make(4, (6,))
    folded = [x.reshape(x.shape[0], 2, 3, *x.shape[2:]) for x in args]
    flat, found = marginals(*args), marginals(*folded)
    assert_close([x.reshape(y.shape) for x, y in zip(found, flat)], flat, 1e-14)


@pytest.mark.parametrize("method", METHODS)
def test_precision_of_1e8_next_to_1(method):
    node = np.where(np.arange(16) % 3 == 0, 1e8, 1.0)  # a few blocks are all but known
    args = make(16, scales=(node, np.ones(16)))
    assert_close(marginals(*args, method), dense(*args))


@pytest.mark.parametrize("method", METHODS)
def test_stiff_pairs(method):
    # Pair terms of 1e8 on nodes of 1: the sums in J itself have lost 8 of 16 digits, so compare
    # the residual J cov - I, block by block, with what those digits allow.
    diag, off, vector = make(16, scales=(np.ones(16), np.full(16, 1e8)))
    m = marginals(diag, off, vector, method)
    row = diag[0] @ m.cov[0] + jnp.swapaxes(off[0], -1, -2) @ m.cross[0]
    np.testing.assert_allclose(row, np.eye(3), atol=1e-6)
    eigenvalues = np.linalg.eigvalsh(m.cov)
    assert np.all(eigenvalues > 0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("blocks", [1, 2, 7])
def test_log_normaliser_and_its_gradient(blocks, method):
    def by_hand(diag, off, vector):
        precision, v = joint(0.5 * (diag + jnp.swapaxes(diag, -1, -2)), off), vector.ravel()
        quadratic = v @ jnp.linalg.solve(precision, v)
        return 0.5 * (quadratic - jnp.linalg.slogdet(precision)[1] + v.size * jnp.log(2 * jnp.pi))

    args = make(blocks)
    expected, slopes = jax.jit(jax.value_and_grad(by_hand, (0, 1, 2)))(*args)
    np.testing.assert_allclose(log_normaliser(*args, method), expected, rtol=1e-9)
    assert_close(gradient(*args, method), slopes)


def test_log_normaliser_of_a_batch():
    args = make(5, (3,))
    each = [log_normaliser(*(x[:, i] for x in args)) for i in range(3)]
    np.testing.assert_allclose(log_normaliser(*args), each, rtol=1e-12)
    weights = jnp.array([1.0, -2.0, 0.5])
    found = jax.grad(lambda v: weights @ log_normaliser(*args[:2], v))(args[2])
    np.testing.assert_allclose(found, weights[:, None] * dense(*args).mean, rtol=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_samples_have_the_joint_covariance(method):
    diag, off, _ = make(5, (2,), dim=2)
    z = sample(jax.random.key(1), diag, off, (100, 1000), method)
    assert z.shape == (100, 1000, 5, 2, 2)
    for i in range(2):
        flat = np.asarray(z[:, :, :, i]).reshape(100_000, 10)
        factor = np.linalg.cholesky(np.asarray(joint(diag[:, i], off[:, i])))
        white = flat @ factor  # whitened draws: identity covariance, errors of 1 / sqrt(n)
        np.testing.assert_allclose(white.mean(0), 0, atol=0.02)
        np.testing.assert_allclose(white.T @ white / len(white), np.eye(10), atol=0.03)


def test_one_draw_without_sample_shape():
    diag, off, _ = make(3, (2,))
    assert chain.sample(jax.random.key(0), diag, off).shape == (3, 2, 3)


@pytest.mark.parametrize("method", METHODS)
def test_indefinite_precision_gives_nan_in_its_own_chain_only(method):
    diag, off, vector = make(5, (2,))
    diag = diag.at[2, 0].add(-100 * jnp.eye(3))
    m = marginals(diag, off, vector, method)
    assert np.isnan(m.logdet[0]) and np.all(np.isnan(m.mean[0, 0]))
    for x in (m.mean[:, 1], m.cov[:, 1], m.cross[:, 1], m.logdet[1]):
        assert np.all(np.isfinite(x))


def test_float32_stays_float32():
    args = [x.astype(jnp.float32) for x in make(40)]
    expected = marginals(*make(40))
    for method in METHODS:
        m = marginals(*args, method)
        assert all(x.dtype == jnp.float32 for x in m)
        assert_close(m, expected, 1e-3)


def test_wrong_shapes_and_methods_are_errors():
    diag, off, vector = make(4)
    with pytest.raises(ValueError, match="a chain of 4 blocks"):
        marginals(diag, off[:2], vector)
    with pytest.raises(ValueError, match="method is one of"):
        marginals(diag, off, vector, "backwards")
