"""The `openxlab` package, in an environment of its own: beside ours it would downgrade half of it.

Used for one thing, making the repository of a model, and only where AK and SK are given.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from assistant.bundles.front_matter import read_front_matter
from assistant.bundles.leaks import SECRET_VARIABLES
from assistant.hosts.credentials import scrub
from assistant.settings import write_text

PACKAGE = "openxlab==0.1.3"
METAFILE = "metafile.yml"
SCRIPT = Path(__file__).with_name("openxlab_register.py")
KEYS = ("OPENXLAB_AK", "OPENXLAB_SK")
WEIGHTS = ("*.gguf", "*.safetensors")
LONGEST_S = 60.0  # its calls have no limit of their own, and the host may be gone


def write_metafile(folder: Path, repo: str) -> None:
    """What OpenXLab shows of a model: name, licence, task, and its weights by their place in the folder."""
    name = repo.rpartition("/")[2]
    weights = sorted(path.name for pattern in WEIGHTS for path in folder.glob(pattern))
    readme = folder / "README.md"
    licence = read_front_matter(readme).get("license", "other") if readme.is_file() else "other"
    page = f"https://openxlab.org.cn/models/detail/{repo}"
    result = [{"Task": "Text Generation", "Dataset": "little-assistant probes"}]
    models = [{"Name": Path(file).stem, "Results": result, "Weights": file} for file in weights]
    content = {
        "Collections": [{"Name": name, "License": licence, "Code": {"URL": page}}],
        "Models": models,
    }
    # JSON, which YAML reads the same whatever a name holds
    write_text(folder / METAFILE, json.dumps(content, ensure_ascii=False, indent=2) + "\n")


def register(repo: str, metafile: Path, private: bool, say: Callable[[str], None]) -> None:
    """Make the repository of a model, if AK and SK are given. A failure is said: it may be there already."""
    if not all(os.environ.get(key, "").strip() for key in KEYS):
        say(f"{' and '.join(KEYS)} are not set: {repo} must be there already (make it at openxlab.org.cn)")
        return
    reason = _reason_not_made(own_environment(say), repo.rpartition("/")[2], metafile.parent, private)
    said = f"it was not made ({reason}), going on" if reason else "it was made"
    say(scrub(f"{repo} on OpenXLab: {said}", *(os.environ[key].strip() for key in KEYS)))


def _reason_not_made(python: Path, name: str, folder: Path, private: bool) -> str:
    """Why the package did not make it; empty when it did."""
    with TemporaryDirectory(prefix="openxlab-") as home:  # it would keep a token in the user's own
        try:
            done = subprocess.run(
                [str(python), "-I", "-X", "utf8", str(SCRIPT), name, METAFILE, str(int(private))],
                cwd=folder,  # the places of the weights in the metafile are relative
                env=_without_secrets(*KEYS) | {"HOME": home}, timeout=LONGEST_S, capture_output=True,
                text=True, encoding="utf-8", errors="replace",
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return f"no answer within {LONGEST_S:.0f} seconds"
    lines = done.stderr.strip().splitlines() or ["no reason given"]
    return lines[-1] if done.returncode else ""


def _without_secrets(*kept: str) -> dict[str, str]:
    """The environment for others' code: no login but those that it needs."""
    return {name: value for name, value in os.environ.items() if name in kept or name not in SECRET_VARIABLES}


def own_environment(say: Callable[[str], None]) -> Path:
    """The Python of the environment that holds the package; made on first use in the user's cache.

    Raises RuntimeError with pip's reason.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    place = cache / "little-assistant" / PACKAGE
    python, done = place / "bin" / "python", place / "complete"
    if done.is_file() and python.exists():  # a link to a Python that may have been removed since
        return python
    say(f"installing {PACKAGE} into {place}, once")
    for command in (
        [sys.executable, "-m", "venv", "--clear", str(place)],
        [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", PACKAGE],
    ):
        ran = subprocess.run(
            command,
            env=_without_secrets(),
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
        )
        if ran.returncode:
            said = (ran.stderr.strip() or ran.stdout.strip() or "no reason given").splitlines()
            reason = " ".join([line for line in said if line.startswith("ERROR: ")] or said)[:400]
            without = f"unset {' and '.join(KEYS)} and make the repository at openxlab.org.cn to go without"
            raise RuntimeError(f"{PACKAGE} cannot be installed: {reason}; {without}")
    done.touch()
    return python
