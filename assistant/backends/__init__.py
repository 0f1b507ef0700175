"""What every voice can do: messages in, text chunks out, stoppable at any moment; which model is the default.

Knows no engine: each one is a file here, imported only when it is opened.
"""

import os
import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from assistant.conversations import Message
from assistant.settings import REPOSITORY

Kind = Literal["auto", "transformers", "openai"]


@dataclass(frozen=True)
class Sampling:
    max_new_tokens: int = 512
    temperature: float = 0.0
    """0 is greedy: the same question gets the same answer."""
    top_p: float = 0.9
    seed: int | None = None


class Notice(str):
    """An empty chunk that tells the person something beside the answer.

    `loading`: the model is not ready; `waiting`: `number` answers come first; `shortened`: the `number`
    oldest messages no longer fit. Joined to the other chunks it adds nothing.
    """

    kind: Literal["loading", "waiting", "shortened"]
    number: int

    def __new__(cls, kind: Literal["loading", "waiting", "shortened"], number: int = 0) -> "Notice":
        notice = super().__new__(cls, "")
        notice.kind, notice.number = kind, number
        return notice


class Backend(Protocol):
    label: str

    def stream(
        self, messages: list[Message], sampling: Sampling, stop: threading.Event | None = None
    ) -> Generator[str, None, None]:
        """Yield chunks that together are the answer; some are empty (a heartbeat or a Notice).

        Closing the iterator or setting `stop` ends the engine's work at once. Raises RuntimeError or
        ValueError, one sentence, for what the engine refuses.
        """
        ...

    def answer_all(
        self,
        conversations: list[list[Message]],
        sampling: Sampling,
        progress: Callable[[int], None] | None = None,
    ) -> list[str]:
        """Answer every conversation; `progress` hears how many more are done."""
        ...


def open_backend(model: str, kind: Kind = "auto") -> Backend:
    """An http…/v1 address (`#name` picks one of its models), a model or adapter folder, or a hub id.

    Raises ValueError for what is none of these, RuntimeError when the engine is not installed.
    """
    is_address = model.startswith(("http://", "https://"))
    if kind == "openai" and not is_address:
        raise ValueError(f"{model} is no address; the openai backend needs one like http://127.0.0.1:8000/v1")
    if is_address and kind != "transformers":
        from assistant.backends.openai_backend import OpenAIBackend

        return OpenAIBackend(model)
    if model.endswith(".gguf"):
        raise ValueError(
            f"{model}: GGUF files are not read here; serve it (llama-server) and give its http…/v1 address"
        )
    return _open_transformers(model)


def _open_transformers(model: str) -> Backend:
    try:
        from assistant.backends.transformers_backend import TransformersBackend
    except ModuleNotFoundError as error:
        raise RuntimeError(
            f"{model} needs {error.name}, which is not installed; run: pip install -e '.[train]', "
            "or give the http…/v1 address of a server"
        ) from None
    return TransformersBackend(model)


def default_model(root: Path = REPOSITORY) -> str:
    """ASSISTANT_MODEL, else the newest finished out/*/model, else the default base model.

    Raises RuntimeError when there is none of them.
    """
    if named := os.environ.get("ASSISTANT_MODEL", "").strip():
        return named
    made = sorted(root.glob("out/*/model/config.json"), key=lambda path: path.stat().st_mtime)
    base = root / "models" / "smollm2-135m-instruct" / "config.json"
    if made or base.is_file():
        return str((made[-1] if made else base).parent)
    raise RuntimeError('there is no model yet; make one: make assistant NAME="Ada" (or set ASSISTANT_MODEL)')
