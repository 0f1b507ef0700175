"""Talk to an assistant in the terminal.

Run: python scripts/chat.py --message "Who are you?" (without --message a chat: /use NAME, /clear, /quit, …)
An adapter at less than it was trained to: python scripts/chat.py --model out/ada/adapter --strength 0.7
With pictures: python scripts/chat.py --model out/ada/llava --image cat.jpg --message "What is this?"
"""

from dataclasses import dataclass, field
from typing import Annotated

import tyro

from assistant.backends import Sampling, Shared, default_model, open_backend
from assistant.conversations import system, user
from assistant.images import open_image
from assistant.settings import run_command
from assistant.strength import check_strength_of, read_strength
from assistant.web.terminal import speak, talk


@dataclass(frozen=True)
class Chat:
    model: str | None = None
    """Folder, hub id, or http…/v1#name; else ASSISTANT_MODEL, else the newest out/*/model."""
    message: str | None = None
    """Ask this, print the answer alone, and exit."""
    image: tyro.conf.UseAppendAction[list[str]] = field(default_factory=list)
    """A picture for a model that sees; give it several times for several, in their order."""
    system: str | None = None
    """A system prompt; none by default, as in training."""
    max_new_tokens: int = 512
    temperature: float = 0.0
    """0 is greedy: the same question gets the same answer."""
    top_p: float = 0.9
    seed: int | None = None
    strength: Annotated[str, tyro.conf.arg(metavar="FLOAT")] = "1"
    """Of a LoRA adapter: 0 is its base, 1 as trained, at most 1.5."""


def main(chat: Chat) -> None:
    sampling = checked_sampling(chat)
    for image in chat.image:
        open_image(image)  # a bad one stops before the model is loaded
    model, shared = chat.model or default_model(), Shared()
    check_strength_of(model, sampling.strength)
    backend = open_backend(model, shared=shared)
    head = [system(chat.system)] if chat.system else []
    if chat.message is None:
        talk(backend, head, sampling, chat.image, shared)
    else:
        speak(backend, [*head, user(chat.message, chat.image)], sampling)


def checked_sampling(chat: Chat) -> Sampling:
    if chat.message is not None and not chat.message.strip():
        raise ValueError("--message is empty; write a question")
    if chat.max_new_tokens < 1 or chat.temperature < 0 or not 0 < chat.top_p <= 1:
        raise ValueError("--max-new-tokens must be at least 1, --temperature at least 0, --top-p in (0, 1]")
    strength = read_strength(chat.strength)
    return Sampling(chat.max_new_tokens, chat.temperature, chat.top_p, chat.seed, strength)


if __name__ == "__main__":
    run_command(main, Chat)
