"""What is wrong with a bundle, all at once, before anything leaves: files, sizes, secrets, model, scorecard.

Changes nothing. A host's acceptance is not proven by it: only that its known rules are kept.
"""

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from assistant.bundles.choosing import Choice
from assistant.bundles.front_matter import huggingface_faults, modelscope_faults, read_front_matter
from assistant.bundles.leaks import secrets_in
from assistant.bundles.lfs import files_in, outside_lfs
from assistant.bundles.model_checks import fit_faults, score_faults, weight_faults
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
    found += [Problem(*fault) for fault in secrets_in(folder, files_in(folder), os.environ)]
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


def fit_problems(model: Choice) -> list[Problem]:
    """Why its scorecard says nothing about this model."""
    return [Problem(str(model.scorecard), *fault) for fault in fit_faults(model)]


def model_problems(folder: Path, target: Target, scorecard: Path | None) -> list[Problem]:
    """The same for a folder that holds a model alone, which its uploader sends through LFS as it must."""
    found = [*_files(folder, target, with_lfs=False)]
    found += [Problem(*fault) for fault in secrets_in(folder, files_in(folder), os.environ)]
    found += [Problem(*fault) for fault in weight_faults(folder)]
    return found + [Problem("scorecard.json", *fault) for fault in score_faults(scorecard)]


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
