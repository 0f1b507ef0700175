"""What is wrong with a bundle, all at once, before anything leaves: files, sizes, secrets, model, scorecard.

Changes nothing. A host's acceptance is not proven by it: only that its known rules are kept.
"""

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from assistant.bundles.front_matter import huggingface_faults, modelscope_faults, read_front_matter
from assistant.bundles.leaks import secrets_in
from assistant.bundles.model_checks import score_faults, weight_faults
from assistant.bundles.requirements import gradio_faults
from assistant.bundles.targets import Target
from assistant.folders import POINTER

PACKAGE = re.compile(r"[a-z0-9][a-z0-9.+-]*(=\S+)?")
MOST_IN_A_FOLDER = 10_000  # files; Hugging Face's own advice


@dataclass(frozen=True)
class Problem:
    """`file`: what is wrong; what to do. A scorecard's can be overruled."""

    file: str
    sentence: str
    can_be_forced: bool = False

    def __str__(self) -> str:
        return f"{self.file}: {self.sentence}"


def problems(folder: Path, target: Target, index: Callable[[], str] = str) -> list[Problem]:
    """Everything that `target` would refuse or nobody should see; `index`: what the package index says."""
    found = [*_files(folder, target), *_front_matter(folder, target), *_packages(folder)]
    found += [Problem(*fault) for fault in secrets_in(folder, files_in(folder))]
    wrong_lines = [Problem("requirements.txt", fault) for fault in gradio_faults(folder, target)]
    found += wrong_lines
    for place in ("model", "data/eyes"):
        found += [Problem(f"{place}/{file}", fault) for file, fault in weight_faults(folder / place)]
    found += [
        Problem("model/scorecard.json", *fault) for fault in score_faults(folder / "model" / "scorecard.json")
    ]
    if not wrong_lines and (fault := index()):
        found.append(Problem("requirements.txt", fault))
    return found


def model_problems(folder: Path, target: Target, scorecard: Path | None) -> list[Problem]:
    """The same for a folder that holds a model alone, which its uploader sends through LFS as it must."""
    found = [*_files(folder, target, with_lfs=False)]
    found += [Problem(*fault) for fault in secrets_in(folder, files_in(folder))]
    found += [Problem(*fault) for fault in weight_faults(folder)]
    return found + [Problem("scorecard.json", *fault) for fault in score_faults(scorecard)]


def files_in(folder: Path) -> list[str]:
    """Every file below `folder`, by its name relative to it, without git's own."""
    paths = (path for path in folder.rglob("*") if path.is_file() and ".git" not in path.parts)
    return sorted(path.relative_to(folder).as_posix() for path in paths)


def in_lfs(folder: Path, names: list[str]) -> set[str]:
    """The files that the folder's .gitattributes send through LFS, as git itself reads them."""
    with tempfile.TemporaryDirectory() as place:
        subprocess.run(["git", "init", "-q", "--bare", place], check=True)
        command = [
            "git",
            f"--git-dir={place}",
            f"--work-tree={folder.resolve()}",
            "-c",
            "core.attributesFile=",
        ]
        listed = subprocess.run(
            [*command, "-c", "core.bare=false", "check-attr", "-z", "--stdin", "filter"],
            cwd=folder, input="\0".join(names).encode(), capture_output=True, check=True,
        ).stdout.decode()  # fmt: skip
    fields = listed.split("\0")
    return {name for name, value in zip(fields[::3], fields[2::3], strict=False) if value == "lfs"}


def outside_lfs(folder: Path, largest_plain_mb: float) -> list[str]:
    """Binary files, and text of more than the host takes plain, that would not go through LFS."""
    names = files_in(folder)
    through_lfs = in_lfs(folder, names)
    plain = [name for name in names if name not in through_lfs]
    return [n for n in plain if (folder / n).stat().st_size > largest_plain_mb * 1e6 or is_binary(folder / n)]


def is_binary(path: Path) -> bool:
    """As git sees it (a zero byte near the beginning), or no UTF-8."""
    with path.open("rb") as file:
        begin = file.read(8000)
    try:
        begin[:-4].decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start < len(begin) - 8
    return b"\0" in begin


def _files(folder: Path, target: Target, with_lfs: bool = True) -> Iterator[Problem]:
    names, total = files_in(folder), 0
    for name in names:
        size = (folder / name).stat().st_size
        total += size
        with (folder / name).open("rb") as file:
            is_pointer = file.read(len(POINTER)) == POINTER
        if is_pointer:
            yield Problem(name, "is a git-lfs pointer, not the file; run `git lfs pull` where it came from")
        if size > target.largest_file_gb * 1e9:
            yield Problem(
                name, f"has {size / 1e9:.1f} GB; {target.host} takes {target.largest_file_gb} GB a file"
            )
    for name in outside_lfs(folder, target.largest_plain_mb) if with_lfs else ():
        yield Problem(name, "is binary or large and outside LFS; add a line for it to .gitattributes")
    if total > target.largest_gb * 1e9:
        yield Problem(
            ".", f"the bundle has {total / 1e9:.1f} GB; {target.host} has room for {target.largest_gb} GB; "
            "export a smaller type (scripts/export_gguf.py --type q4_k_m)",
        )  # fmt: skip
    if len(names) > MOST_IN_A_FOLDER:
        yield Problem(".", f"{len(names)} files; at most {MOST_IN_A_FOLDER} fit: take out what no page needs")


def _front_matter(folder: Path, target: Target) -> Iterator[Problem]:
    if not target.front_rules:
        return
    try:
        values = read_front_matter(folder / "README.md")
    except ValueError as error:
        yield Problem("README.md", str(error).removeprefix("README.md "))
        return
    faults = {"huggingface": huggingface_faults, "modelscope": modelscope_faults}[target.front_rules]
    yield from (Problem("README.md", fault) for fault in faults(values, folder, target.sdk))


def _packages(folder: Path) -> Iterator[Problem]:
    """One Debian package a line and nothing else: hosts hand the lines to apt-get as they are."""
    path = folder / "packages.txt"
    content = path.read_bytes() if path.is_file() else b""
    if b"\r" in content:
        yield Problem(
            "packages.txt", "has Windows line ends, which become part of the names; save it with LF"
        )
    for line in content.decode("utf-8", "replace").splitlines():
        if not PACKAGE.fullmatch(line):
            yield Problem(
                "packages.txt", f"the line {line!r} is no package name; comments are not understood"
            )
