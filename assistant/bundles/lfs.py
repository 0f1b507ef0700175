"""Which files of a folder go through git-lfs, and the lines of .gitattributes that send them there.

Git itself is asked; knows no host.
"""

import re
import subprocess
import tempfile
from pathlib import Path

from assistant.bundles.targets import FILES
from assistant.settings import write_text

THROUGH_LFS = "filter=lfs diff=lfs merge=lfs -text"
GLOB_SIGNS = re.compile(r"[\\*?\[\]]")


def files_in(folder: Path) -> list[str]:
    """Every file below `folder`, by its name relative to it, without git's own."""
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(path.as_posix() for path in paths if ".git" not in path.parts)


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


def write_attributes(folder: Path, largest_plain_mb: float) -> None:
    """Write .gitattributes: the wide rules, and a line for each large or binary file that they leave out."""
    path, rules = folder / ".gitattributes", (FILES / "gitattributes").read_text(encoding="utf-8")
    write_text(path, rules)
    write_text(path, rules + lfs_lines(outside_lfs(folder, largest_plain_mb)))


def lfs_lines(names: list[str]) -> str:
    return "".join(f"{pattern_of(name)} {THROUGH_LFS}\n" for name in names)


def pattern_of(name: str) -> str:
    """The pattern that means this file alone: its glob signs escaped, then quoted as in C."""
    escaped = GLOB_SIGNS.sub(r"\\\g<0>", f"/{name}")
    quoted = escaped.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t")
    return escaped if re.fullmatch(r"[\w./+-]+", escaped) else f'"{quoted}"'
