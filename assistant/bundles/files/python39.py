"""The assistant's page for Python 3.9, Gradio 4 and llama.cpp: `python app.py`, port 7860.

It uses nothing of the project: that needs a newer Python. deploy.json beside it names the model.
"""

import json
import os
import queue
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio
import xllamacpp

HERE = Path(__file__).resolve().parent
POINTER = b"version https://git-lfs"
HUB = "https://code.openxlab.org.cn"
MOST_TOKENS = 512
Message = dict[str, str]


def git(folder: Path, *arguments: str) -> None:
    """Run git without a prompt and without large files in a clone; its output is the host's log."""
    quiet = dict(os.environ, GIT_TERMINAL_PROMPT="0", GIT_LFS_SKIP_SMUDGE="1")
    subprocess.run(("git",) + arguments, cwd=folder, env=quiet, check=True)


def find_model(said: dict[str, Any]) -> Path:
    """The GGUF file: in this repository, or cloned from the model hub; pointers become weights."""
    path = HERE / said["model"]
    if said.get("repository"):
        folder = Path.home() / ".assistant" / said["repository"].replace("/", "--")
        path = folder / said["model"]
        if not path.is_file():
            clone(HUB + "/" + said["repository"] + ".git", folder)
    if not path.is_file():
        raise SystemExit(f"error: {path} is not there; push it through git-lfs")
    if first_bytes(path).startswith(POINTER):
        git(path.parent, "lfs", "install", "--local")
        git(path.parent, "lfs", "pull")
    if not first_bytes(path).startswith(b"GGUF"):
        raise SystemExit(f"error: {path} is no GGUF file (a git-lfs pointer?); push it again")
    return path


def clone(address: str, folder: Path) -> None:
    """Whole or not at all: what a cut one left would never be repaired."""
    beside = folder.with_name(folder.name + ".partial")
    shutil.rmtree(beside, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    git(folder.parent, "clone", "--depth", "1", address, str(beside))
    beside.rename(folder)


def first_bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(len(POINTER))


def open_model(path: Path) -> Any:
    settings = xllamacpp.CommonParams()
    settings.model.path = str(path)
    settings.n_ctx = 4096
    settings.n_parallel = 1
    settings.use_jinja = True
    settings.verbosity = -1
    settings.cpuparams.n_threads = len(os.sched_getaffinity(0))
    return xllamacpp.Server(settings)


def stream(server: Any, messages: list[Message]) -> Iterator[str]:
    """The chunks of an answer; `server` calls back from its own loop, so a thread runs it."""
    heard: queue.Queue[Any] = queue.Queue()
    stopped = threading.Event()

    def hear(chunk: Any) -> bool:
        heard.put(chunk)
        return stopped.is_set()

    def work() -> None:
        request = {"messages": messages, "stream": True, "temperature": 0, "max_tokens": MOST_TOKENS}
        try:
            server.handle_chat_completions(json.dumps(request), hear)
        except Exception as error:  # whatever llama.cpp refuses becomes the visitor's sentence
            heard.put(error)
        heard.put(None)

    threading.Thread(target=work, daemon=True).start()
    try:
        for chunk in iter(heard.get, None):
            if isinstance(chunk, Exception):
                raise gradio.Error(str(chunk))
            yield from texts_in(json.loads(chunk) if isinstance(chunk, (str, bytes)) else chunk)
    finally:
        stopped.set()


def texts_in(events: Any) -> Iterator[str]:
    """The words in llama.cpp's chunk. Raises gradio.Error for what it refuses."""
    for event in events if isinstance(events, list) else [events]:
        if "choices" not in event:
            raise gradio.Error(str(event.get("message") or event.get("error") or event))
        for choice in event["choices"]:
            text = choice.get("delta", {}).get("content")
            if text:
                yield text


def turn(role: str, text: str) -> Message:
    """A message. llama.cpp's server reads a typed <|im_end|> as a control token, so it is broken up."""
    return {"role": role, "content": text.replace("<|", "<\u200b|")}


def spoken(history: list[Any]) -> list[Message]:
    """The turns so far; Gradio 4 keeps them as messages for a browser and as pairs for its API."""
    messages = []
    for entry in history:
        if isinstance(entry, dict):
            messages.append(turn(entry["role"], entry["content"]))
        else:
            messages += [turn("user", entry[0]), turn("assistant", entry[1] or "")]
    return messages


def build_page(server: Any, name: str) -> Any:
    one_at_a_time = threading.Lock()

    def chat(message: str, history: list[Any]) -> Iterator[str]:
        answer = ""
        with one_at_a_time:
            for text in stream(server, spoken(history) + [turn("user", message)]):
                answer += text
                yield answer

    interface: Any = gradio.ChatInterface  # of Gradio 4: newer ones take other arguments
    return interface(
        chat, type="messages", title=name, examples=["Who are you?", "你是谁？"], cache_examples=False
    )


def main() -> None:
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    said = json.loads((HERE / "deploy.json").read_text(encoding="utf-8"))
    page = build_page(open_model(find_model(said)), said["name"])
    port = int(os.environ.get("GRADIO_SERVER_PORT") or 7860)
    print("{}: port {}".format(said["name"], port), file=sys.stderr)
    address = os.environ.get("GRADIO_SERVER_NAME") or "0.0.0.0"
    page.queue(max_size=32).launch(server_name=address, server_port=port, share=False, show_api=True)


if __name__ == "__main__":
    main()
