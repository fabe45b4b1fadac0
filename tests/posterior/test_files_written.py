"""Writing files: odd paths, modes and links, and interruptions at any moment."""

from __future__ import annotations

import os
import random
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpyro.distributions as dist
import pytest

import jopa_ppl as jp
from jopa_ppl import atomic
from jopa_ppl.posterior import storage

ROOT = Path(__file__).parents[2]
HEADER, TENSORS = {"program": "é"}, {"a": np.arange(3.0), "b/c": np.ones((), np.float32)}


@pytest.fixture(scope="module")
def learned():
    def level(y):
        mean = jp.latent("mean", dist.Normal(0.0, 5.0))
        jp.observe("y", dist.Normal(mean, 1.0), y)

    return jp.VMP(level).run(np.array(1.0))


def refused(read, path) -> str:
    with pytest.raises(jp.FileError) as error:
        read(path)
    assert error.value.found and error.value.expected and error.value.fix
    return str(error.value)


@pytest.mark.parametrize("path", [
    "", "\0", "a\0b", "x" * 300, "x" * 5000, "nowhere/f", ".", "/dev/null", "/proc/f", "loop",
    "link-to-folder", None, 3, b"nowhere/f"], ids=lambda path: repr(path)[:20])
def test_odd_paths_are_refused(path, learned, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.symlink("loop", "loop")
    os.symlink(".", "link-to-folder")
    before = sorted(os.listdir())
    assert "there is no such file" in refused(jp.load_posterior, path)
    assert "cannot be written" in refused(learned.save, path)
    assert sorted(os.listdir()) == before
    if path == "/dev/null":
        assert stat.S_ISCHR(os.stat(path).st_mode)


@contextmanager
def as_a_user():
    """Run as a user who may not write everywhere, as root may; yields a folder of that user."""
    nobody = 65534
    with tempfile.TemporaryDirectory() as folder:
        if os.geteuid():
            yield Path(folder)
            return
        if not hasattr(os, "setresuid"):
            pytest.skip("root may write everywhere, and cannot be another user for a while")
        os.chown(folder, nobody, -1)
        os.setresuid(nobody, nobody, 0)
        try:
            yield Path(folder)
        finally:
            os.setresuid(0, 0, 0)


def test_folders_and_files_that_may_not_be_written(learned, tmp_path):
    learned.save(tmp_path / "f")              # that user may not read the packages: all is
    jp.load_posterior(tmp_path / "f")         # imported before
    with as_a_user() as folder:
        learned.save(folder / "f")
        jp.load_posterior(folder / "f")
        os.chmod(folder / "f", 0o444)
        assert "Permission" in refused(learned.save, folder / "f")
        os.chmod(folder, 0o555)
        assert "Permission" in refused(learned.save, folder / "g")
        assert [p.name for p in folder.iterdir()] == ["f"]
        os.chmod(folder, 0o000)
        refused(jp.load_posterior, folder / "f")
        os.chmod(folder, 0o755)
        jp.load_posterior(folder / "f")


def test_modes_follow_the_umask_and_links_lead_to_their_target(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "near").symlink_to("far/link")
    (tmp_path / "far" / "link").symlink_to("target")            # there is no target yet
    for mask in (0o022, 0o077, 0o002):
        before = os.umask(mask)
        try:
            storage.write(tmp_path / "near", {"mask": mask}, TENSORS)
        finally:
            os.umask(before)
        target = tmp_path / "far" / "target"
        assert stat.S_IMODE(target.lstat().st_mode) == 0o666 & ~mask
        assert storage.read(tmp_path / "near")[0]["mask"] == mask
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["far", "link", "near", "target"]
    assert (tmp_path / "near").is_symlink() and (tmp_path / "far" / "link").is_symlink()


def test_names_of_any_legal_length_and_relative_ones(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("ä" * 127, "f", b"bytes"):
        storage.write(name, HEADER, TENSORS)
        storage.read(name)
    assert len(os.listdir()) == 3


# -- interruptions -----------------------------------------------------------------------------

# A process in the background may have been told to ignore Ctrl-C.
HEEDING = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
"""
# Writes 1 MB in parts of 1 kB, tells when it has begun, and waits before it goes on.
CHILD = HEEDING + """
import runpy
def fill(file):
    for i in range(1024):
        file.write(bytes(1024))
        if i == 512:
            print("begun", flush=True)
            sys.stdin.readline()
runpy.run_path(sys.argv[1])["write_whole"](sys.argv[2], fill)
"""


def writer(path) -> subprocess.Popen:
    """A process in the middle of writing `path`."""
    child = subprocess.Popen([sys.executable, "-c", CHILD, atomic.__file__, str(path)],
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                             stderr=subprocess.DEVNULL, text=True)
    assert child.stdout.readline() == "begun\n"
    return child


def test_killed_and_interrupted_writes_leave_the_old_file_alone(tmp_path):
    """kill -9 leaves a part file, which the next write removes; Ctrl-C leaves nothing. The part
    file of a process that still writes is not touched."""
    path = tmp_path / "f"
    storage.write(path, HEADER, TENSORS)
    raw = path.read_bytes()
    living = writer(tmp_path / "slow")
    for number, left in ((signal.SIGINT, 1), (signal.SIGKILL, 2)):
        child = writer(path)
        child.send_signal(number)
        child.wait(60)
        assert path.read_bytes() == raw
        assert len(list(tmp_path.glob(".*"))) == left
    storage.write(path, HEADER, TENSORS)
    assert len(list(tmp_path.glob(".*"))) == 1
    living.communicate("go on\n", 60)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["f", "slow"]
    assert (tmp_path / "slow").stat().st_size == 2**20


def test_an_interrupted_save_leaves_no_file(learned, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, interrupt)
        with pytest.raises(KeyboardInterrupt):
            learned.save(tmp_path / "f")
        monkeypatch.undo()
        assert not list(tmp_path.iterdir())


def test_many_threads_write_one_file(tmp_path):
    errors = []

    def work(i):
        for _ in range(100):
            try:
                storage.write(tmp_path / "f", {"i": i}, {"a": np.full(1000, float(i))})
            except Exception as error:
                errors.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for t in threads:
        t.start()
    while any(t.is_alive() for t in threads):
        if (tmp_path / "f").exists():
            header, tensors = storage.read(tmp_path / "f")
            assert (tensors["a"] == header["i"]).all()
    assert not errors
    assert os.listdir(tmp_path) == ["f"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_signals_at_any_time(tmp_path, number):
    """A process that writes 8 MB again and again is stopped at 12 moments: the file is whole."""
    code = (HEEDING + "import numpy as np; from jopa_ppl.posterior import storage\n"
            "for i in range(10**6):\n"
            "    storage.write(sys.argv[1], {'i': i}, {'a': np.full(10**6, float(i))})\n"
            "    print(i, flush=True)\n")
    path, rng = tmp_path / "f", random.Random(0)
    for _ in range(12):
        child = subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE,
                                 stderr=subprocess.DEVNULL, text=True, cwd=ROOT)
        child.stdout.readline()
        time.sleep(rng.uniform(0.0, 0.3))
        child.send_signal(number)
        child.wait(60)
        header, tensors = storage.read(path)
        assert (tensors["a"] == header["i"]).all()
        assert len(os.listdir(tmp_path)) <= (2 if number == signal.SIGKILL else 1)
    storage.write(path, HEADER, TENSORS)
    assert os.listdir(tmp_path) == ["f"]
