"""The command line, on a program at the top of this module."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from flax import nnx

import jopa_ppl as jp
from jopa_ppl.__main__ import main
from jopa_ppl.posterior.storage import write
from jopa_ppl.posterior.write import describe

A, B = np.array([[0.98, 0.15], [-0.15, 0.98]]), np.array([[0.0], [0.3]])
C = np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)
T = 60


def camera(y=None, *, T, sd=0.1):
    net = jp.module("net", nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
    x0 = jp.latent("x0", dist.Normal(jnp.zeros(2), 1.0).to_event(1))

    def step(x, y):
        jp.observe("y", dist.Normal(net(x), sd).to_event(1), y)
        u = jp.latent("u", dist.Normal(jnp.zeros(1), 1.0).to_event(1))
        return jp.latent("x", dist.Normal(A @ x + B @ u, 0.05).to_event(1)), None

    jp.scan(step, x0, y, length=T)


def cameras(y=None, *, T, sd=0.1):
    """The same under another name."""
    camera(y, T=T, sd=sd)


def crooked(y=None):
    z = jp.latent("z", dist.Normal(0.0, 1.0))
    jp.observe("y", dist.Normal(0.0, z), y)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint with the right weights, and data."""
    rng, x, ys = np.random.default_rng(1), np.zeros(2), []
    us = rng.normal(size=(T, 1)).astype(np.float32)
    for u in us:
        ys.append(x @ C + 0.1 * rng.normal(size=3))
        x = A @ x + B @ u + 0.05 * rng.normal(size=2)
    ys = np.array(ys, np.float32)
    weights = {"net": {"kernel": jnp.asarray(C), "bias": jnp.zeros(3)}}
    model = jp.condition(jp.with_weights(camera, weights), {"u": us})
    folder = tmp_path_factory.mktemp("cli")
    jp.VMP(model).run(ys, T=T).save(folder / "learned", weights)
    jp.save_checkpoint(folder / "weights", weights=weights, model=camera)
    other = {"net": {"kernel": jnp.asarray(C[:, ::-1]), "bias": jnp.ones(3)}}
    jp.save_checkpoint(folder / "others", jp.load_posterior(folder / "learned"), other)
    np.savez(folder / "data.npz", y=ys, u=us, T=T)
    return folder


MODEL = ("--model", f"{__name__}:camera")


def validate(folder, *options, checkpoint="learned"):
    return main(["validate", str(folder / checkpoint), str(folder / "data.npz"), *MODEL,
                 "--dynamics", "none", "--origins", "20", *options])


def test_a_good_checkpoint_passes(folder, capsys):
    assert validate(folder) == 0
    out = capsys.readouterr().out
    assert f"{__name__}:camera" in out and out.strip().endswith("\nfit to plan with")
    assert all(n in out for n in ("reconstruction", "one_step", "k_step", "coverage_90"))


def test_thresholds_decide_the_exit_status(folder, capsys):
    assert validate(folder, "--threshold", "k_step=1e-6", "--threshold", "one_step=none") == 1
    out = capsys.readouterr().out
    assert "FAIL" in out and "not fit to plan with: k_step" in out and "one_step" not in out


def test_with_other_weights_the_model_fails(folder, capsys):
    assert validate(folder, checkpoint="others") == 1
    assert "k_step" in capsys.readouterr().out.splitlines()[-1]


def test_a_file_never_says_what_is_run(folder, capsys, monkeypatch):
    """A header that names a function of another module: it is neither called nor imported."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    (folder / "trap.py").write_text("open('sprung', 'w').close()\n"
                                    "def camera(*_, **__):\n    open('sprung', 'w').close()\n")
    read = jp.load_checkpoint(folder / "learned")
    for name in ("trap:camera", "os:system"):
        header, tensors = describe(read.posterior)
        write(folder / "forged", {**header, "model": name}, tensors)
        with pytest.raises(SystemExit) as stop:
            main(["validate", "forged", "data.npz"])
        assert stop.value.code == 2
        told = capsys.readouterr().err
        assert "usage:" in told and "required: --model" in told
        main(["validate", "forged", "data.npz", "--dynamics", "none", "--origins", "1", *MODEL])
        capsys.readouterr()
    assert not (folder / "sprung").exists() and "trap" not in sys.modules


def test_the_program_must_be_the_one_of_the_file(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    other = ["validate", "learned", "data.npz", "--dynamics", "none", "--origins", "1",
             "--model", "test_cli:cameras"]
    assert main(other) == 2
    told = capsys.readouterr().err
    assert "another program" in told and "test_cli:camera'" in told and "test_cli:cameras'" in told
    jp.save_checkpoint("learned-again", jp.load_posterior("learned"),       # the way out
                       jp.load_checkpoint("learned").weights, model=cameras)
    other[1] = "learned-again"
    assert main(other) == 0


@pytest.mark.parametrize("arguments,message", [
    (["validate", "nowhere", "data.npz", *MODEL], "there is no such file"),
    (["validate", "weights", "data.npz", *MODEL], "it holds no posterior"),
    (["validate", "learned", "nodata.npz", *MODEL], "the data cannot be read"),
    (["validate", "learned", "learned", *MODEL], "the data cannot be read"),
    (["validate", "learned", "cut.npz", *MODEL], "the data cannot be read"),
    (["validate", "learned", "sd=0.2", *MODEL], "the program needs 'T'"),
    (["validate", "learned", "data.npz", "z=[1.0]", *MODEL], "unknown site"),
    (["validate", "learned", "y=[[1.0], [2.0, 3.0]]", *MODEL], "it is no array"),
    (["validate", "learned", "data.npz", "--model", "nowhere:camera"], "there is no such program"),
    (["validate", "learned", "data.npz", "--model", "camera"], "cannot be imported by its name"),
    (["validate", "learned", "data.npz", "--model", "test_cli:T"], "it is no program"),
    (["validate", "learned", "data.npz", "--dynamics", "none", *MODEL, "--seed", str(2**80)],
     "seed"),
    (["explain", "test_cli:nothing"], "there is no such program"),
    (["explain", "..:x"], "there is no such program"),
    (["explain", "broken:x"], "its module fails when it is imported")])
def test_bad_input_is_told_on_stderr(arguments, message, folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    Path("cut.npz").write_bytes(Path("data.npz").read_bytes()[:-40])
    Path("broken.py").write_text("def x(:")
    monkeypatch.syspath_prepend(str(folder))
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_explain(folder, capsys):
    assert main(["explain", "test_cli:camera", str(folder / "data.npz"), "sd=0.2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(x.startswith("x ") and "exact" in x for x in lines)
    assert main(["explain", "test_cli:crooked", "y=1.0"]) == 1
    assert "negative" in capsys.readouterr().out


def test_version_and_help(capsys):
    done = subprocess.run([sys.executable, "-m", "jopa_ppl", "--version"], capture_output=True,
                          text=True, check=True)
    assert f"jopa_ppl {jp.__version__}" in done.stdout and f"jax {jax.__version__}" in done.stdout
    for command in ("explain", "validate"):
        with pytest.raises(SystemExit) as stop:
            main([command, "--help"])
        assert stop.value.code == 0
        assert f"python -m jopa_ppl {command} " in capsys.readouterr().out.split("examples:")[1]
    for threshold in ("one_step=small", "one_step=1:2:3", "one_step=nan", "one_step"):
        with pytest.raises(SystemExit) as stop:
            main(["validate", "c", "d", *MODEL, "--threshold", threshold])
        assert stop.value.code == 2 and "NAME=LOW:HIGH" in capsys.readouterr().err
