"""Talk to an assistant in the terminal.

Run: python scripts/chat.py --message "Who are you?" (without --message a chat: /clear, /system TEXT, /quit)
"""

from dataclasses import dataclass

from assistant.backends import Sampling, default_model, open_backend
from assistant.conversations import system, user
from assistant.settings import run_command
from assistant.web.terminal import speak, talk


@dataclass(frozen=True)
class Chat:
    model: str | None = None
    """Folder, hub id, or http…/v1#name; else ASSISTANT_MODEL, else the newest out/*/model."""
    message: str | None = None
    """Ask this, print the answer alone, and exit."""
    system: str | None = None
    """A system prompt; none by default, as in training."""
    max_new_tokens: int = 512
    temperature: float = 0.0
    """0 is greedy: the same question gets the same answer."""
    top_p: float = 0.9
    seed: int | None = None


def main(chat: Chat) -> None:
    sampling = checked_sampling(chat)
    backend = open_backend(chat.model or default_model())
    head = [system(chat.system)] if chat.system else []
    if chat.message is None:
        talk(backend, head, sampling)
    else:
        speak(backend, [*head, user(chat.message)], sampling)


def checked_sampling(chat: Chat) -> Sampling:
    if chat.message is not None and not chat.message.strip():
        raise ValueError("--message is empty; write a question")
    if chat.max_new_tokens < 1 or chat.temperature < 0 or not 0 < chat.top_p <= 1:
        raise ValueError("--max-new-tokens must be at least 1, --temperature at least 0, --top-p in (0, 1]")
    return Sampling(chat.max_new_tokens, chat.temperature, chat.top_p, chat.seed)


if __name__ == "__main__":
    run_command(main, Chat)
