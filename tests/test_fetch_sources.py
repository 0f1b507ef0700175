"""Fetching by a hub's id, pickled weights alone, ModelScope; the disk that it takes; what a stop leaves."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import torch
from safetensors.torch import load_file
from test_fetch import (  # noqa: F401
    Hub,
    command,
    environment,
    handler_of,
    hub,
    run,
    serve_hub,
    size_now,
    tiny,
    wait_for,
)
from test_internlm2 import assert_same_weights, checkpoint, converted  # noqa: F401

from assistant import building, fetching, internlm2
from assistant.catalog import Source, find, find_by_id
from assistant.downloading import download, size_on_hub
from assistant.fetching import fetch, fetch_back
from assistant.folders import is_complete
from assistant.loading import load_chat_model
from assistant.settings import load_settings

MB = 10**6


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ---- a hub's owner/name


def test_a_hubs_owner_and_name_are_a_source_by_themselves(hub: Hub, tmp_path: Path) -> None:  # noqa: F811
    done = run("ada/tiny.1", "--out", tmp_path / "m", endpoint=hub.address)
    assert done.returncode == 0, done.stderr
    settings = load_settings(tmp_path / "m")
    assert (settings["model"], settings["title"], settings["source"]) == ("ada/tiny.1", "tiny.1", "hub")
    assert settings["source_name"] == "ada/tiny.1" and settings["licence"] == "as ada/tiny.1 states"
    assert hub.asked[0].startswith("/api/models/ada/tiny.1") and is_complete(tmp_path / "m")
    asked = len(hub.asked)
    assert fetch("ada/tiny.1", out=tmp_path / "m") and len(hub.asked) == asked
    with pytest.raises(ValueError, match="already holds ada/tiny.1; give another --out"):
        fetch("bob/tiny.1", out=tmp_path / "m")


@pytest.mark.parametrize(
    ("hub_id", "name"),
    [
        ("internlm/InternLM2-chat-1_8b", "internlm2-chat-1_8b"),
        ("Shanghai_AI_Laboratory/internlm2-1_8b", "internlm2-1_8b"),
        ("Qwen/Qwen3-0.6B", "qwen3-0.6b"),
    ],
)
def test_the_catalogs_own_hub_ids_are_its_entries(hub_id: str, name: str) -> None:
    assert find_by_id(hub_id) == find(name) == fetching._model_asked_for(hub_id, None)


def test_a_mistyped_path_is_no_hub_id(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tiny: Path,  # noqa: F811
) -> None:
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    for text in ("models/gone", "./gone/there", "/gone/there", "a/b/c"):
        with pytest.raises(ValueError, match="does not exist; give a folder .* or a hub's owner/name"):
            fetch(text, out=tmp_path / "m")
    with pytest.raises(ValueError, match="does not exist"):
        fetch("ada/tiny", "local", out=tmp_path / "m")
    shutil.copytree(tiny, tmp_path / "models" / "here")
    assert fetching._model_asked_for("models/here", None).sources[0].kind == "local"


# ---- pickled weights alone


@pytest.fixture(scope="module")
def pickled(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """The same InternLM2 as early revisions had it."""
    ignored = shutil.ignore_patterns("*.safetensors*")
    folder = Path(shutil.copytree(checkpoint, tmp_path_factory.mktemp("bin") / "repository", ignore=ignored))
    places = {}
    for number in (1, 2):
        weights = load_file(checkpoint / f"model-{number:05}-of-00002.safetensors")
        name = f"pytorch_model-{number:05}-of-00002.bin"
        torch.save(weights, folder / name)
        places |= dict.fromkeys(weights, name)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    return folder


def test_a_repository_of_pickled_weights_alone_is_fetched_and_converted(
    hub: Hub,  # noqa: F811
    pickled: Path,
    converted: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    hub.folder = pickled
    done = run("internlm2-chat-1_8b", "--source", "hub", "--out", tmp_path / "m", endpoint=hub.address)
    assert done.returncode == 0, done.stderr
    assert_same_weights(tmp_path / "m", converted)
    assert is_complete(tmp_path / "m") and not list((tmp_path / "m").glob("*.bin"))


def test_pickled_weights_are_not_taken_beside_safetensors() -> None:
    model = find("internlm2-chat-1_8b")
    both = ["config.json", "pytorch_model-1.bin", "model-1.safetensors", "x.py", "sub/config.json"]
    only = ["pytorch_model.bin", "pytorch_model.bin.index.json", "training_args.bin"]
    for source in (*model.sources, *find_by_id("ada/tiny").sources):
        assert source.wanted(both) == ["config.json", "model-1.safetensors"]
        assert source.wanted(only) == ["pytorch_model.bin", "pytorch_model.bin.index.json"]
    assert find("qwen3-0.6b").sources[0].wanted(only) == ["pytorch_model.bin.index.json"]


# ---- ModelScope


def modelscope_handler(standing_in: Hub) -> Any:
    """Its two calls of a download: the list of files, and a file with its range."""

    class Handler(handler_of(standing_in)):  # type: ignore[misc]
        def do_GET(self) -> None:
            standing_in.asked.append(self.path)
            asked, given = urlsplit(self.path), parse_qs(urlsplit(self.path).query)
            if asked.path.endswith("/repo/files"):
                files = [self.listed(path) for path in sorted(standing_in.folder.iterdir())]
                return self.answer(
                    json.dumps({"Code": 200, "Success": True, "Data": {"Files": files}}).encode()
                )
            if asked.path.endswith("/repo") and "FilePath" in given:
                return self.send_file(standing_in.folder / given["FilePath"][0])
            self.answer(b'{"Code": 404, "Success": false, "Message": "not found"}', 404)

        def send_body(self, body: bytes, in_part: bool) -> None:
            """Its client asks for all files at once: the first shard alone is cut."""
            if not in_part or "00001-of" not in self.path:
                return super().send_body(body, False)
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            time.sleep(30)
            self.close_connection = True

        def listed(self, path: Path) -> dict[str, Any]:
            digest = standing_in.entry(path).get("lfs", {}).get("sha256", "")
            return {"Path": path.name, "Type": "blob", "Size": path.stat().st_size, "Sha256": digest}

    return Handler


@pytest.fixture
def modelscope(checkpoint: Path) -> Iterator[Hub]:  # noqa: F811
    pytest.importorskip("modelscope")
    standing_in = Hub(checkpoint)
    yield from serve_hub(standing_in, modelscope_handler(standing_in))


def from_modelscope(modelscope: Hub, tmp_path: Path) -> subprocess.Popen[str]:
    place = {"MODELSCOPE_ENDPOINT": modelscope.address, "MODELSCOPE_HOME": str(tmp_path / "home")}
    arguments = command("internlm2-chat-1_8b", "--source", "modelscope", "--out", tmp_path / "models" / "m")
    return subprocess.Popen(arguments, env=environment() | place, stderr=subprocess.PIPE, text=True)


def test_a_download_from_modelscope_killed_in_the_middle_resumes(
    modelscope: Hub,
    converted: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    modelscope.weights = "stall"
    process = from_modelscope(modelscope, tmp_path)
    downloads = tmp_path / "models" / ".downloads"
    wait_for(lambda: any(size_now(path) > 2 * MB for path in downloads.rglob("model-*")), 400)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "models" / "m").exists()
    modelscope.weights, modelscope.ranges = "whole", []
    again = from_modelscope(modelscope, tmp_path)
    _, said = again.communicate(timeout=500)
    assert again.returncode == 0, said
    assert max(modelscope.ranges) > 2 * MB and not any(".py" in path for path in modelscope.asked)
    assert_same_weights(tmp_path / "models" / "m", converted)
    assert load_settings(tmp_path / "models" / "m")["source"] == "modelscope"
    assert names_in(tmp_path / "models") == [".m.lock", "m"]


def test_pickled_weights_alone_come_from_modelscope_too(
    modelscope: Hub, pickled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modelscope.folder = pickled
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", modelscope.address)
    monkeypatch.setenv("MODELSCOPE_HOME", str(tmp_path / "home"))
    raw, source = tmp_path / "raw", find("internlm2-chat-1_8b").sources[1]
    assert download(source, raw) == (raw, "master")
    wanted = {name: (pickled / name).read_bytes() for name in source.wanted(names_in(pickled))}
    assert {path.name: path.read_bytes() for path in raw.iterdir() if path.is_file()} == wanted
    assert sorted(name for name in wanted if "pytorch" in name) == [
        "pytorch_model-00001-of-00002.bin",
        "pytorch_model-00002-of-00002.bin",
        "pytorch_model.bin.index.json",
    ]


# ---- the disk that is wanted


@pytest.fixture
def free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Says how many MB are free."""
    usage = shutil.disk_usage(tmp_path)

    def tell(free_mb: int) -> None:
        monkeypatch.setattr(fetching.shutil, "disk_usage", lambda _: usage._replace(free=free_mb * MB))

    return tell


def sparse(path: Path, size_mb: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    os.truncate(path, size_mb * MB)
    return path


@pytest.mark.parametrize(
    ("name", "source", "need"),
    [
        ("internlm2-chat-1_8b", "hub", "794[89]"),
        ("internlm2-chat-1_8b", "openxlab", "1173[34]"),
        ("internlm2-chat-1_8b", None, "1173[34]"),
        ("qwen3-0.6b", "hub", "1672"),
    ],
)
def test_the_space_of_the_source_that_takes_most_is_wanted(
    name: str, source: str | None, need: str, free: Callable[[int], None], tmp_path: Path
) -> None:
    free(1000)
    with pytest.raises(RuntimeError, match=f"{name} needs {need} MB in .*, and only 1000 MB are free"):
        fetch(name, source, tmp_path / "m")


@pytest.mark.parametrize(("remade", "need"), [(True, "2100"), (False, "1100")])
def test_of_a_hubs_own_id_the_hub_says_the_size(
    remade: bool, need: str, free: Callable[[int], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free(1000)
    monkeypatch.setattr(fetching, "size_on_hub", lambda source: (1000, remade))
    with pytest.raises(RuntimeError, match=f"ada/tiny needs {need} MB"):
        fetch("ada/tiny", out=tmp_path / "m")


@pytest.mark.parametrize(
    ("kind", "weights", "size"),
    [
        ("llama", ["model.safetensors", "pytorch_model.bin"], (301, False)),
        ("internlm2", ["model.safetensors", "pytorch_model.bin"], (301, True)),
        ("llama", ["pytorch_model.bin", "optimizer.bin"], (301, True)),
    ],
)
def test_the_hubs_size_is_that_of_the_files_that_are_wanted(
    kind: str, weights: list[str], size: tuple[int, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [*weights, "config.json", "README.md", "onnx/model.onnx"]
    sizes = {"config.json": 5, "README.md": 10**9, "onnx/model.onnx": 10**9}
    siblings = [SimpleNamespace(rfilename=name, size=sizes.get(name, 300 * MB)) for name in names]
    info = SimpleNamespace(siblings=siblings, config={"model_type": kind})
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: info)
    assert size_on_hub(find_by_id("ada/tiny").sources[0]) == size


def test_what_an_earlier_run_left_of_its_download_is_not_wanted_again(
    free: Callable[[int], None], tmp_path: Path
) -> None:
    sparse(tmp_path / ".downloads" / "m" / "hub" / ".model.safetensors.0.incomplete", 900)
    sparse(tmp_path / ".m.partial" / "model.safetensors", 500)
    free(700)
    with pytest.raises(RuntimeError, match="needs 772 MB in .*, and only 700 MB are free; free some"):
        fetch("qwen3-0.6b", "hub", tmp_path / "m")
    assert not (tmp_path / ".m.partial").exists()


def test_a_clones_own_store_is_not_counted(tiny: Path, tmp_path: Path) -> None:  # noqa: F811
    clone = Path(shutil.copytree(tiny, tmp_path / "clone"))
    size_mb = fetching._model_asked_for(str(clone), None).size_mb
    sparse(clone / ".git" / "lfs" / "objects" / "x", 5000)
    assert fetching._model_asked_for(str(clone), None).size_mb == size_mb < 100


def test_the_way_back_asks_for_space_too(
    converted: Path,  # noqa: F811
    free: Callable[[int], None],
    tmp_path: Path,
) -> None:
    free(3)
    with pytest.raises(RuntimeError, match="back as InternLM2 needs .* MB in .*, and only 3 MB are free"):
        fetch_back(str(converted), tmp_path / "back")
    assert names_in(tmp_path) == [".back.lock"]


# ---- what a stop leaves


def stopped(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_ctrl_c_while_a_folder_is_built_leaves_nothing(
    checkpoint: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(internlm2, "write_json", stopped)  # after the weights
    with pytest.raises(KeyboardInterrupt):
        fetch(str(checkpoint), out=tmp_path / "m")
    assert names_in(tmp_path) == [".m.lock"]


def test_ctrl_c_on_the_way_back_leaves_nothing_and_keeps_what_was_there(
    converted: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fetch_back(str(converted), tmp_path / "back")
    before = names_in(tmp_path / "back")
    monkeypatch.setattr(building, "write_original_config", stopped)
    with pytest.raises(KeyboardInterrupt):
        fetch_back(str(converted), tmp_path / "back")
    assert names_in(tmp_path) == [".back.lock", "back"] and names_in(tmp_path / "back") == before


def test_a_wrong_tokenizer_is_seen_before_the_weights_are_written(
    checkpoint: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copy = Path(shutil.copytree(checkpoint, tmp_path / "copy"))
    (copy / "tokenizer.model").write_bytes(b"no such thing")
    monkeypatch.setattr(internlm2, "write_shards", stopped)
    with pytest.raises(ValueError, match="is no SentencePiece model"):
        fetch(str(copy), out=tmp_path / "m")
    assert names_in(tmp_path) == [".m.lock", "copy"]


def test_two_ways_back_at_once_go_one_after_the_other(
    converted: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[str] = []
    monkeypatch.setattr(fetching, "say", said.append)
    second = threading.Thread(target=fetch_back, args=(str(converted), tmp_path / "back"))
    with (tmp_path / ".back.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        second.start()
        wait_for(lambda: any("waiting for it" in sentence for sentence in said))
        assert names_in(tmp_path) == [".back.lock"]
    second.join(timeout=100)
    assert names_in(tmp_path) == [".back.lock", "back"]


# ---- names, raw folders, bases


def test_a_catalogs_name_is_turned_back_from_the_models_folder(
    converted: Path,  # noqa: F811
    checkpoint: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fetching, "models_folder", lambda: tmp_path / "models")
    missing = "internlm2-chat-1_8b is not there; fetch it first: python scripts/fetch_model.py internlm2-chat"
    with pytest.raises(ValueError, match=missing):
        fetch_back("internlm2-chat-1_8b", tmp_path / "back")
    shutil.copytree(converted, tmp_path / "models" / "internlm2-chat-1_8b")
    fetch_back("internlm/internlm2-chat-1_8b", tmp_path / "back")
    assert_same_weights(checkpoint, tmp_path / "back")


def test_an_internlm2_as_published_is_not_loaded_but_converted(checkpoint: Path) -> None:  # noqa: F811
    wanted = (
        "is an InternLM2 as published, .* convert it: python scripts/fetch_model.py .*internlm2-chat-1_8b"
    )
    with pytest.raises(ValueError, match=wanted):
        load_chat_model(checkpoint, device="cpu")


def test_a_base_is_said_to_be_one_whatever_its_tokenizer_has(
    checkpoint: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    for name, is_base in (("internlm2-1_8b", True), ("internlm2-chat-1_8b", False)):
        folder = tmp_path / name
        folder.mkdir()
        building.build(find(name), Source("local", str(checkpoint)), checkpoint, "", folder)
        assert load_settings(folder)["is_base"] == is_base
