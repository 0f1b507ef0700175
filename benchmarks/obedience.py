"""Does an assistant obey system prompts and roles as its base does? How often each keeps to a rule.

Run: python benchmarks/obedience.py --base models/smollm2-135m-instruct --model out/ada/model
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from assistant.backends import Sampling, open_backend
from assistant.judge import identity_of, leaks_identity
from assistant.obedience import load_rules
from assistant.settings import load_settings, run_command, write_text


@dataclass(frozen=True)
class Settings:
    base: str
    model: str
    temperature: float = 0.0
    tokens: int = 64
    """Of an answer, at most."""
    out: Path | None = None
    """A json file for the answers."""


def answers_of(model: str, settings: Settings) -> Iterator[list[str]]:
    """The answers under each rule."""
    rules = load_rules()
    sampling = Sampling(max_new_tokens=settings.tokens, temperature=settings.temperature)
    asked = [conversation for _, conversations in rules for conversation in conversations]
    answers = iter(open_backend(model).answer_all(asked, sampling))
    for _, conversations in rules:
        yield [next(answers) for _ in conversations]


def leaked(rows: list[dict[str, Any]], card: dict[str, Any]) -> None:
    """How many of the assistant's answers state its identity, which no rule and no question asks for."""
    identity = identity_of(card)
    for lang in ("en", "zh"):
        for place, form in enumerate(("as a system prompt", "before the question")):
            said = [
                leaks_identity(answer, identity, row["questions"][number])
                for row in rows
                if row["lang"] == lang
                for number, answer in enumerate(row["answers"][1])
                if number % 2 == place
            ]
            print(f"{lang}, {form}: {sum(said)} of {len(said)} answers of the assistant state its identity")


def main(settings: Settings) -> None:
    rows = []
    models = (settings.base, settings.model)
    for (rule, asked), *answers in zip(load_rules(), *(answers_of(m, settings) for m in models), strict=True):
        kept = [sum(map(rule.is_kept_by, each)) for each in answers]
        questions = [turns[-1]["content"] for turns in asked]
        rows.append(
            {"lang": rule.lang, "rule": rule.system, "kept": kept, "questions": questions, "answers": answers}
        )
        print(f"{kept[0]} {kept[1]} of {len(answers[0])}  {rule.system}")
    for lang in ("en", "zh"):
        mine = [row for row in rows if row["lang"] == lang]
        base, model = (sum(row["kept"][place] for row in mine) for place in (0, 1))
        count = sum(len(row["answers"][0]) for row in mine)
        print(
            f"{lang}: base {base}, assistant {model} of {count}: {100 * (model - base) / count:+.1f} points"
        )
    if card := load_settings(Path(settings.model)).get("card"):
        leaked(rows, card)
    if settings.out:
        write_text(settings.out, json.dumps(rows, ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    run_command(main, Settings)
