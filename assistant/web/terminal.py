"""The chat in a terminal: one answer on standard output, or turn after turn. The rest goes to stderr."""

import sys
from collections.abc import Sequence
from contextlib import closing

from assistant.backends import Backend, Notice, Sampling
from assistant.conversations import Message, assistant, system, user
from assistant.images import open_image
from assistant.settings import one_line

COMMANDS = "/image FILE, /clear, /system TEXT, /quit; Ctrl-C stops an answer"


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


def talk(backend: Backend, messages: list[Message], sampling: Sampling, images: Sequence[str] = ()) -> None:
    """Read turns until /quit or the end of the input; `messages` is empty or a system prompt.

    `images` go with the first question, those of /image with the next.
    """
    shown = list(images)
    say(f"{backend.label}  ({COMMANDS})")
    while (line := ask()) not in ("/quit", None):
        command, _, rest = (line or "").partition(" ")
        if command == "/clear":
            messages = [message for message in messages if message["role"] == "system"]
        elif command == "/system":
            messages = [system(rest.strip())] if rest.strip() else []
        elif command == "/image":
            shown += checked_image(rest.strip())
        elif command.startswith("/"):
            say(f"unknown command {command}; known: {COMMANDS}")
        elif line:
            messages, shown = answer_turn(backend, messages, user(line, shown), sampling), []


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
