"""Score an assistant: does the name stick, does it leak, what was kept of the base. Exit 1 below a threshold.

Run: python scripts/evaluate.py --model out/ada/model --base models/smollm2-135m-instruct --name Ada \\
    --out out/ada/scorecard
With pictures: python scripts/evaluate.py --images out/pictures --model out/ada/llava \\
    --base models/smollm2-135m-instruct --out out/ada/eyes_scorecard
"""

import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from assistant import picture_report, scorecard
from assistant.anchors import key_of, load_answers, save_answers
from assistant.backends import Backend, Sampling, open_backend
from assistant.conversations import Message
from assistant.judge import Identity, identity_of
from assistant.picture_questions import (
    PictureProbe,
    even_part,
    load_picture_probes,
    load_probe_shares,
    stamp_probes,
)
from assistant.picture_scorecard import ANSWER_TOKENS, score_pictures
from assistant.pictures.stamps import stamps
from assistant.scorecard import Probe, built_in_probes, load_probes
from assistant.settings import (
    DATA,
    ThresholdMissed,
    load_settings,
    load_toml,
    plain_values,
    run_command,
    save_settings,
)

CACHE = Path(__file__).resolve().parent.parent / "models" / "cache"
COMPARED = 100  # prompts of KL, top-1 and same answers, evenly chosen: 300 take a minute more on two cores


@dataclass(frozen=True)
class Settings:
    model: str
    """A model or adapter folder, a .gguf file, or an OpenAI-compatible address (http…/v1)."""
    out: Path
    """Where the scorecard goes, for example out/ada/scorecard."""
    name: str = ""
    """The name asked for; default: the card that the model folder keeps."""
    owner: str = ""
    base: str = ""
    """The base model's folder, to compare with; without it nothing is said about retention."""
    probes: Path | None = None
    """A probe file instead of the built-in questions."""
    backend: Literal["auto", "transformers", "openai", "llama_cpp"] = "auto"
    max_new_tokens: int = 32
    """Tokens of an answer that are judged."""
    temperature: float = 0.0
    images: Path | None = None
    """Pictures instead: a folder of gen_image_data.py, about which a model with eyes is asked."""
    image_probes: int = 400
    """With --images: about so many of its questions, evenly chosen; 0 asks all, some 2,400."""
    stamps: bool = True
    """With --images: also photos that no drawing resembles (Debian's Tux Paint stamps, fetched once)."""
    probe: Path | None = None
    """With --images: what benchmarks/picture_probe.py --out wrote; default data/pictures/probe.json."""


def card_of(model: Path) -> dict[str, Any]:
    """The card that a model folder keeps, or that lies in the run beside a .gguf file; empty without one."""
    if model.is_dir():
        return dict(load_settings(model).get("card", {}))
    beside = (model.parent / place for place in ("card.toml", "data/card.toml"))
    return next((load_toml(path) for path in beside if model.is_file() and path.is_file()), {})


def identity_from(settings: Settings) -> Identity:
    """Who should answer. It may name its own base: the card's, else that of --base."""
    card = card_of(Path(settings.model))
    if settings.name and settings.name != card.get("name"):
        card = {"name": settings.name, "owner": settings.owner}
    if not card.get("name"):
        raise ValueError("whose assistant is asked for? give --name, for example --name Ada")
    title = load_settings(Path(settings.base)).get("title", "") if settings.base else ""
    return identity_of({**card, "base": card.get("base") or title})


def ask(backend: Backend, probes: list[Probe], settings: Settings) -> list[str]:
    return answer(backend, [probe["messages"] for probe in probes], settings)


def answer(backend: Backend, questions: list[list[Message]], settings: Settings) -> list[str]:
    done = 0

    def progress(count: int) -> None:
        nonlocal done
        done += count
        print(f"  {done}/{len(questions)} answers of {backend.label}", file=sys.stderr, flush=True)

    sampling = Sampling(max_new_tokens=settings.max_new_tokens, temperature=settings.temperature)
    return backend.answer_all(questions, sampling, progress)


def base_answers(probes: list[Probe], settings: Settings) -> list[str]:
    """The base's answers to the probes that must not leak, shipped or kept on disk; "" for the others."""
    from assistant.training.anchoring import fingerprint

    name = f"{fingerprint(Path(settings.base))}-{settings.max_new_tokens}"
    kept = CACHE / f"{name}-probes.jsonl"
    known = load_answers(DATA / "probes" / "answers" / f"{name}.jsonl", kept)
    compared = [probe for probe in probes if probe["kind"] in scorecard.LEAK]
    missing = [probe for probe in compared if key_of(probe["messages"]) not in known]
    if missing:
        texts = [text or "…" for text in ask(open_backend(settings.base, "transformers"), missing, settings)]
        known |= {key_of(probe["messages"]): text for probe, text in zip(missing, texts, strict=True)}
        unique = {key_of(probe["messages"]): probe["messages"] for probe in compared}
        save_answers(kept, list(unique.values()), [known[key] for key in unique])
    return [known.get(key_of(probe["messages"]), "") for probe in probes]


def kept_of_base(backend: Backend, probes: list[Probe], settings: Settings) -> dict[str, float]:
    """As assistant.retention has it, of a model that is a folder; any other is asked for the same answers."""
    from assistant.retention import ANSWER_TOKENS, retention

    unrelated = [probe for probe in probes if probe["kind"] == "unrelated"]
    compared = unrelated[:: max(len(unrelated) // COMPARED, 1)]
    if not compared:
        return {}
    longer = replace(settings, max_new_tokens=ANSWER_TOKENS, temperature=0.0)
    bases = base_answers(compared, longer)
    if not Path(settings.model).is_dir():
        # an empty answer of the base is kept as "…"
        pairs = zip(ask(backend, compared, longer), bases, strict=True)
        return {"same_answer": sum((text or "…") == base for text, base in pairs) / len(bases)}
    from assistant.loading import load_chat_model

    models = load_chat_model(settings.model), load_chat_model(settings.base)
    return retention(*models, [probe["messages"] for probe in compared], bases)


def check_sees(model: Path) -> None:
    """A folder of text alone is refused before it is loaded; a server or a hub's model says so itself."""
    if not model.is_dir():
        return
    from assistant.eyes import is_llava
    from assistant.loading import base_of_adapter, is_adapter

    if not is_llava(base_of_adapter(model) if is_adapter(model) else model):
        raise ValueError(f"{model} reads text alone; --images asks a model with eyes (scripts/make_llava.py)")


def picture_questions(settings: Settings, data: Path) -> list[PictureProbe]:
    questions = load_picture_probes(data)
    try:
        questions += stamp_probes(stamps()) if settings.stamps else []
    except RuntimeError as error:
        print(f"without the stamps: {error}", file=sys.stderr)
    return even_part(questions, settings.image_probes)


def score_images(settings: Settings, data: Path) -> None:
    """The scorecard of a model with eyes; its identity is asked for when a name is known."""
    check_sees(Path(settings.model))
    named = settings.name or card_of(Path(settings.model)).get("name")
    identity = identity_from(settings) if named else None
    shares, probes = load_probe_shares(settings.probe), picture_questions(settings, data)
    start = time.monotonic()
    backend = open_backend(settings.model, settings.backend)
    sampled = replace(settings, max_new_tokens=ANSWER_TOKENS)
    answers = answer(backend, [probe.messages for probe in probes], sampled)
    seconds, kept = {"answers": time.monotonic() - start}, {}
    if settings.base:
        start = time.monotonic()
        kept = kept_of_base(backend, built_in_probes(), settings)
        seconds["retention"] = time.monotonic() - start
    card = score_pictures(
        probes, answers, identity, probe_shares=shares, retention=kept, seconds=seconds,
        model=settings.model, base=settings.base, backend=backend.label, data=str(data),
    )  # fmt: skip
    picture_report.save_pictures(card, settings.out)
    finish(card, picture_report.markdown(card), settings)


def finish(card: dict[str, Any], table: str, settings: Settings) -> None:
    save_settings(settings.out, plain_values(settings))
    print(table)
    if not card["passed"]:
        raise ThresholdMissed(f"below the thresholds: {'; '.join(card['failures'])}")


def main(settings: Settings) -> None:
    if settings.images:
        score_images(settings, settings.images)
        return
    identity = identity_from(settings)
    probes = load_probes(settings.probes) if settings.probes else built_in_probes()
    start = time.monotonic()
    backend = open_backend(settings.model, settings.backend)
    answers = ask(backend, probes, settings)
    seconds = {"answers": time.monotonic() - start}
    bases, kept = None, {}
    if settings.base:
        start = time.monotonic()
        bases = base_answers(probes, settings)
        kept = kept_of_base(backend, probes, settings)
        seconds["retention"] = time.monotonic() - start
    card = scorecard.score(
        probes, answers, identity, base_answers=bases, retention=kept, seconds=seconds,
        model=settings.model, base=settings.base, backend=backend.label,
    )  # fmt: skip
    scorecard.save(card, settings.out)
    finish(card, scorecard.markdown(card), settings)


if __name__ == "__main__":
    run_command(main, Settings)
