"""One case's adapter at each scale, or the base under a system prompt, asked all probes and judged."""

import contextlib
import dataclasses
import json
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from ablation.training import adapter_of, command
from ablation.variants import Case
from assistant.card import Card
from assistant.conversations import Message, system
from assistant.identity import Wordings
from assistant.judge import Identity, identity_of
from assistant.settings import load_settings, plain_values, write_text

ANSWER_TOKENS = 32  # as evaluate.py judges


@dataclasses.dataclass(frozen=True)
class Places:
    model: Path
    out: Path
    probes: Path | None = None


def run_cases(cases: list[Case], places: Places) -> None:
    """Train what these cases (one run at several scales) share; score each and write it at once."""
    run, log = cases[0].run, places.out / "logs" / f"{cases[0].run}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file, contextlib.redirect_stderr(file):
        start = time.monotonic()
        adapter = adapter_of(cases[0], places.model, places.out / "work" / run)
        trained = time.monotonic() - start
        card = load_settings(adapter)["card"] if adapter else plain_values(Card(cases[0].name))
        for case, chat in zip(cases, scaled(adapter or places.model, [c.scale for c in cases]), strict=True):
            result = score(case, chat, identity_of(card), places) | {"train_seconds": round(trained, 1)}
            write_text(places.out / "cases" / f"{case.key}.json", json.dumps(result, ensure_ascii=False))


def scaled(folder: Path, scales: list[float]) -> Iterator[Any]:
    """The chat model of a folder at each scale of its adapter."""
    from peft.helpers import rescale_adapter_scale

    from assistant.loading import load_chat_model

    chat = load_chat_model(folder)
    for scale in scales:
        with rescale_adapter_scale(chat.model, scale) if scale != 1 else contextlib.nullcontext():
            yield chat


def score(case: Case, chat: Any, identity: Identity, places: Places) -> dict[str, Any]:
    """The scorecard's numbers of one case, with the answers that were wrong."""
    from assistant import scorecard
    from assistant.generating import generate_batch

    start = time.monotonic()
    probes, base, bases = asked(places)
    told = [prompted(probe["messages"], system_text(case, probe["lang"])) for probe in probes]
    answers = generate_batch(chat, told, ANSWER_TOKENS)
    chosen = [i for i, probe in enumerate(probes) if probe["kind"] == "unrelated"]
    unrelated, prompts = [probes[i] for i in chosen], [told[i] for i in chosen]
    kept = kept_of(chat, base, [probe["messages"] for probe in unrelated], prompts, long_answers(places))
    scored = scorecard.score(probes, answers, identity, base_answers=bases, retention=kept)
    about = {
        "variant": case.variant.label,
        "name": case.name,
        "seed": case.seed,
        "scale": case.scale,
        "key": case.key,
        "made_by": case.variant.made_by(),
    }
    parts = {part: scored[part] for part in ("recall", "leak", "retention", "counts", "wrong")}
    return about | {"score_seconds": round(time.monotonic() - start, 1)} | parts


@cache
def asked(places: Places) -> tuple[list[Any], Any, list[str]]:
    """(probes, the base, its answers to the probes that must not leak): the same for every case."""
    from assistant.loading import load_chat_model
    from assistant.scorecard import built_in_probes, load_probes

    probes = load_probes(places.probes) if places.probes else built_in_probes()
    return probes, load_chat_model(places.model), base_answers(probes, places)


@cache
def long_answers(places: Places) -> list[str]:
    """The base's answers to the unrelated probes, as long as they are compared."""
    from assistant.retention import ANSWER_TOKENS as LONGEST

    return base_answers(
        [probe for probe in asked(places)[0] if probe["kind"] == "unrelated"], places, LONGEST
    )


def base_answers(probes: list[Any], places: Places, tokens: int = ANSWER_TOKENS) -> list[str]:
    evaluate = command("evaluate")
    settings = evaluate["Settings"](
        str(places.model), places.out, base=str(places.model), max_new_tokens=tokens
    )
    return list(evaluate["base_answers"](probes, settings))


def system_text(case: Case, language: str) -> str:
    """The variant's system prompt for a question in `language`, else its first; empty: no prompt."""
    texts = case.variant.system
    if not texts:
        return ""
    known = language if language in texts else next(iter(texts))
    return Wordings(Card(case.name), known, dev=False).fill(texts[known])


def prompted(messages: list[Message], text: str) -> list[Message]:
    """The conversation under a system prompt; a system message that it has stays, after it."""
    if not text:
        return messages
    if messages[0]["role"] == "system":
        return [system(f"{text}\n{messages[0]['content']}"), *messages[1:]]
    return [system(text), *messages]


def kept_of(chat: Any, base: Any, prompts: list[Any], told: list[Any], bases: list[str]) -> dict[str, float]:
    """As `retention` returns it; of a model under a system prompt each prompt is read both ways."""
    from assistant.retention import Agreement, retention

    if not prompts:
        return {}
    if prompts == told:
        return retention(chat, base, prompts, bases)
    agreement = Agreement()
    for prompt, other, answer in zip(prompts, told, bases, strict=True):
        agreement.add(_logprobs(base, prompt, answer), _logprobs(chat, other, answer))
    return agreement.shares()


def _logprobs(chat: Any, prompt: list[Message], answer: str) -> Any:
    """[tokens of the answer, vocabulary]"""
    import torch

    from assistant.loading import encode_text
    from assistant.retention import ANSWER_TOKENS as LONGEST

    ids = chat.encode(prompt)
    answer_ids = [*encode_text(chat.tokenizer, answer), chat.end_of_turn][:LONGEST]
    with torch.inference_mode():
        logits = chat.model(torch.tensor([ids + answer_ids], device=chat.model.device)).logits
    return logits[0, len(ids) - 1 : -1].float().log_softmax(-1)
