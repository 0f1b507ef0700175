"""Talk to an assistant in the terminal: python scripts/chat.py --message "Who are you?"

Without --message a chat: /clear, /system TEXT, /quit; Ctrl-C stops an answer.
"""

import sys
from contextlib import closing
from dataclasses import dataclass

from assistant.backends import Backend, Notice, Sampling, default_model, open_backend
from assistant.conversations import Message, assistant, system, user
from assistant.settings import one_line, run_command


@dataclass(frozen=True)
class Chat:
    model: str | None = None
    """A model or adapter folder, a hub id, or http…/v1#name; else ASSISTANT_MODEL, else the newest out/*/model."""
    message: str | None = None
    """Ask this, print the answer alone, and exit."""
    system: str | None = None
    """A system prompt; none by default, as in training."""
    max_new_tokens: int = 512
    temperature: float = 0.0
    """0 is greedy: the same question gets the same answer."""
    top_p: float = 0.9
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or self.temperature < 0 or not 0 < self.top_p <= 1:
            raise ValueError("max-new-tokens must be at least 1, temperature at least 0, top-p in (0, 1]")


def main(chat: Chat) -> None:
    if chat.message is not None and not chat.message.strip():
        raise ValueError("--message is empty; write a question")
    backend = open_backend(chat.model or default_model())
    sampling = Sampling(chat.max_new_tokens, chat.temperature, chat.top_p, chat.seed)
    head = [system(chat.system)] if chat.system else []
    if chat.message is not None:
        speak(backend, [*head, user(chat.message)], sampling)
    else:
        talk(backend, head, sampling)


def speak(backend: Backend, messages: list[Message], sampling: Sampling) -> str:
    answer = ""
    with closing(backend.stream(messages, sampling)) as chunks:  # type: ignore[type-var]
        for chunk in chunks:
            if isinstance(chunk, Notice) and chunk.kind == "shortened":
                print(f"the {chunk.count} oldest messages no longer fit and were left out", file=sys.stderr)
            print(chunk, end="", flush=True)
            answer += chunk
    print()
    return answer


def talk(backend: Backend, messages: list[Message], sampling: Sampling) -> None:
    print(f"{backend.label}  (/clear, /system TEXT, /quit; Ctrl-C stops an answer)", file=sys.stderr)
    while (line := ask()) not in (None, "/quit"):
        if not line:
            continue
        if line == "/clear":
            messages = [message for message in messages if message["role"] == "system"]
        elif line.split()[0] == "/system":
            messages = [system(text)] if (text := line.removeprefix("/system").strip()) else []
        elif line.startswith("/"):
            print("known: /clear, /system TEXT, /quit", file=sys.stderr)
        else:
            messages = answer_turn(backend, messages, line, sampling)


def ask() -> str | None:
    try:
        return input("> ").strip()
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return ""
    except EOFError:
        return None


def answer_turn(backend: Backend, messages: list[Message], line: str, sampling: Sampling) -> list[Message]:
    """The conversation with this turn, or without it when it was stopped or failed."""
    try:
        answer = speak(backend, [*messages, user(line)], sampling)
    except KeyboardInterrupt:
        print(" [stopped]", file=sys.stderr)
    except (RuntimeError, ValueError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
    else:
        return [*messages, user(line), assistant(answer)] if answer.strip() else messages
    return messages


if __name__ == "__main__":
    run_command(main, Chat)
