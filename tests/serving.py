"""Servers for tests: either page in a process of its own, or the API alone in this one."""

import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal

import openai
import uvicorn
from stand_in import StandIn
from starlette.applications import Starlette
from starlette.middleware import Middleware

from assistant.settings import REPOSITORY
from assistant.web.api import routes
from assistant.web.engine import Engine
from assistant.web.guard import Access, Guard

Face = Literal["gradio", "streamlit"]


@contextmanager
def listening(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """The address of a small server on loopback whose requests `handler` answers."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(
    face: Face, folder: Path, root: Path = REPOSITORY, wanted_port: int = 0, **environment: str
) -> Iterator[str]:
    """The address of the page, once /health answers; `root` is the project that it runs."""
    port = str(wanted_port or free_port())
    command = [sys.executable, "app.py"]
    if face == "streamlit":
        command = [sys.executable, "-m", "streamlit", "run", "app.py", "--server.port", port]
    own = {
        "GRADIO_SERVER_PORT": port,
        "GRADIO_TEMP_DIR": str(folder),
        "ASSISTANT_DATA": str(folder),
        "PYTHONPATH": str(root),
    }
    log = folder / f"{face}.log"
    with log.open("w") as out:
        process = subprocess.Popen(
            command, cwd=root, stdout=out, stderr=out, env=os.environ | own | environment
        )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(url + "/health", process, log)
        yield url
    finally:
        process.terminate()
        process.wait(10)


def page_of(face: Face, server: StandIn, folder: Path, root: Path) -> AbstractContextManager[str]:
    """The page with both models of the stand-in."""
    both = {"ASSISTANT_MODEL": server.url + "#ada", "ASSISTANT_ENDPOINTS": server.url + "#base"}
    return serving(face, folder, root, **both)


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(1200):
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
    raise AssertionError(f"{url} does not answer: {log.read_text()}")


@contextmanager
def api_of(engine: Engine, access: Access | None = None) -> Iterator[str]:
    """The address of the engine's API behind the guard of the pages."""
    access = access or Access()
    app = Starlette(routes=routes(engine, access), middleware=[Middleware(Guard, login=access.login)])
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        own.listen()
        thread = threading.Thread(target=server.run, args=([own],), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{own.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(10)


def client_of(url: str, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=url + "/v1", api_key=key, max_retries=0, timeout=30)
