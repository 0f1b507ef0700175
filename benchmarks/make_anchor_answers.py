"""Let the default base answer every anchor prompt that holds no name, into data/general/answers/.

Run: python benchmarks/make_anchor_answers.py --model models/smollm2-135m-instruct
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from assistant.anchors import general_prompts, key_of, load_answers, save_answers, shipped_answers
from assistant.card import known_languages
from assistant.conversations import Message, user
from assistant.loading import load_chat_model
from assistant.settings import DATA, load_toml, run_command
from assistant.training.anchoring import answer_all
from assistant.training.run import say


@dataclass(frozen=True)
class Settings:
    model: Path
    """The base model's folder; its name becomes the file's name."""


def prompts() -> Iterator[list[Message]]:
    yield from (row["messages"] for row in general_prompts())
    for language in known_languages():
        texts = load_toml(DATA / "identity" / f"{language}.toml")
        for section in ("greetings", "near_misses"):
            yield from ([user(question)] for question, _ in texts[section]["turns"] if "{" not in question)


def main(settings: Settings) -> None:
    chat = load_chat_model(settings.model, dtype=torch.float32)
    path = shipped_answers(settings.model.name)
    known = load_answers(path)
    asked = {key_of(prompt): prompt for prompt in prompts()}
    missing = [prompt for key, prompt in asked.items() if key not in known]
    known |= dict(zip(map(key_of, missing), answer_all(chat, missing, say), strict=True))
    save_answers(path, list(asked.values()), [known[key] for key in asked])


if __name__ == "__main__":
    run_command(main, Settings)
