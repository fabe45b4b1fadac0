"""Checkpoints: weights, posterior and a run's state come back exactly, or are refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import jopa_ppl as jp
from jopa_ppl.posterior.storage import FORMAT, KEY

Y = np.array([1.0, 2.0, 3.5], np.float32)
WEIGHTS = {"encoder": {"layers": {0: {"kernel": jnp.arange(6.0).reshape(2, 3)},
                                  1: {"bias": jnp.ones(3, jnp.bfloat16)}},
                       "named": {"1": jnp.ones(1)}},
           "decoder": {"scale": jnp.float32(0.5)}}


def level(y):
    mean = jp.latent("mean", dist.Normal(0.0, 5.0))
    with jp.plate("n", 3):
        jp.observe("y", dist.Normal(mean, 1.0), y)


def other(y):
    level(y)


@pytest.fixture(scope="module")
def learned():
    return jp.VMP(level).run(Y)


@pytest.fixture(scope="module")
def state():
    """The state of an Optax optimiser after one step, and a way to make the same structure."""
    weights = WEIGHTS["decoder"]
    optimiser = optax.adam(optax.cosine_decay_schedule(0.1, 10))
    slope = {"scale": jnp.float32(2.0)}
    return optimiser.update(slope, optimiser.init(weights), weights)[1], optimiser.init(weights)


@pytest.fixture
def path(learned, state, tmp_path):
    jp.save_checkpoint(tmp_path / "c", learned, WEIGHTS, step=7, rng_key=jax.random.key(3),
                       extra=state[0])
    return tmp_path / "c"


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
        assert np.asarray(x).dtype == np.asarray(y).dtype
        np.testing.assert_array_equal(x, y)


def test_all_comes_back(path, learned, state):
    found = jp.load_checkpoint(path, level, extra=state[1])
    same(found.weights, WEIGHTS)                     # keys 1 and "1" are told apart
    same(found.extra, state[0])
    assert found.step == 7
    same(jax.random.key_data(found.rng_key), jax.random.key_data(jax.random.key(3)))
    same(jax.random.normal(found.rng_key), jax.random.normal(jax.random.key(3)))
    assert found.posterior.mean("mean") == learned.mean("mean")
    assert jp.load_posterior(path).variance("mean") == learned.variance("mean")
    assert found.header["model"] == f"{__name__}:level" and found.header["program"] == "level"


def test_without_a_structure_extra_arrays_come_by_path(path, state):
    found = jp.load_checkpoint(path).extra
    assert found["0/mu/scale"] == state[0][0].mu["scale"] and len(found) == 4


def test_resuming_is_as_if_never_interrupted(tmp_path):
    """Gradient descent that is saved, dropped and loaded at step 3 of 6."""
    optimiser = optax.adam(0.1)

    @jax.jit
    def step(weights, state, key):
        key, noise = jax.random.split(key)
        slope = jax.tree.map(lambda w: 2 * w + jax.random.normal(noise, w.shape), weights)
        change, state = optimiser.update(slope, state)
        return optax.apply_updates(weights, change), state, key

    start = {"net": {"w": jnp.ones(3)}}
    carry = (start, optimiser.init(start), jax.random.key(0))
    for i in range(6):
        if i == 3:
            jp.save_checkpoint(tmp_path / "c", None, carry[0], model=level, step=i,
                               rng_key=carry[2], extra=carry[1])
        carry = step(*carry)
    again = jp.load_checkpoint(tmp_path / "c", level, weights=start, extra=optimiser.init(start))
    resumed = (again.weights, again.extra, again.rng_key)
    for _ in range(again.step, 6):
        resumed = step(*resumed)
    same(resumed[0], carry[0])
    same(resumed[1], carry[1])


def test_posteriors_save_their_weights(learned, tmp_path):
    learned.save(tmp_path / "p", weights=WEIGHTS)
    same(jp.load_checkpoint(tmp_path / "p").weights, WEIGHTS)
    learned.save(tmp_path / "p")
    assert jp.load_checkpoint(tmp_path / "p").weights == {}


def test_queries_and_partials_keep_the_name_of_the_program(learned, tmp_path):
    jp.save_checkpoint(tmp_path / "c", model=jp.condition(jp.given(level, learned), {"y": Y}))
    jp.load_checkpoint(tmp_path / "c", level)
    jp.load_checkpoint(tmp_path / "c", jax.tree_util.Partial(level, y=Y))
    with pytest.raises(jp.FileError, match="it holds no posterior"):
        jp.load_posterior(tmp_path / "c")


def test_the_header_is_readable(path):
    with safe_open(path, framework="numpy") as file:
        header = json.loads(file.metadata()[KEY])
    assert header["format"] == FORMAT and set(header["versions"]) >= {"jopa_ppl", "jax"}
    assert header["shapes"]["weights/encoder/layers/0/kernel"] == [2, 3]
    assert header["checkpoint"]["step"] == 7


def rewritten(path, change):
    with safe_open(path, framework="numpy") as file:
        header = json.loads(file.metadata()[KEY])
    tensors = load_file(path)
    change(header, tensors)
    save_file(tensors, path, {KEY: json.dumps(header)})


KERNEL = "weights/encoder/layers/0/kernel"


@pytest.mark.parametrize("change,message", [
    (lambda h, t: t.pop(KERNEL), rf"tensors are missing(.|\n)*{KERNEL}"),
    (lambda h, t: t.update(odd=np.ones(2)), r"do not belong(.|\n)*'odd'"),
    (lambda h, t: t.update({KERNEL: np.ones((2, 4))}), r"wrong shape(.|\n)*2, 4(.|\n)*2, 3"),
    (lambda h, t: h.update(format=FORMAT + 1), "newer version"),
    (lambda h, t: h["checkpoint"].pop("weights"), r"header of the file is damaged(.|\n)*weights"),
    (lambda h, t: h["sites"][0].update(event_shape=[2]), "wrong shape|damaged")])
def test_what_does_not_fit_is_refused(path, change, message):
    rewritten(path, change)
    with pytest.raises(jp.FileError, match=message) as error:
        jp.load_checkpoint(path)
    assert error.value.found and error.value.expected and error.value.fix


def test_another_program_is_refused(path):
    with pytest.raises(jp.FileError, match=r"another program(.|\n)*:level'(.|\n)*:other'"):
        jp.load_checkpoint(path, other)


@pytest.mark.parametrize("like,message", [
    ({**WEIGHTS, "decoder": {"scale": jnp.ones(2)}}, r"decoder/scale' has the wrong(.|\n)*\(2,\)"),
    ({"encoder": WEIGHTS["encoder"]}, r"do not belong(.|\n)*decoder/scale"),
    ({**WEIGHTS, "third": {"w": jnp.ones(1)}}, r"missing(.|\n)*weights/third/w")])
def test_weights_of_another_network_are_refused(path, like, message):
    with pytest.raises(jp.FileError, match=message):
        jp.load_checkpoint(path, weights=like)
    same(jp.load_checkpoint(path, weights=jax.eval_shape(lambda: WEIGHTS)).weights, WEIGHTS)


def test_cut_files_are_refused_and_failed_writes_leave_the_old_file(path, learned):
    whole = path.read_bytes()
    for bad in ({"a/b": 1.0, "a": {"b": 2.0}}, {"a": np.array("text")}):
        with pytest.raises(jp.FileError, match=r"one path|cannot be written"):
            jp.save_checkpoint(path, learned, bad)
    assert path.read_bytes() == whole and len(list(path.parent.iterdir())) == 1
    path.write_bytes(whole[:-1])
    with pytest.raises(jp.FileError, match="damaged"):
        jp.load_checkpoint(path)
