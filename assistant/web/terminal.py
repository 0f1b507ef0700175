"""The chat in a terminal: one answer on standard output, or turn after turn. The rest goes to stderr."""

import sys
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace

from assistant.backends import Backend, Notice, Sampling, Shared, open_backend
from assistant.conversations import Message, assistant, system, user
from assistant.images import open_image
from assistant.settings import REPOSITORY, one_line
from assistant.strength import read_strength
from assistant.web.models import find_models, model_named

COMMANDS = "/use NAME, /strength 0.7, /image FILE, /clear, /system TEXT, /quit; Ctrl-C stops an answer"
NO_STRENGTH = "this model has no strength to set; only a LoRA adapter has: /use NAME"


def speak(backend: Backend, messages: list[Message], sampling: Sampling) -> str:
    """Stream the answer to standard output and return it."""
    answer = ""
    with closing(backend.stream(messages, sampling)) as chunks:
        for chunk in chunks:
            if isinstance(chunk, Notice) and chunk.kind == "shortened":
                say(f"the {chunk.number} oldest messages no longer fit the model's context and were left out")
            print(chunk, end="", flush=True)
            answer += chunk
    print()
    return answer


def talk(
    backend: Backend,
    messages: list[Message],
    sampling: Sampling,
    images: Sequence[str] = (),
    shared: Shared | None = None,
) -> None:
    """Read turns until /quit or the end of the input; `messages` is empty or a system prompt.

    `images` go with the first question, those of /image with the next. What /use opens has its base in memory
    once with what was opened with the same `shared`.
    """
    shown, shared = list(images), shared or Shared()
    say(f"{backend.label}  ({COMMANDS})")
    while (line := ask()) not in ("/quit", None):
        command, _, rest = (line or "").partition(" ")
        if command == "/clear":
            messages = [message for message in messages if message["role"] == "system"]
        elif command == "/system":
            messages = [system(rest.strip())] if rest.strip() else []
        elif command == "/use":
            backend = use(backend, rest.strip(), sampling.strength, shared)
        elif command == "/strength":
            sampling = with_strength(backend, sampling, rest.strip())
        elif command == "/image":
            shown += checked_image(rest.strip())
        elif command.startswith("/"):
            say(f"unknown command {command}; known: {COMMANDS}")
        elif line:
            messages, shown = answer_turn(backend, messages, user(line, shown), sampling), []


def use(backend: Backend, name: str, strength: float, shared: Shared) -> Backend:
    """The model of that name instead; without a name, what there is. `strength` is only said."""
    models, begin = find_models(""), time.monotonic()
    if not name:
        say("\n".join(f"{model.name}: {model.id}" for model in models) or "there is no model yet")
        return backend
    try:
        opened = open_backend(model_named(name, models, backend.label), shared=shared)
    except (ValueError, RuntimeError, OSError) as error:
        say(f"error: {one_line(error)}")
        return backend
    seconds = time.monotonic() - begin
    label = opened.label.replace(f"{REPOSITORY}/", "")
    label += f" at strength {strength:g}" if has_strength(opened) and strength != 1 else ""
    say(f"{label}, after {seconds:.1f} s; the conversation goes on (/clear begins anew)")
    return opened


def with_strength(backend: Backend, sampling: Sampling, text: str) -> Sampling:
    """The adapter at that strength from the next answer on, or a sentence why not."""
    try:
        sampling = replace(sampling, strength=read_strength(text)) if has_strength(backend) else sampling
    except ValueError as error:
        say(f"error: {one_line(error)}")
        return sampling
    say(f"strength {sampling.strength:g}" if has_strength(backend) else NO_STRENGTH)
    return sampling


def has_strength(backend: Backend) -> bool:
    return bool(getattr(backend, "has_strength", False))


def checked_image(file: str) -> list[str]:
    """The file when it is a picture; else nothing, and a sentence why."""
    try:
        open_image(file)
    except ValueError as error:
        say(f"error: {one_line(error)}")
        return []
    say(f"{file} goes with the next question")
    return [file]


def answer_turn(
    backend: Backend, messages: list[Message], question: Message, sampling: Sampling
) -> list[Message]:
    """The conversation with this turn, or without it when it was stopped or failed."""
    asked = [*messages, question]
    try:
        answer = speak(backend, asked, sampling)
    except KeyboardInterrupt:
        say("\nstopped")
        return messages
    except (RuntimeError, ValueError) as error:
        say(f"error: {one_line(error)}")
        return messages
    return [*asked, assistant(answer)] if answer.strip() else messages


def ask() -> str | None:
    """One line from the person; empty after Ctrl-C, None at the end of the input."""
    try:
        return input("> ").strip()
    except KeyboardInterrupt:
        say("")
        return ""
    except EOFError:
        return None


def say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)
