"""How soon either page is there: seconds from its command to the page, to the chat box, and to the model.

Run: python benchmarks/start_times.py (the default model, or ASSISTANT_MODEL; needs chromium and playwright)
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from assistant.settings import REPOSITORY, ThresholdMissed, run_command

COMMAND = {
    "gradio": [sys.executable, "app.py"],
    "streamlit": [sys.executable, "-m", "streamlit", "run", "app.py"],
}
BOX = {"gradio": "#box textarea:enabled", "streamlit": "[data-testid=stChatInputTextArea]:enabled"}
LONGEST_S = 300


@dataclass(frozen=True)
class Settings:
    pages: list[str] = field(default_factory=lambda: list(BOX))
    times: int = 1
    """How often each page is started; the first start of a machine also reads its files from the disk."""
    most_s: dict[str, float] = field(default_factory=lambda: {"gradio": 8.0, "streamlit": 4.0})
    """Until the chat box can be typed into; more is a missed threshold."""


def main(settings: Settings) -> None:
    from playwright.sync_api import sync_playwright

    late = []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"))
        for face in settings.pages * settings.times:
            found = measure(face, browser)
            print(f"{face}: " + ", ".join(f"{name} {s:.1f} s" for name, s in found.items()), flush=True)
            if found["chat box"] > settings.most_s.get(face, LONGEST_S):
                late.append(f"{face} {found['chat box']:.1f} s")
        browser.close()
    if late:
        raise ThresholdMissed(f"the chat box came too late: {', '.join(late)}; at most {settings.most_s}")


def measure(face: str, browser: Any) -> dict[str, float]:
    found: dict[str, float] = {}
    with started(face) as (url, begin):
        waiting = threading.Thread(target=watch, args=(url, begin, found), daemon=True)
        waiting.start()
        while "page" not in found and time.monotonic() - begin < LONGEST_S:
            time.sleep(0.02)
        page = browser.new_page()
        page.goto(url, timeout=LONGEST_S * 1000)
        page.locator(BOX[face]).first.wait_for(timeout=LONGEST_S * 1000)
        found["chat box"] = time.monotonic() - begin
        page.close()
        waiting.join(LONGEST_S)
        if b'"ready"' not in (said := read(url + "/health")):
            raise RuntimeError(f"the model of {face} did not load: {said.decode()}; start it to see why")
    return found


@contextmanager
def started(face: str) -> Iterator[tuple[str, float]]:
    """The address of a page in a process of its own, and when that was started."""
    with socket.socket() as probe, tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
        probe.close()
        own = {"GRADIO_SERVER_PORT": port, "STREAMLIT_SERVER_PORT": port}
        own |= {"ASSISTANT_DATA": folder, "GRADIO_TEMP_DIR": folder}
        begin = time.monotonic()
        with Path(folder, "log").open("w", encoding="utf-8") as log:
            process = subprocess.Popen(
                COMMAND[face], cwd=REPOSITORY, stdout=log, stderr=log, env=os.environ | own
            )
        try:
            yield f"http://127.0.0.1:{port}", begin
        finally:
            process.terminate()
            process.wait(30)


def watch(url: str, begin: float, found: dict[str, float]) -> None:
    """Note when the page answers, and when its engine is ready."""
    goals: dict[str, Callable[[], bool]] = {
        "page": lambda: bool(read(url)),
        "model": lambda: json.loads(read(url + "/health") or b"{}").get("status") in ("ready", "error"),
    }
    for name, is_reached in goals.items():
        while not is_reached() and time.monotonic() - begin < LONGEST_S:
            time.sleep(0.05)
        found[name] = time.monotonic() - begin


def read(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=10) as reply:
            return bytes(reply.read())
    except OSError:
        return b""


if __name__ == "__main__":
    run_command(main, Settings)
