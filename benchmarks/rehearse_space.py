"""A CPU Gradio Space, rehearsed: a clone, a new environment, the page as uid 1000, an answer, --verify.

Run: python benchmarks/rehearse_space.py --model out/ada --python python3.12 (takes minutes and 2 GB of disk)
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from assistant.bundles import build_bundle, choose_model
from assistant.bundles.git import prepared, push
from assistant.bundles.targets import find_target
from assistant.settings import REPOSITORY, run_command

VISITOR = 1000
LONGEST_S, MOST_GB = 60, 2.0
ASK = """
import sys
from gradio_client import Client
print(Client(sys.argv[1], verbose=False).predict(sys.argv[2], api_name="/chat"))
"""


@dataclass(frozen=True)
class Settings:
    model: str = ""
    python: str = "python3.12"
    """The host's Python; must be readable for other users when this runs as root."""
    question: str = "Who are you?"


def main(settings: Settings) -> None:
    place = Path(tempfile.mkdtemp(prefix="space-"))
    place.chmod(0o755)
    try:
        clone = make_clone(settings, place)
        python = install(settings, clone, place / "venv")
        print(json.dumps(measure(settings, clone, python, place), ensure_ascii=False, indent=1))
    finally:
        shutil.rmtree(place)


def make_clone(settings: Settings, place: Path) -> Path:
    """Build, push over file://, clone, as the host does."""
    start = time.monotonic()
    bundle = build_bundle("huggingface", "cpu", choose_model(settings.model), place / "page", say)
    say(f"built in {time.monotonic() - start:.1f} s")
    remote, clone = place / "space.git", place / "clone"
    run("git", "init", "-q", "--bare", "--initial-branch=main", remote)
    with prepared(bundle.folder, f"file://{remote}", "main", "rehearsal", None) as commit:
        push(commit, say)
    run("git", "clone", "-q", f"file://{remote}", clone)
    return clone


def install(settings: Settings, clone: Path, venv: Path) -> Path:
    """A new environment, and the host's one pip command."""
    start = time.monotonic()
    wanted = ("-r", clone / "requirements.txt", *find_target("huggingface", "cpu").host_requirements)
    python = venv / "bin" / "python"
    run(settings.python, "-m", "venv", venv)
    run(python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *wanted)
    run(python, "-m", "pip", "check")
    say(f"installed in {time.monotonic() - start:.0f} s")
    return python


def measure(settings: Settings, clone: Path, python: Path, place: Path) -> dict[str, object]:
    """Seconds from the start to the first answer, and the most memory the page had."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    home = place / "home"
    home.mkdir()
    is_root = os.geteuid() == 0
    if is_root:
        os.chown(home, VISITOR, VISITOR)
    drop = ["setpriv", f"--reuid={VISITOR}", f"--regid={VISITOR}", "--clear-groups", "--no-new-privs"]
    host = {
        "SPACE_ID": "ada/ada",
        "SYSTEM": "spaces",
        "CPU_CORES": "2",
        "PATH": "/usr/bin:/bin",
        "HOME": str(home),
    }
    host |= {"GRADIO_SERVER_NAME": "127.0.0.1", "GRADIO_SERVER_PORT": str(port)}
    start = time.monotonic()
    command = [*(drop if is_root else []), str(python), "app.py"]
    page = subprocess.Popen(command, cwd=clone, env=host, stdout=sys.stderr)
    try:
        wait_for(port, page)
        up_s = time.monotonic() - start
        command = [str(python), "-c", ASK, f"http://127.0.0.1:{port}", settings.question]
        answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
        answer_s = time.monotonic() - start
        status = Path(f"/proc/{page.pid}/status").read_text(encoding="utf-8")
        ticks = Path(f"/proc/{page.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[11:13]
        verified = verify(settings, port)
    finally:
        page.terminate()
        page.wait(20)
    peak_gb = int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e9
    is_met = answer_s <= LONGEST_S and peak_gb <= MOST_GB
    return {
        "answer": answer, "up_s": round(up_s, 1), "answer_s": round(answer_s, 1),
        "cpu_s": sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK"), "peak_gb": round(peak_gb, 2),
        "uid": int(status.partition("Uid:")[2].split()[0]), "within_bars": is_met, "verify": verified,
    }  # fmt: skip


def verify(settings: Settings, port: int) -> dict[str, object]:
    """What publish.py says of the live page, and its exit code."""
    script = REPOSITORY / "scripts" / "publish.py"
    command = [sys.executable, str(script), "--verify", f"http://127.0.0.1:{port}", "--model", settings.model]
    done = subprocess.run(command, capture_output=True, text=True)
    return {"code": done.returncode, "said": done.stderr.splitlines()[1:]}


def wait_for(port: int, page: subprocess.Popen[bytes]) -> None:
    """Until the page itself is there: its port opens before that."""
    while page.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10):
                return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError(f"the page ended with code {page.returncode} before it was up")


def run(*command: object) -> None:
    """Without this shell's own packages; standard output is for what was measured."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([str(part) for part in command], check=True, env=environment, stdout=sys.stderr)


def say(sentence: str) -> None:
    print(sentence, file=sys.stderr)


if __name__ == "__main__":
    run_command(main, Settings)
