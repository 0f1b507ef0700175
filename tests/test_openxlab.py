"""InternLM2 from OpenXLab by git-lfs: the real address led to a remote on disk, a kill, a resume."""

import hashlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_fetch import command, environment, needs_lfs, serve_with_lfs, wait_for
from test_internlm2 import assert_same_weights, checkpoint, converted  # noqa: F401

from assistant.downloading import OPENXLAB
from assistant.folders import is_complete
from assistant.settings import load_settings

pytestmark = needs_lfs


@pytest.fixture
def remote(checkpoint: Path, tmp_path: Path) -> Path:  # noqa: F811
    place = tmp_path / "xlab" / "OpenLMLab" / "internlm2-chat-1.8b.git"
    serve_with_lfs(checkpoint, place)
    return place


def started(tmp_path: Path, remote: Path) -> subprocess.Popen[str]:
    """fetch_model.py as a person runs it; git itself leads OpenXLab's address to the remote."""
    led = {"KEY_0": f"url.file://{remote.parent.parent}/.insteadOf", "VALUE_0": f"{OPENXLAB}/", "COUNT": "1"}
    elsewhere = {f"GIT_CONFIG_{name}": value for name, value in led.items()}
    arguments = command("internlm2-chat-1_8b", "--source", "openxlab", "--out", tmp_path / "m")
    return subprocess.Popen(
        arguments, env=environment() | elsewhere, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def objects(folder: Path) -> dict[str, Path]:
    """git-lfs files by hash."""
    return {path.name: path for path in folder.rglob("objects/*/*/*") if len(path.name) == 64}


@pytest.fixture
def endless(remote: Path, checkpoint: Path) -> Iterator[Path]:  # noqa: F811
    """The second shard is a pipe that gives half and then nothing more, until the test puts it back."""
    shard = checkpoint / "model-00002-of-00002.safetensors"
    place = objects(remote)[hashlib.sha256(shard.read_bytes()).hexdigest()]
    whole = place.with_name("whole")
    os.replace(place, whole)
    os.mkfifo(place)
    pipe = os.open(place, os.O_RDWR)  # a reader of the pipe waits for more
    yield place
    os.close(pipe)
    if whole.exists():
        os.replace(whole, place)


def test_a_clone_killed_in_the_middle_of_its_large_files_resumes(
    remote: Path,
    endless: Path,
    checkpoint: Path,  # noqa: F811
    converted: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    process, raw = started(tmp_path, remote), tmp_path / ".downloads" / "m" / "openxlab"
    wait_for(lambda: len(objects(raw / ".git")) >= 2)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    (raw / ".git" / "index.lock").touch()  # as a kill leaves it while git writes a shard's state
    had = {name: path.stat().st_mtime_ns for name, path in objects(raw / ".git").items()}
    assert endless.name not in had and not (tmp_path / "m").exists()
    os.replace(endless.with_name("whole"), endless)
    for name in had:  # what is here is not asked for again
        objects(remote)[name].unlink()
    again = started(tmp_path, remote)
    _, said = again.communicate(timeout=200)
    assert again.returncode == 0, said
    assert is_complete(tmp_path / "m")
    assert_same_weights(tmp_path / "m", converted)
    assert sorted(path.name for path in tmp_path.iterdir() if "m" in path.name) == [".m.lock", "m"]
    settings = load_settings(tmp_path / "m")
    head = subprocess.run(["git", "-C", remote, "rev-parse", "HEAD"], capture_output=True, text=True).stdout
    assert settings["revision"] == head.strip() and settings["converted_from"] == "internlm2"
    assert not list((tmp_path / "m").glob("*.py"))
