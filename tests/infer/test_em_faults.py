"""Variational EM when something goes wrong: nothing is lost, and the error says what to do."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
from flax import nnx
from numpy.testing import assert_allclose

import jopa_ppl as jp

T, N, D, P = 4, 3, 2, 3
Y = np.random.default_rng(0).normal(size=(T, N, P)).astype(np.float32)


class Linear(nnx.Module):
    """A linear decoder of Gaussian data."""

    def __init__(self, rngs):
        self.layer = nnx.Linear(D, P, use_bias=False, rngs=rngs)

    def pixels(self, x):
        return dist.Normal(self.layer(x), 0.4).to_event(1)


class Dropped(Linear):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)

    def pixels(self, x):
        return dist.Normal(self.drop(self.layer(x)), 0.4).to_event(1)


class Counted(Linear):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.order = nnx.Param(jnp.arange(P))


class Tied(Linear):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.same = self.layer


def program(y=None, *, net=None, q=0.3, scale=None):
    net = jp.module("net", Linear(nnx.Rngs(0)) if net is None else net)
    with jp.plate("n", N):
        x0 = jp.latent("x0", dist.Normal(jnp.zeros(D), 1.0).to_event(1))

    def step(x, y):
        with jp.plate("n", N):
            jp.observe("y", net.pixels(x), y)
            x = jp.latent("x", dist.Normal(x if scale is None else x * scale, q).to_event(1))
        return x, None

    jp.scan(step, x0, y, length=T)


def learner(optim=None, model=program, **options):
    return jp.VariationalEM(model, optim or optax.adam(0.02), m_steps=2, progress=False, **options)


def network():
    return Linear(nnx.Rngs(0))


def test_keys_of_any_kind_and_a_network_of_the_programs_own():
    em = learner()
    one, weights = em.run(jax.random.key(0), 2, Y, net=network())
    for key in (0, jax.random.PRNGKey(0)):
        again, _ = em.run(key, 2, Y, net=network())
        assert_allclose(again.free_energy, one.free_energy, rtol=1e-12)
    inside, found = em.run(0, 2, Y)           # the program builds the same network
    assert_allclose(inside.free_energy, one.free_energy, rtol=1e-6)
    assert_allclose(found["net"]["layer"]["kernel"], weights["net"]["layer"]["kernel"], rtol=1e-5)


def test_what_diverges_is_not_kept(tmp_path):
    """The rate explodes in the third step: the file holds the second, and a low rate goes on."""
    path = str(tmp_path / "run.safetensors")
    sudden = lambda rate: optax.sgd(lambda count: jnp.where(count < 4, 1e-3, rate))
    for _ in range(2):
        with pytest.raises(jp.NumericalError, match=r"after step 3(.|\n)*learning rate"):
            learner(sudden(np.inf), checkpoint=path).run(0, 4, Y, net=network())
        assert jp.load_checkpoint(path).step == 2
    through, _ = learner(sudden(1e-3), checkpoint=path).run(0, 4, Y, net=network())
    straight, _ = learner(sudden(1e-3)).run(0, 4, Y, net=network())
    assert_allclose(through.free_energy, straight.free_energy, rtol=1e-12)
    em = learner(sudden(np.inf))
    with pytest.raises(jp.NumericalError, match="goes on from the step before"):
        em.run(0, 4, Y, net=network())
    assert [p.step for p in em._interrupted.values()] == [2]


def test_interrupted_at_the_very_end():
    em = learner()
    finish, calls = em._finish, []

    def interrupt(*args):
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return finish(*args)

    em._finish = interrupt
    with pytest.raises(KeyboardInterrupt):
        em.run(0, 3, Y, net=network())
    kept, _ = em.run(0, 3, Y, net=network())
    whole, _ = learner().run(0, 3, Y, net=network())
    assert_allclose(kept.free_energy, whole.free_energy, rtol=1e-12)
    assert_allclose(kept.mean("x"), whole.mean("x"), rtol=1e-6)
    assert not em._interrupted


def test_a_checkpoint_knows_numbers_and_messages(tmp_path):
    path = str(tmp_path / "run.safetensors")
    learner(checkpoint=path).run(0, 1, Y, net=network(), q=0.3)
    for options, q in (({}, 3.0), ({"messages": {"y": "cubature"}}, 0.3)):
        with pytest.raises(jp.FileError, match="another run"):
            learner(checkpoint=path, **options).run(0, 2, Y, net=network(), q=q)


@pytest.mark.parametrize("optim", [
    optax.chain(optax.add_noise(0.1, 0.5, jax.random.key(1)), optax.adam(0.02)),
    optax.chain(optax.adam(0.02), optax.contrib.reduce_on_plateau(patience=1))],
    ids=["a key in its state", "asks for the value"])
def test_optimisers_with_more_needs_go_on_from_a_file(optim, tmp_path):
    path = str(tmp_path / "run.safetensors")
    learner(optim, checkpoint=path).run(0, 2, Y, net=network())
    through, _ = learner(optim, checkpoint=path).run(0, 4, Y, net=network())
    straight, _ = learner(optim).run(0, 4, Y, net=network())
    assert_allclose(through.free_energy, straight.free_energy, rtol=1e-12)


def two(y):
    for i, name in enumerate(("net", "net")):
        jp.module(name, nnx.Linear(2, 3, rngs=nnx.Rngs(i)))
    jp.observe("y", dist.Normal(jp.latent("x", dist.Normal(0.0, 1.0)), 1.0), y)


@pytest.mark.parametrize(("error", "match", "run"), [
    (jp.StructureError, r"eval\(\)", lambda: learner().run(0, 1, Y, net=Dropped(nnx.Rngs(0)))),
    (jp.StructureError, "nnx.Variable", lambda: learner().run(0, 1, Y, net=Counted(nnx.Rngs(0)))),
    (jp.SiteError, "serves twice", lambda: learner().run(0, 1, Y, net=Tied(nnx.Rngs(0)))),
    (jp.SiteError, "one name", lambda: learner(model=two).run(0, 1, 0.5)),
    (jp.StructureError, "flax.nnx.Module", lambda: learner().run(0, 1, Y, net=Linear)),
    (jp.StructureError, r"index it inside: with jp.plate\('n'", lambda: learner(batch=2).run(
        0, 1, Y, net=network(), scale=np.ones((N, 1)))),
    (jp.JopaError, "Optax", lambda: learner("adam")),
    (jp.JopaError, "batch=2.0", lambda: learner(batch=2.0)),
    (jp.JopaError, "num_steps=-1", lambda: learner().run(0, -1, Y, net=network())),
    (jp.DataError, "every value", lambda: learner().run(0, 1, np.nan * Y, net=network())),
], ids=["dropout", "integers", "tied", "one name", "class", "batch", "optim", "part", "steps",
        "nan"])
def test_errors_name_the_way_out(error, match, run):
    with pytest.raises(error, match=match):
        run()


def test_weights_of_another_network_are_refused():
    for wrong in ({"layer": {"kernel": jnp.zeros((D, P + 1))}}, {}):
        with pytest.raises(jp.SiteError, match="not this network's"):
            jp.VMP(jp.with_weights(program, {"net": wrong})).run(Y, net=network())
