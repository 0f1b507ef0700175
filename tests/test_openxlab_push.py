"""Pushes to OpenXLab: a bare repository with git-lfs on disk, and a server that wants a password."""

import base64
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from hub_stand_in import hub_stand_in
from serving import listening

from assistant.hosts import upload
from assistant.settings import REPOSITORY

pytestmark = pytest.mark.skipif(shutil.which("git-lfs") is None, reason="git-lfs is not installed")

WEIGHTS = b"\0weights" * 1000
TOKEN = "oxl-secret-token"
CALL = """
import sys
from pathlib import Path
from assistant.hosts import upload
upload("openxlab", "assistant", Path(sys.argv[1]), "model", say=print)
"""


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "xlab" / "ada" / "assistant.git"
    subprocess.run(["git", "init", "-q", "--bare", "--initial-branch=main", str(place)], check=True)
    monkeypatch.setenv("OPENXLAB_ENDPOINT", f"file://{tmp_path / 'xlab'}")
    monkeypatch.setenv("OPENXLAB_USERNAME", "ada")
    monkeypatch.setenv("OPENXLAB_TOKEN", TOKEN)
    for key in ("OPENXLAB_AK", "OPENXLAB_SK"):
        monkeypatch.delenv(key, raising=False)
    return place


@pytest.fixture
def model(tmp_path: Path) -> Path:
    made = tmp_path / "model"
    made.mkdir()
    (made / "model.safetensors").write_bytes(WEIGHTS)
    (made / "config.json").write_text("{}")
    (made / "tokenizer.json").write_text("x" * 1_500_000)
    (made / "settings.toml").write_text('owner = "Grace"\n')
    (made / "README.md").write_text('---\nlicense: "apache-2.0"\n---\n# Ada\n')
    return made


def send(folder: Path, what: str = "model", repo: str = "assistant", said: list[str] | None = None) -> str:
    say = (said if said is not None else []).append
    return upload("openxlab", repo, folder, what, say=say)  # type: ignore[arg-type]


def files_in(remote: Path) -> dict[str, bytes]:
    """As git keeps them: a large file is its pointer."""
    listed = subprocess.run(
        ["git", "-C", str(remote), "ls-tree", "-r", "--name-only", "main"],
        capture_output=True,
        check=True,
        text=True,
    )
    show = ["git", "-C", str(remote), "show"]
    return {
        name: subprocess.run([*show, f"main:{name}"], capture_output=True, check=True).stdout
        for name in listed.stdout.splitlines()
    }


def large_files(remote: Path) -> dict[str, int]:
    """git-lfs files by hash, and when each was written."""
    return {
        path.name: path.stat().st_mtime_ns for path in (remote / "lfs").rglob("*") if len(path.name) == 64
    }


def test_a_model_arrives_with_its_weights_through_lfs_and_its_metafile(remote: Path, model: Path) -> None:
    said: list[str] = []
    assert send(model, said=said) == "https://openxlab.org.cn/models/detail/ada/assistant"
    there = files_in(remote)
    assert there["model.safetensors"].startswith(b"version https://git-lfs")
    assert there["tokenizer.json"].startswith(b"version https://git-lfs")
    assert there["config.json"] == b"{}" and "settings.toml" not in there
    metafile = json.loads(there["metafile.yml"])
    assert metafile["Collections"][0]["License"] == "apache-2.0"
    assert metafile["Models"][0]["Weights"] == "model.safetensors"
    assert len(large_files(remote)) == 2
    assert "not been maintained since January 2025" in said[0]
    assert "OPENXLAB_AK and OPENXLAB_SK are not set: ada/assistant must be there already" in said[1]
    assert not list(model.parent.glob(".*")) and not (model / ".git").exists()


def test_a_clone_gets_the_weights_themselves(remote: Path, model: Path, tmp_path: Path) -> None:
    send(model)
    subprocess.run(["git", "clone", "-q", f"file://{remote}", str(tmp_path / "clone")], check=True)
    assert (tmp_path / "clone" / "model.safetensors").read_bytes() == WEIGHTS


def test_a_push_that_broke_off_after_the_large_files_does_not_send_them_again(
    remote: Path, model: Path
) -> None:
    hook = remote / "hooks" / "pre-receive"
    hook.write_text("#!/bin/sh\necho the connection is gone >&2; exit 1\n")
    hook.chmod(0o755)
    with pytest.raises(RuntimeError, match="the connection is gone.*large files that arrived stay"):
        send(model)
    arrived = large_files(remote)
    assert len(arrived) == 2
    hook.unlink()
    send(model)
    assert large_files(remote) == arrived and "config.json" in files_in(remote)


def test_a_push_killed_inside_git_lfs_goes_on_with_the_large_file_that_is_missing(
    remote: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole process group dies while the server has one large file and half of another."""
    large = b"\0" * 20_000_000
    (model / "tokenizer.model").write_bytes(large)
    tokenizer = b"x" * 1_500_000
    digests = [hashlib.sha256(content).hexdigest() for content in (WEIGHTS, tokenizer, large)]
    with hub_stand_in() as hub:
        hub.stalls_at = digests[2]
        config = model.parent / "gitconfig"
        header = f'[http "{hub.url}"]\n\textraHeader = Authorization: Bearer hf_writer\n'
        config.write_text(f"[lfs]\n\turl = {hub.url}/ada/assistant.git/info/lfs\n{header}")
        monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))
        client = subprocess.Popen(
            [sys.executable, "-c", CALL, str(model)], cwd=REPOSITORY, start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        assert hub.stalled.wait(60)
        deadline = time.monotonic() + 20
        while sorted(hub.put) != sorted(digests[:2]):
            assert time.monotonic() < deadline, hub.put
            time.sleep(0.01)
        os.killpg(client.pid, signal.SIGKILL)
        client.wait()
        branches = subprocess.run(["git", "-C", str(remote), "branch"], capture_output=True, check=True)
        assert branches.stdout == b"", "a killed push must leave no half commit"
        hub.stalls_at = ""
        send(model)
        assert sorted(hub.put) == sorted(digests), "what had arrived is not sent again"
        assert hub.large[digests[2]] == large
    named = {
        line.partition(b"sha256:")[2].decode()
        for text in files_in(remote).values()
        for line in text.splitlines()
    }
    assert set(digests) <= named
    assert not list(model.parent.glob(".*")), "what the kill left is gone"


def test_a_second_push_of_the_same_is_none(remote: Path, model: Path) -> None:
    send(model)
    said: list[str] = []
    send(model, said=said)
    assert "main holds exactly this already" in said


def test_a_bundles_own_rules_for_lfs_are_kept(remote: Path, model: Path) -> None:
    (model / ".gitattributes").write_text("*.safetensors filter=lfs diff=lfs merge=lfs -text\n")
    said: list[str] = []
    assert send(model, what="app", said=said) == "https://openxlab.org.cn/apps/detail/ada/assistant"
    there = files_in(remote)
    assert there["model.safetensors"].startswith(b"version https://git-lfs")
    assert len(there["tokenizer.json"]) == 1_500_000 and "metafile.yml" not in there
    assert "choose this repository" in said[-1]


@pytest.mark.parametrize("what", ["app", "model"])
def test_a_page_and_a_model_do_not_take_each_others_place(remote: Path, model: Path, what: str) -> None:
    (model / "app.py").write_text("print()\n")
    other = "model" if what == "app" else "app"
    send(model, what=other)
    before = files_in(remote)
    (model / "app.py").unlink()
    with pytest.raises(ValueError, match="ada/assistant.git holds a (model|page) .*give another repository"):
        send(model, what=what)
    assert files_in(remote) == before


@pytest.mark.parametrize("name", ["ada[v2].gguf", 'a"b.gguf', "ada*.weights", "back\\slash.weights"])
def test_weights_go_through_lfs_whatever_their_name(remote: Path, model: Path, name: str) -> None:
    (model / name).write_bytes(b"\0" * 2000)
    send(model)
    listed = subprocess.run(
        ["git", "-C", str(remote), "ls-tree", "-r", "-z", "--name-only", "main"], capture_output=True
    )
    assert name in listed.stdout.decode().split("\0")
    assert hashlib.sha256(b"\0" * 2000).hexdigest() in large_files(remote)


def test_a_bundle_whose_own_rules_leave_a_binary_file_out_is_refused(remote: Path, model: Path) -> None:
    (model / ".gitattributes").write_text("*.safetensors filter=lfs diff=lfs merge=lfs -text\n")
    (model / "ada.weights").write_bytes(b"\0" * 2000)
    with pytest.raises(RuntimeError, match="ada.weights would go around git-lfs"):
        send(model)
    assert not subprocess.run(["git", "-C", str(remote), "branch"], capture_output=True).stdout


def test_a_repository_that_is_not_there_says_where_to_make_it(remote: Path, model: Path) -> None:
    with pytest.raises(RuntimeError, match="grace/other is not there: make it at https://openxlab.org.cn"):
        send(model, repo="grace/other")


@pytest.mark.parametrize("missing", ["OPENXLAB_USERNAME", "OPENXLAB_TOKEN"])
def test_missing_credentials_are_named(
    remote: Path, model: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.delenv(missing)
    with pytest.raises(
        RuntimeError, match=f"set {missing}. At https://openxlab.org.cn.*add one with the right to write"
    ):
        send(model)


@contextmanager
def guarded_server(seen: dict[str, str]) -> Iterator[str]:
    """It asks for a password, looks at every process while git waits, and refuses whatever comes."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

        def do_GET(self) -> None:
            given = self.headers.get("Authorization")
            if given:
                seen["password"] = base64.b64decode(given.removeprefix("Basic ")).decode()
                seen["processes"] = every_command_line()
            self.send_response(403 if given else 401)
            self.send_header("WWW-Authenticate", 'Basic realm="OpenXLab"')
            self.send_header("Content-Length", "0")
            self.end_headers()

    with listening(Handler) as url:
        yield url


def every_command_line() -> str:
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue
    return "\n".join(lines)


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="looks at processes through /proc")
@pytest.mark.parametrize("token", [TOKEN, "oxl-\\secret\\token%s'$HOME\""])
def test_the_token_reaches_the_server_and_is_in_no_command_line_message_or_log(
    remote: Path, model: Path, token: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPENXLAB_TOKEN", token)
    seen: dict[str, str] = {}
    said: list[str] = []
    with guarded_server(seen) as address:
        monkeypatch.setenv("OPENXLAB_ENDPOINT", address)
        with pytest.raises(RuntimeError, match="OpenXLab does not let you write to ada/assistant") as caught:
            send(model, said=said)
    assert seen["password"] == f"ada:{token}"
    assert "git" in seen["processes"] and token not in seen["processes"]
    out, error = capfd.readouterr()
    assert token not in str(caught.value) + " ".join(said) + out + error
    assert "OPENXLAB_TOKEN" in str(caught.value)
