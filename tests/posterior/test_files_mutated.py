"""Mutated files: every flipped bit is found, whatever a header holds is refused or true."""

from __future__ import annotations

import json
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from posterior.test_files import learned  # noqa: F401
from safetensors import safe_open
from safetensors.numpy import load_file, save

import jopa_ppl as jp
from jopa_ppl.posterior import storage
from jopa_ppl.posterior.storage import CHECKSUM, KEY, checksum

WEIGHTS = {"net": {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3, jnp.bfloat16)}}
HEADER, TENSORS = {"program": "é"}, {"a": np.arange(3.0), "b/é": np.ones((), np.float32)}


@pytest.fixture(scope="module")
def whole(learned, tmp_path_factory):  # noqa: F811
    """A checkpoint with everything in it."""
    path = tmp_path_factory.mktemp("whole") / "whole"
    jp.save_checkpoint(path, learned, WEIGHTS, step=3, rng_key=jax.random.key(1),
                       extra=[np.ones(2)])
    return path


def refused(read, path) -> str:
    with pytest.raises(jp.FileError) as error:
        read(path)
    assert error.value.found and error.value.expected and error.value.fix
    return str(error.value)


def test_every_flipped_bit_and_every_cut_is_found(tmp_path):
    path = tmp_path / "f"
    storage.write(path, HEADER, TENSORS)
    header, tensors = storage.read(path)
    assert header["program"] == "é" and tensors["b/é"].shape == ()
    raw = path.read_bytes()
    for bit in range(8 * len(raw)):
        one = bytearray(raw)
        one[bit // 8] ^= 1 << bit % 8
        path.write_bytes(one)
        refused(storage.read, path)
    for size in range(len(raw)):
        path.write_bytes(raw[:size])
        refused(storage.read, path)
    storage.write(path, HEADER, TENSORS)
    assert path.read_bytes() == raw             # the same content has the same bytes


def forged(path, whole, change) -> None:
    """The whole file with a changed header and tensors, and a checksum that agrees."""
    with safe_open(whole, framework="numpy") as file:
        header, tensors = json.loads(file.metadata()[KEY]), load_file(whole)
    text = change(header, tensors)
    text = text if isinstance(text, str) else json.dumps(header)
    path.write_bytes(save(tensors, {KEY: text, CHECKSUM: checksum(text, tensors)}))


DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize("change", [
    *(lambda h, t, text=text: text for text in (
        "", "null", "[]", "3", '"x"', "{", "{}", DEEP, f'{{"format": 1, "a": {DEEP}}}',
        '{"format": "1"}', '{"format": null}', f'{{"format": {"9" * 5000}}}', '{"format": 1}')),
    *(lambda h, t, at=at: h.update({at: [3, "x"]}) for at in (
        "shapes", "program", "model", "num_iters", "converged", "free_energy_noise", "schedule",
        "sites", "scans", "latents", "blocks", "predicted", "sizes", "checkpoint")),
    lambda h, t: h["checkpoint"].update(step="3"),
    lambda h, t: h["checkpoint"].update(weights={"weights/net/bias": None}),
    lambda h, t: h["checkpoint"]["weights"].update({"weights/net/bias": ["net", "kernel", "x"]}),
    lambda h, t: h["checkpoint"].update(rng_key="no generator"),
    lambda h, t: h["free_energy"].append("low"),
    lambda h, t: h["sites"][0].update(plates=[["n", 0]]),
    lambda h, t: h["sites"][0].update(event_shape=[10**30]),
    lambda h, t: h["scans"][0].update(length=-3),
    lambda h, t: h["latents"][0].update(family="cauchy"),
    lambda h, t: h["blocks"][0].update(variables=["nowhere"]),
    lambda h, t: t.update({"blocks/A,B/cov": t["blocks/A,B/cov"].astype(np.float16)}),
    lambda h, t: (h.pop("shapes"), t.update({"blocks/A,B/cov": np.ones((2, 2))}))])
def test_headers_of_another_form_are_refused(change, whole, tmp_path):
    forged(tmp_path / "f", whole, change)
    refused(jp.load_checkpoint, tmp_path / "f")


def test_files_of_before_there_were_checksums_are_read(whole, tmp_path, learned):  # noqa: F811
    with safe_open(whole, framework="numpy") as file:
        metadata = file.metadata()
    assert set(metadata) == {KEY, CHECKSUM} and len(metadata[CHECKSUM]) == 64
    (tmp_path / "old").write_bytes(save(load_file(whole), {KEY: metadata[KEY]}))
    found = jp.load_checkpoint(tmp_path / "old", weights=WEIGHTS)
    assert found.step == 3 and found.weights["net"]["bias"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(found.posterior.mean("A"), learned.mean("A"))
    odd = {KEY: metadata[KEY], "sha255": metadata[CHECKSUM]}        # its name has a flipped bit
    (tmp_path / "odd").write_bytes(save(load_file(whole), odd))
    assert "checksum" in refused(jp.load_checkpoint, tmp_path / "odd")


def test_arrays_of_another_byte_order_come_back(tmp_path):
    storage.write(tmp_path / "f", {}, {"a": np.arange(3, dtype=">f8")})
    np.testing.assert_array_equal(storage.read(tmp_path / "f")[1]["a"], np.arange(3.0))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_mutated_files(whole, tmp_path, learned, seed):  # noqa: F811
    """250 files each: bits, cuts, splices; headers and tensors under a checksum that agrees."""
    rng, raw, path = random.Random(seed), whole.read_bytes(), tmp_path / "f"
    values = [None, True, -1, 0, 2**70, 1e300, float("nan"), "", "x", [], [[]], {}, {"a": 1}, [1]]
    for kind in 50 * ["bit", "cut", "splice", "header", "tensor"]:
        at = rng.randrange(len(raw))
        if kind == "header":
            def change(header, tensors):
                node, key = {"": header}, ""
                while isinstance(node[key], dict | list) and node[key] and rng.random() < 0.9:
                    node = node[key]
                    key = rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
                node[key] = rng.choice(values)
                return json.dumps(header)
            forged(path, whole, change)
        elif kind == "tensor":
            def change(header, tensors):
                name = rng.choice(sorted(tensors))
                tensors[name] = rng.choice([
                    np.zeros((*tensors[name].shape, 2)), tensors[name].astype(np.int8),
                    np.zeros((0, 3)), tensors[name][..., None]])
            forged(path, whole, change)
        elif kind == "bit":
            one = bytearray(raw)
            one[at] ^= 1 << rng.randrange(8)
            path.write_bytes(one)
        elif kind == "cut":
            path.write_bytes(raw[:at])
        else:
            path.write_bytes(raw[:at] + rng.randbytes(9) + raw[at + rng.randrange(20):])
        try:
            found = jp.load_checkpoint(path)
        except jp.FileError:
            continue
        # What nobody can tell from the true header: another name, another number.
        assert kind == "header", kind
        assert found.posterior is None or found.posterior.sites == learned.sites
