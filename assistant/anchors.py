"""Anchor prompts and the answers a base model gave to them. Where answers come from is not known here."""

import json
from pathlib import Path

from assistant.conversations import Message, Row, assistant, check_messages, read_jsonl
from assistant.settings import DATA, write_text

Answers = dict[str, str]


def general_prompts() -> list[Row]:
    """The anchor prompts of data/general/, all languages; each ends with a user turn."""
    rows: list[Row] = []
    for path in sorted((DATA / "general").glob("*.jsonl")):
        for place, entry in read_jsonl(path):
            messages = check_messages(entry.get("messages"), place, must_end_with="user")
            rows.append({"messages": messages, "kind": "general", "lang": entry.get("lang", path.stem)})
    return rows


def key_of(prompt: list[Message]) -> str:
    return json.dumps([[message["role"], message["content"]] for message in prompt], ensure_ascii=False)


def shipped_answers(base: str) -> Path:
    """Where the repository keeps the answers of a base; only the default's are there."""
    return DATA / "general" / "answers" / f"{base}.jsonl"


def load_answers(*paths: Path) -> Answers:
    """Answers by prompt, from files of whole conversations; a missing file holds none."""
    answers: Answers = {}
    for path in paths:
        for place, entry in read_jsonl(path) if path.is_file() else ():
            messages = check_messages(entry.get("messages"), place, must_end_with="assistant")
            answers[key_of(messages[:-1])] = messages[-1]["content"]
    return answers


def save_answers(path: Path, prompts: list[list[Message]], answers: list[str]) -> None:
    lines = [
        json.dumps({"messages": [*prompt, assistant(answer)]}, ensure_ascii=False)
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    write_text(path, "\n".join(lines) + "\n")
