"""Gives anchor rows the base model's own answers: shipped with the repository, kept on disk, or made now."""

import hashlib
from collections.abc import Callable
from pathlib import Path

from assistant.anchors import key_of, load_answers, save_answers, shipped_answers
from assistant.conversations import Row, assistant
from assistant.generating import generate_batch
from assistant.loading import ChatModel

ANSWER_TOKENS = 48


def answered_by_base(chat: ChatModel, rows: list[Row], cache: Path, say: Callable[[str], None]) -> list[Row]:
    """The rows, each ending with the base's greedy answer; what had to be generated is kept in `cache`.

    A row may end with the user's turn or with an answer of its own, which is replaced.
    """
    prompts = [
        row["messages"] if row["messages"][-1]["role"] == "user" else row["messages"][:-1] for row in rows
    ]
    kept = cache / f"{fingerprint(chat.path)}.jsonl"
    answers = load_answers(shipped_answers(chat.path.name), kept)
    missing = list({key_of(prompt): prompt for prompt in prompts if key_of(prompt) not in answers}.values())
    if missing:
        say(f"the base model answers {len(missing)} anchor prompts (kept in {kept} for the next name)")
        texts = answer_all(chat, missing, say)
        answers |= {key_of(prompt): text for prompt, text in zip(missing, texts, strict=True)}
        older = load_answers(kept)
        _save(kept, older | {key_of(prompt): text for prompt, text in zip(missing, texts, strict=True)})
    return [
        {**row, "messages": [*prompt, assistant(answers[key_of(prompt)])]}
        for row, prompt in zip(rows, prompts, strict=True)
    ]


def answer_all(chat: ChatModel, prompts: list, say: Callable[[str], None]) -> list[str]:
    done = 0

    def progress(count: int) -> None:
        nonlocal done
        done += count
        say(f"  {done} of {len(prompts)} anchor prompts answered")

    # an empty answer would train nothing: keep one visible character
    return [text or "…" for text in generate_batch(chat, prompts, ANSWER_TOKENS, progress=progress)]


def _save(path: Path, answers: dict[str, str]) -> None:
    import json

    prompts = [[{"role": role, "content": content} for role, content in json.loads(key)] for key in answers]
    save_answers(path, prompts, list(answers.values()))  # type: ignore[arg-type]


def fingerprint(model: Path) -> str:
    """Short name of a model's exact weights and template: file names, sizes and the first and last MiB."""
    digest = hashlib.sha256()
    files = [*sorted(model.glob("*.safetensors")), *sorted(model.glob("chat_template*"))]
    for path in files:
        size = path.stat().st_size
        with path.open("rb") as file:
            digest.update(f"{path.name}:{size}".encode() + file.read(1 << 20))
            file.seek(max(size - (1 << 20), 0))
            digest.update(file.read())
    return f"{model.name}-{digest.hexdigest()[:12]}"
