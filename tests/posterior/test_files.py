"""Saved posteriors: what comes back, and what is refused."""

import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from safetensors.numpy import load_file, save_file

import jopa_ppl as jp
from jopa_ppl.engine.complete import complete
from jopa_ppl.posterior.storage import FORMAT, KEY

T, D = 12, 2
N = 1024        # draws: the same everywhere, as every count compiles anew


def lds(y=None, *, length):
    A = jp.latent("A", dist.Normal(jnp.eye(D), 0.5).to_event(2))
    B = jp.latent("B", dist.Normal(jnp.zeros((D, 1)), 2.0).to_event(2))
    W = jp.latent("W", dist.Wishart(D + 2.0, rate_matrix=jnp.eye(D)))
    tau = jp.latent("tau", dist.Gamma(2.0, 0.1))
    x0 = jp.latent("x0", dist.MultivariateNormal(jnp.zeros(D), jnp.eye(D)))

    def step(x, y):
        jp.observe("y", dist.Normal(x, 1 / jnp.sqrt(tau)).to_event(1), y)
        u = jp.latent("u", dist.Normal(jnp.zeros(1), 2.0).to_event(1))
        x = jp.latent("x", dist.MultivariateNormal(A @ x + B @ u, precision_matrix=W))
        return x, None

    jp.scan(step, x0, y, length=length)


def series():
    """Frames, element 0 of frame 4 and the last two frames missing; T - 1 actions."""
    rng = np.random.default_rng(0)
    x, ys, us = np.zeros(D), [], rng.normal(size=(T, 1))
    for u in us:
        ys.append(x + 0.3 * rng.normal(size=D))
        x = np.array([[0.9, 0.2], [-0.2, 0.9]]) @ x + np.array([0.0, 1.0]) * u
    ys = np.array(ys, np.float32)
    ys[4, 0] = ys[-2:] = np.nan
    return ys, us[:-1].astype(np.float32)


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope="session")
def learned():
    ys, us = series()
    return jp.VMP(jp.condition(lds, {"u": us}), tol=1e-3).run(ys, length=T)


@pytest.fixture(scope="session")
def path(learned, tmp_path_factory):
    path = tmp_path_factory.mktemp("files") / "learned.safetensors"
    learned.save(path)
    return path


@pytest.fixture(scope="session")
def loaded(path):
    return jp.load_posterior(str(path))


def test_beliefs_come_back_exactly(learned, loaded):
    assert loaded.sites == learned.sites and loaded.global_sites == learned.global_sites
    for name in learned.sites:
        same(loaded._marginal(name), learned._marginal(name))       # the float64 within
        assert type(loaded[name]) is type(learned[name])
        same(loaded.mean(name), learned.mean(name))
        same(loaded.variance(name), learned.variance(name))
    with jax.enable_x64(True):
        same(loaded.state.moments, complete(learned.compiled.engine, learned.state.moments,
                                            learned.bound)[0])
    assert loaded.state.moments["A,B"].cov.dtype == jnp.float64
    np.testing.assert_array_equal(loaded.free_energy, learned.free_energy)
    assert (loaded.num_iters, loaded.converged) == (learned.num_iters, learned.converged)
    assert loaded.summary() == learned.summary()


@pytest.fixture(scope="session")
def drawn(loaded):
    return loaded.sample(jax.random.key(1), (N,))


def test_the_joint_covariance_of_a_block_is_kept(learned, loaded, drawn):
    joint = loaded.beliefs()[0]["A", "B"]
    same(joint, learned.beliefs()[0]["A", "B"])
    cov = np.asarray(joint.cov)
    assert np.abs(cov[:D * D, D * D:]).max() > 1e-4          # A and B are correlated
    flat = np.concatenate([np.reshape(drawn[n], (N, -1)) for n in ("A", "B")], 1)
    np.testing.assert_allclose(np.cov(flat.T), cov, atol=0.2 * cov.max())


def test_draws(learned, loaded, drawn):
    originals = learned.sample(jax.random.key(1), (N,))
    for name, x in originals.items():
        assert drawn[name].shape == x.shape and drawn[name].dtype == x.dtype
    for name in ("A", "B", "W", "tau"):
        same(drawn[name], originals[name])
    for name in ("x", "u", "x0"):                     # predicted steps included
        sd = np.sqrt(np.asarray(loaded.variance(name)))
        gap = np.abs(np.mean(drawn[name], 0) - loaded.mean(name))
        assert np.all(gap <= 5 * sd / np.sqrt(N) + 1e-6)
        np.testing.assert_allclose(np.std(drawn[name], 0), sd, rtol=0.12, atol=1e-6)
    np.testing.assert_allclose(drawn["u"][:, :-1], np.broadcast_to(series()[1], (N, T - 1, 1)))

    belief = learned.compiled.graph.block_of("x")          # neighbours move together
    cross = learned.state.moments[belief.name].cross
    at = slice(*np.cumsum(belief.node["x"]))
    x = np.asarray(drawn["x"], float)
    for t in (0, 3, 6):
        expected = np.asarray(cross)[belief.h + t, at, at]
        found = np.cov(x[:, t + 1].T, x[:, t].T)[:D, D:]
        np.testing.assert_allclose(found, expected, atol=0.2 * np.abs(np.cov(x[:, t].T)).max())


@pytest.mark.slow
def test_plans_from_a_loaded_posterior_are_the_same(learned, loaded, tmp_path):
    goal = jp.sparse(6, {0: np.zeros(D), -1: np.ones(D)})
    plan, again = (jp.VMP(jp.given(lds, p, sites=["A", "B", "W", "tau"]), decide="u").run(
        goal, length=6) for p in (learned, loaded))
    same(again.mean("u"), plan.mean("u"))
    same(again.variance("u"), plan.variance("u"))

    plan.save(tmp_path / "plan")                      # a plan is a posterior too
    stored = jp.load_posterior(tmp_path / "plan")
    same(stored.mean("x"), plan.mean("x"))
    u = stored.sample(jax.random.key(0), (N,))["u"]
    sd = np.sqrt(np.asarray(plan.variance("u")))
    np.testing.assert_allclose(np.mean(u, 0), plan.mean("u"), atol=5 * sd.max() / np.sqrt(N))
    np.testing.assert_allclose(np.std(u, 0), sd, rtol=0.12)


@pytest.mark.slow
def test_elimination_blocks_come_back(tmp_path):
    values = np.random.default_rng(0).normal(2.0, 1.0, (3, 4)).astype(np.float32)

    def hierarchy(y):
        top = jp.latent("top", dist.Normal(0.0, 5.0))
        tau = jp.latent("tau", dist.Gamma(2.0, 2.0))
        with jp.plate("groups", 3):
            mean = jp.latent("mean", dist.Normal(top, 0.5))
        with jp.plate("members", 4), jp.plate("groups", 3, dim=-2):
            jp.observe("y", dist.Normal(mean[:, None], 1 / jnp.sqrt(tau)), y)

    p = jp.VMP(hierarchy).run(values)
    assert "elimination" in {b.kind for b in p.compiled.graph.blocks}
    p.save(tmp_path / "tree")
    q = jp.load_posterior(tmp_path / "tree")
    same(q.state.moments, p.state.moments)
    means = q.sample(jax.random.key(0), (N,))["mean"]
    np.testing.assert_allclose(np.mean(means, 0), p.mean("mean"), atol=0.1)
    np.testing.assert_allclose(np.var(means, 0), p.variance("mean"), rtol=0.25)
    assert q.sites == p.sites and q.global_sites == p.global_sites


def test_trees_of_priors_that_are_scored_come_back(tmp_path):
    """What a latent in unconstrained space is a prior of was no factor of a file's own."""
    def program(y):
        b, s = jp.latent("b", dist.HalfNormal(1.0)), jp.latent("s", dist.LogNormal(0.0, 0.5))
        with jp.plate("g", 2):
            t = jp.latent("t", dist.Laplace(0.0, b))
            jp.observe("y", dist.Laplace(t, s), y)

    p = jp.VMP(program, progress=False).run(np.array([0.3, -1.0]))
    assert "elimination" in {k.kind for k in p.compiled.graph.blocks}
    p.save(tmp_path / "p.jopa")
    back = jp.load_posterior(tmp_path / "p.jopa")
    for name in ("b", "s", "t"):
        np.testing.assert_array_equal(back.mean(name), p.mean(name))



def test_files_of_format_1_are_read(tmp_path):
    """What a factor reads was text there: "mean", "x@0"."""
    values = np.random.default_rng(0).normal(2.0, 1.0, (3, 5)).astype(np.float32)

    def program(y):
        top = jp.latent("top", dist.Normal(0.0, 5.0))
        with jp.plate("groups", 3):
            mean = jp.latent("mean", dist.Normal(top, 0.5))

        def step(x, now):
            x = jp.latent("x", dist.Normal(0.9 * x, 1.0))
            with jp.plate("groups", 3):
                jp.observe("y", dist.Normal(mean + x, 1.0), now)
            return x, None

        jp.scan(step, jp.latent("x0", dist.Normal(0.0, 1.0)), y.T)

    found = jp.VMP(program, tol=1e-3).run(values)
    found.save(tmp_path / "2")
    tensors, header = load_file(tmp_path / "2"), json.loads(header_of(tmp_path / "2")[KEY])
    assert header["format"] == 2 and header["factors"]
    for factor in header["factors"]:
        factor["latents"] = [site if back is None else f"{site}@{-back}"
                             for site, back, _ in factor["latents"]]
    save_file(tensors, tmp_path / "1", {KEY: json.dumps({**header, "format": 1})})
    old, new = (jp.load_posterior(tmp_path / n) for n in "12")
    same(old.sample(0, 3), new.sample(0, 3))
    assert old.compiled.graph.factors == new.compiled.graph.factors


def test_saving_what_was_loaded(path, loaded, tmp_path):
    loaded.save(tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == path.read_bytes()


def test_a_loaded_posterior_goes_to_arviz_without_data(loaded):
    tree = loaded.to_arviz(num_samples=N)
    assert tree.posterior["x"].shape == (1, N, T, D) and "y" not in tree.posterior
    assert not hasattr(tree, "observed_data")
    assert "A,B" in tree.posterior.attrs["schedule"]


def test_predicting_needs_the_model(loaded, drawn):
    for args in ((), (series()[0],)):
        with pytest.raises(jp.JopaError, match=r"cannot predict(.|\n)*'lds'(.|\n)*jp.given"):
            loaded.predict(*args)
    with pytest.raises(jp.SiteError, match="the site has no belief"):
        loaded["y"]
    samples = {n: drawn[n][:3] for n in loaded.global_sites}
    found = numpyro.infer.Predictive(lds, samples)(jax.random.key(1), length=T)
    assert found["y"].shape == (3, T, D)


def test_the_file_is_safetensors_with_a_readable_header(path):
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(json.loads(raw[8:8 + size])["__metadata__"][KEY])
    assert header["format"] == FORMAT and header["program"] == "lds"
    assert set(header["versions"]) == {"jopa_ppl", "jax", "numpyro"}
    sites = {s["name"]: s for s in header["sites"]}
    assert sites["x"]["event_shape"] == [D] and sites["x"]["scan"] == 0 and sites["y"]["observed"]
    assert {"A,B", "W", "tau"} <= {b["name"] for b in header["blocks"]}
    assert header["scans"][0]["length"] == T


def header_of(path):
    from safetensors import safe_open
    with safe_open(path, framework="numpy") as file:
        return file.metadata()


def broken(case, path, folder):
    """A file that is not what it should be."""
    bad = folder / "bad"
    tensors, metadata = load_file(path), header_of(path)
    header = json.loads(metadata[KEY])
    if case == "no such file":
        return bad
    if case == "a folder":
        return folder
    if case == "a text":
        bad.write_text("not tensors")
    elif case == "cut off":
        bad.write_bytes(path.read_bytes()[:-8])
    elif case == "of something else":
        save_file(tensors, bad, {"format": "pt"})
    elif case == "without metadata":
        save_file(tensors, bad)
    elif case == "newer":
        save_file(tensors, bad, {KEY: json.dumps({**header, "format": FORMAT + 1})})
    elif case == "a tensor less":
        tensors.pop("blocks/A,B/cov")
        save_file(tensors, bad, metadata)
    elif case == "a header without blocks":
        header.pop("blocks")
        save_file(tensors, bad, {KEY: json.dumps(header)})
    return bad


@pytest.mark.parametrize("case,message", [
    ("no such file", "no such file"),
    ("a folder", "no such file"),
    ("a text", "not a safetensors file"),
    ("cut off", "not a safetensors file, or damaged"),
    ("of something else", "not a saved posterior(.|\n)*'format'"),
    ("without metadata", "not a saved posterior"),
    ("newer", "newer version(.|\n)*format 3(.|\n)*format 2 or older(.|\n)*upgrade"),
    ("a tensor less", "tensors are missing(.|\n)*blocks/A,B/cov"),
    ("a header without blocks", "header of the file is damaged(.|\n)*blocks")])
def test_what_is_not_ours_is_refused(case, message, path, tmp_path):
    with pytest.raises(jp.FileError, match=message) as error:
        jp.load_posterior(broken(case, path, tmp_path))
    assert error.value.found and error.value.expected and error.value.fix


def test_a_failed_write_leaves_the_old_file(learned, path, tmp_path, monkeypatch):
    target = tmp_path / "p"
    target.write_bytes(path.read_bytes())

    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(jp.FileError, match=r"cannot be written(.|\n)*no space left"):
        learned.save(target)
    monkeypatch.undo()
    assert [f.name for f in tmp_path.iterdir()] == ["p"]
    assert target.read_bytes() == path.read_bytes()
    with pytest.raises(jp.FileError, match=r"cannot be written(.|\n)*directory"):
        learned.save(tmp_path / "nowhere" / "p")
