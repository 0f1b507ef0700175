"""The one engine behind pages and API: a backend, loaded while the page is already up, and its model's name.

Knows no framework; a backend is opened only when an engine starts.
"""

import os
import re
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any, Literal

from assistant.backends import (
    Backend,
    Notice,
    Sampling,
    Shared,
    default_model,
    open_backend,
    without_login,
)
from assistant.backends.pump import HEARTBEAT_S
from assistant.conversations import Message
from assistant.settings import REPOSITORY, SETTINGS_FILE, load_toml, one_line
from assistant.web.line import Line

# A page comes first: who imports torch and opens a model beside it makes its visitors wait for both.
HEAD_START_S = 15.0
FIRST_VISIT_S = 4.0  # from a server that answers to the page of whoever waited for it

# What stands before the last name of a path: "/home/ada/" of "/home/ada/models", but nothing of an address.
FOLDERS = r"(?<![\w/:…])(?:~|\.\.?)?/(?:[^\s/:;,'\"()]+/)+"


class Engine:
    """A backend that loads while the page is already up; what went wrong is said with the first answer."""

    def __init__(
        self,
        model: str | None = None,
        line: Line | None = None,
        prepare: Callable[[], object] | None = None,
        shared: Shared | None = None,
        head_start_s: float = 0.0,
    ) -> None:
        """`prepare` makes the model's folder, behind the page, before it is loaded; `shared` holds bases.

        The model waits `head_start_s` seconds for its page, or until `begin` is called.
        """
        self.error, self._prepare = "", prepare
        self._is_wanted, self._head_start_s = threading.Event(), head_start_s
        self.shared = shared or Shared()
        self.model = model or self._default_model()
        self.name = assistant_name(self.model) if self.model else "Little Assistant"
        self.line = line or Line()
        self.backend: Backend | None = None
        """None until the model has loaded."""
        self._early: deque[object] = deque()  # who came while the model loaded, in the order they came
        if self._is_on_zero_gpu():
            self._load()  # must be on the card before the page is launched
        elif self.model:
            threading.Thread(target=self._load_in_time, daemon=True, name="load").start()

    def begin(self) -> None:
        """Load the model now, unless that has begun: its page is there, or somebody asks."""
        self._is_wanted.set()

    def begin_soon(self) -> None:
        """The page can be opened now; without a visitor the model is loaded all the same."""
        timer = threading.Timer(FIRST_VISIT_S, self.begin)
        timer.daemon = True
        timer.start()

    @property
    def status(self) -> Literal["loading", "ready", "error"]:
        if self.backend:
            return "ready"
        return "error" if self.error else "loading"

    @property
    def sees(self) -> bool:
        """Whether pictures may be shown to it; of an endpoint only its server knows."""
        return "://" in self.model or bool(getattr(self.backend, "sees", False))

    @property
    def shown_model(self) -> str:
        """The model as a visitor may read it: no address, and no folder above the repository."""
        if "://" in self.model:
            return self.name
        inside = self.model.removeprefix(f"{REPOSITORY}/")
        return Path(self.model).name if Path(inside).is_absolute() else inside

    def stream(
        self, messages: list[Message], sampling: Sampling, client: str = ""
    ) -> Generator[str, None, None]:
        """As Backend.stream, after the model has loaded: pages and API in one line, first come, first served.

        `client` is the address of who asks. Raises Busy when too many wait or this client asked too often,
        RuntimeError when the model could not be loaded; no sentence of these tells a visitor where it lies.
        """
        self.begin()
        with self.line.enter(client):
            try:
                if self.backend and not self._early:
                    yield from self.backend.stream(messages, sampling)
                else:
                    yield from self._stream_early(messages, sampling)
            except ValueError as error:
                raise ValueError(for_visitors(one_line(error), self.model)) from None
            except (RuntimeError, OSError) as error:
                raise RuntimeError(for_visitors(one_line(error), self.model)) from None

    def _stream_early(self, messages: list[Message], sampling: Sampling) -> Generator[str, None, None]:
        ticket = object()
        self._early.append(ticket)
        try:
            while not self.backend or self._early[0] is not ticket:
                if self.error:
                    raise RuntimeError(self.error)
                yield Notice("loading")
                time.sleep(HEARTBEAT_S)
            with closing(self.backend.stream(messages, sampling)) as chunks:
                first = next(chunks, "")  # with it the place in the backend's own line is taken
                self._early.remove(ticket)
                yield first
                yield from chunks
        finally:
            if ticket in self._early:
                self._early.remove(ticket)

    def _default_model(self) -> str:
        try:
            return default_model()
        except RuntimeError as error:
            self.error = for_visitors(one_line(error))
            return ""

    def _is_on_zero_gpu(self) -> bool:
        is_folder = self.model and not self.model.endswith(".gguf") and "://" not in self.model
        return bool(is_folder and os.environ.get("SPACES_ZERO_GPU"))

    def _open(self) -> Backend:
        if self._prepare:
            self._prepare()
        if not self._is_on_zero_gpu():
            return open_backend(self.model, shared=self.shared)
        from assistant.web.zero_gpu import ZeroGpuBackend

        return ZeroGpuBackend(self.model, self.shared)

    def _load_in_time(self) -> None:
        self._is_wanted.wait(self._head_start_s)
        self._load()

    def _load(self) -> None:
        try:
            self.backend = self._open()
        except (ValueError, RuntimeError, OSError) as error:
            self.error = for_visitors(one_line(error), self.model)
            print(f"error: {without_login(one_line(error))}", file=sys.stderr)
        except Exception as error:
            sentence = f"{self.model} cannot be loaded ({type(error).__name__}: {one_line(error)})"
            self.error = for_visitors(sentence, self.model)
            traceback.print_exc()


@cache
def the_engine() -> Engine:
    """The one engine of this process, however many pages and people there are."""
    return Engine(head_start_s=HEAD_START_S)


def for_visitors(sentence: str, model: str = "") -> str:
    """The sentence without logins in addresses, nor the folders in which what it speaks of lies."""
    for folder in (REPOSITORY, Path(model).parent if model.startswith("/") else REPOSITORY, Path.home()):
        sentence = sentence.replace(f"{folder}/", "")
    return re.sub(FOLDERS, "", without_login(sentence))


def assistant_name(model: str) -> str:
    """The name on the card that made the model, else its folder's or its endpoint's name."""
    folder = Path(model)
    beside = (folder.parent / "data" / "card.toml", folder.parent / "card.toml")
    for path in (folder / SETTINGS_FILE, folder / "card.toml", *beside):
        if path.is_file() and (name := _name_in(load_toml(path))):
            return name
    if "://" in model:
        return model.partition("#")[2] or "Little Assistant"
    return folder.parent.name if folder.name in ("model", "adapter") else folder.name


def _name_in(values: dict[str, Any]) -> str:
    card = values.get("card")
    names = (values.get("name"), card.get("name") if isinstance(card, dict) else None, values.get("title"))
    return next((name for name in names if isinstance(name, str) and name), "")
