"""What both pages share: the one engine, loaded in the background, and an answer as a person sees it grow.

Knows no framework; a backend is opened only when an engine starts.
"""

import sys
import threading
import time
import traceback
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from assistant.backends import Backend, Notice, Sampling, default_model, open_backend
from assistant.backends.pump import HEARTBEAT_S
from assistant.conversations import Message, system
from assistant.settings import REPOSITORY, SETTINGS_FILE, load_toml, one_line
from assistant.web.texts import Texts

REDRAW_S = 0.05  # 20 updates a second: more only make a browser lag behind the model
MAX_NEW_TOKENS = (16, 2048)
MAX_TEMPERATURE = 1.5


class Engine:
    """A backend that loads while the page is already up; what went wrong is said with the first answer."""

    def __init__(self, model: str | None = None) -> None:
        self.error = ""
        self.model = model or self._default_model()
        self.name = assistant_name(self.model) if self.model else "Little Assistant"
        self._backend: Backend | None = None
        if self.model:
            threading.Thread(target=self._load, daemon=True, name="load").start()

    @property
    def shown_model(self) -> str:
        """The model as a visitor may read it: no address, and no folder above the repository."""
        if "://" in self.model:
            return self.name
        return self.model.removeprefix(f"{REPOSITORY}/")

    def stream(self, messages: list[Message], sampling: Sampling) -> Generator[str, None, None]:
        """As Backend.stream, after the model has loaded. Raises RuntimeError when it could not."""
        while not self._backend:
            if self.error:
                raise RuntimeError(self.error)
            yield Notice("loading")
            time.sleep(HEARTBEAT_S)
        yield from self._backend.stream(messages, sampling)

    def _default_model(self) -> str:
        try:
            return default_model()
        except RuntimeError as error:
            self.error = one_line(error)
            return ""

    def _load(self) -> None:
        try:
            self._backend = open_backend(self.model)
        except (ValueError, RuntimeError, OSError) as error:
            self.error = one_line(error)
            print(f"error: {self.error}", file=sys.stderr)
        except Exception as error:
            self.error = f"{self.model} cannot be loaded ({type(error).__name__}: {one_line(error)})"
            traceback.print_exc()


@cache
def the_engine() -> Engine:
    """The one engine of this process, however many pages and people there are."""
    return Engine()


def assistant_name(model: str) -> str:
    """The name on the card that made the model, else its folder's or its endpoint's name."""
    folder = Path(model)
    for path in (folder / SETTINGS_FILE, folder / "card.toml", folder.parent / "data" / "card.toml"):
        if path.is_file() and (name := _name_in(load_toml(path))):
            return name
    if "://" in model:
        return model.partition("#")[2] or "Little Assistant"
    return folder.parent.name if folder.name in ("model", "adapter") else folder.name


def _name_in(values: dict[str, Any]) -> str:
    card = values.get("card")
    names = (values.get("name"), card.get("name") if isinstance(card, dict) else None, values.get("title"))
    return next((name for name in names if isinstance(name, str) and name), "")


def sampling_from(temperature: float, top_p: float, max_new_tokens: float) -> Sampling:
    """Sampling within the page's limits, whatever an API caller sends."""
    least, most = MAX_NEW_TOKENS
    return Sampling(
        max_new_tokens=int(min(max(max_new_tokens, least), most)),
        temperature=min(max(temperature, 0.0), MAX_TEMPERATURE),
        top_p=min(max(top_p, 0.05), 1.0),
    )


def conversation(turns: list[Message], system_prompt: str = "") -> list[Message]:
    """The turns as a model may read them: with the system prompt, without questions that got no answer."""
    kept: list[Message] = []
    for turn in (turn for turn in turns if turn["content"].strip()):
        if kept and kept[-1]["role"] == turn["role"] == "user":
            kept.pop()
        if kept or turn["role"] == "user":
            kept.append(turn)
    return ([system(system_prompt.strip())] if system_prompt.strip() else []) + kept


@dataclass(frozen=True)
class Shown:
    """What a person sees of an answer so far: its text, a note beside it, and what is going on meanwhile."""

    text: str = ""
    note: str = ""
    meanwhile: str = ""
    failed: bool = False


def answer(
    engine: Engine, messages: list[Message], sampling: Sampling, texts: Texts
) -> Generator[Shown, None, None]:
    """The answer growing, at most 20 states a second. Never raises: an error becomes a note beside the text.

    Closing it closes the engine's stream, also while the model is silent.
    """
    shown, last = Shown(meanwhile=texts["thinking"]), 0.0
    try:
        with closing(engine.stream(messages, sampling)) as chunks:
            for chunk in chunks:
                shown = _grown(shown, chunk, texts)
                if (now := time.monotonic()) - last >= REDRAW_S:
                    yield shown
                    last = now
        if not shown.text.strip():
            raise RuntimeError(texts["no_words"])
        yield replace(shown, meanwhile="")
    except (ValueError, RuntimeError, OSError) as error:
        yield Shown(shown.text, one_line(error), failed=True)
    except Exception as error:  # a page must never freeze, whatever broke in a library
        traceback.print_exc()
        yield Shown(shown.text, texts.say("failed_inside", error=type(error).__name__), failed=True)


def _grown(shown: Shown, chunk: str, texts: Texts) -> Shown:
    if isinstance(chunk, Notice):
        said = texts.say(chunk.kind, number=chunk.number)
        return replace(shown, note=said) if chunk.kind == "shortened" else replace(shown, meanwhile=said)
    if not chunk:
        return shown
    return replace(shown, text=shown.text + chunk, meanwhile="")
