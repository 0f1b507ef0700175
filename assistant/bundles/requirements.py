"""Whether a bundle's requirements can be installed on its host: a real resolve for the host's Python.

uv answers in seconds from the packages' metadata; where it is missing or says no, pip decides.
"""

import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement

from assistant.bundles.front_matter import read_front_matter
from assistant.bundles.targets import Target

FORBIDDEN = {"openxlab": "it downgrades torch, requests and setuptools beside it"}
UV_KNOWS = (17, 28, *range(31, 41))  # glibc 2.N: an older one than the host's is on the safe side
NOISE = "Ignored the following"  # every version there ever was
VERSIONS = r" \(from versions: [^)]*\)"
NO_NETWORK = (
    "Connection",
    "connection",
    "Temporary failure",
    "Max retries",
    "timed out",
    "SSLError",
    "ProxyError",
)


def gradio_faults(folder: Path, target: Target) -> Iterator[str]:
    """Lines that are no requirements, packages that break others, and a Gradio that is not sdk_version."""
    version = ""
    if target.sdk == "gradio" and target.front_rules == "huggingface":
        try:
            version = str(read_front_matter(folder / "README.md").get("sdk_version", ""))
        except ValueError:
            version = ""  # said by the check of the front matter
    for line in _lines(folder):
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            yield f"the line {line!r} is no requirement; write NAME==VERSION"
            continue
        if reason := FORBIDDEN.get(requirement.name.lower()):
            yield f"{requirement.name} must not be installed with the page: {reason}"
        if requirement.name.lower() == "gradio" and version and not requirement.specifier.contains(version):
            yield f"{line} contradicts sdk_version {version} of README.md; remove it, the host has Gradio"


def _lines(folder: Path) -> list[str]:
    path = folder / "requirements.txt"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    lines = [line.partition(" #")[0].strip() for line in text.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def ask_index(requirements: Sequence[str], target: Target) -> Callable[[], str]:
    """Begin resolve_fault beside other work; what is returned waits for its answer, or raises its error."""
    answer: Future[str] = Future()

    def ask() -> None:
        try:
            answer.set_result(resolve_fault(requirements, target))
        except Exception as error:
            answer.set_exception(error)

    # a daemon: when the other work fails, nobody waits for an index that is slow
    threading.Thread(target=ask, daemon=True, name="index").start()
    return answer.result


def resolve_fault(requirements: Sequence[str], target: Target) -> str:
    """What pip says against installing everything in one pass on the host; empty when it can be.

    Raises RuntimeError when the package index does not answer.
    """
    wanted = [*requirements, *target.host_requirements]
    if resolves_by_uv(wanted, target):
        return ""
    with tempfile.TemporaryDirectory() as empty:
        done = subprocess.run(
            [*_pip(target), "--target", empty, *wanted],
            capture_output=True, text=True, encoding="utf-8", errors="replace",
        )  # fmt: skip
    if not done.returncode:
        return ""
    lines = [line.removeprefix("ERROR: ") for line in done.stderr.splitlines() if line.startswith("ERROR:")]
    reason = " ".join(line for line in lines if not line.startswith(NOISE)) or done.stderr.strip()[-300:]
    if any(sign in done.stderr for sign in NO_NETWORK):
        raise RuntimeError(
            f"the package index did not answer ({reason[:200]}); --no-resolve skips this check"
        )
    reason = re.sub(VERSIONS, "", reason)[:500]
    return f"cannot be installed on Python {target.python} of {target.host}: {reason}"


def resolves_by_uv(wanted: Sequence[str], target: Target) -> bool:
    """Whether uv finds versions for everything. False decides nothing: it may be missing, or see no index.

    pip may have to download each wheel in question, gigabytes beside torch; uv reads their metadata alone.
    """
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--only-binary=:all:"]
    command += ["--python", sys.executable, "--no-python-downloads", "--python-version", target.python]
    command += ["--python-platform", f"x86_64-manylinux_2_{max(n for n in UV_KNOWS if n <= _glibc(target))}"]
    done = subprocess.run(
        [*command, "-"],
        input="\n".join(wanted).encode(),
        capture_output=True,
        env={**_pips_index(), **os.environ},
    )
    return not done.returncode


def _pips_index() -> dict[str, str]:
    """The index that pip was told to ask, in uv's variable: uv does not read pip's settings."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "config", "list"]
    listed = subprocess.run(command, capture_output=True).stdout.decode(errors="replace")
    found = re.search(r"\.index-url='([^']+)'", listed)  # a variable stands before the files
    return {"UV_DEFAULT_INDEX": found[1]} if found else {}


def _glibc(target: Target) -> int:
    return int(target.platform.removeprefix("manylinux_2_"))


def _pip(target: Target) -> list[str]:
    """A newer glibc runs the wheels of every older one, but pip takes only what it is told."""
    newest = _glibc(target)
    old = ("manylinux2014", "manylinux2010", "manylinux1", "linux")
    platforms = [f"{name}_x86_64" for name in (*(f"manylinux_2_{n}" for n in range(newest, 4, -1)), *old)]
    named = [part for platform in platforms for part in ("--platform", platform)]
    return [
        *(sys.executable, "-m", "pip", "--no-input", "--disable-pip-version-check", "install", "--dry-run"),
        *("--quiet", "--retries", "2", "--only-binary=:all:", "--implementation", "cp"),
        *("--python-version", target.python, *named),
    ]
