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
from assistant.hosts.credentials import scrub
from assistant.settings import write_text

PACKAGE = "openxlab==0.1.3"
METAFILE = "metafile.yml"
SCRIPT = Path(__file__).with_name("openxlab_register.py")
KEYS = ("OPENXLAB_AK", "OPENXLAB_SK")
WEIGHTS = ("*.gguf", "*.safetensors")


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
    python = own_environment(say)
    with TemporaryDirectory(prefix="openxlab-") as home:  # it would keep a token in the user's own
        done = subprocess.run(
            [str(python), "-I", str(SCRIPT), repo.rpartition("/")[2], METAFILE, str(int(private))],
            cwd=metafile.parent,  # the places of the weights in it are relative
            env=os.environ | {"HOME": home}, capture_output=True,
            text=True, encoding="utf-8", errors="replace",
        )  # fmt: skip
    reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
    said = f"it was not made ({reason}), going on" if done.returncode else "it was made"
    say(scrub(f"{repo} on OpenXLab: {said}", *(os.environ[key].strip() for key in KEYS)))


def own_environment(say: Callable[[str], None]) -> Path:
    """The Python of the environment that holds the package; made on first use in the user's cache.

    Raises RuntimeError with pip's reason.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    place = cache / "little-assistant" / PACKAGE
    python, done = place / "bin" / "python", place / "complete"
    if done.is_file():
        return python
    say(f"installing {PACKAGE} into {place}, once")
    for command in (
        [sys.executable, "-m", "venv", "--clear", str(place)],
        [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", PACKAGE],
    ):
        ran = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", errors="replace")
        if ran.returncode:
            reason = (ran.stderr.strip().splitlines() or ["no reason given"])[-1]
            without = f"unset {' and '.join(KEYS)} to go without"
            raise RuntimeError(f"{PACKAGE} cannot be installed: {reason}; {without}")
    done.touch()
    return python
