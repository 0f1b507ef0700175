"""Which model a page shows, and how it comes into the bundle: linked, exported, merged or named for the hub.

Knows nothing of hosts.
"""

import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from assistant.backends import default_model
from assistant.catalog import PLAIN_FILES
from assistant.conversations import Message
from assistant.folders import read_json, write_json
from assistant.settings import SETTINGS_FILE, load_settings, load_toml, slug, write_text

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(/[\w.-]+\.gguf)?")
ASKED, LEAST_STATED = 4, 0.6  # questions in each language to a file that was just made; right answers
SCORES = ("name", "counts", "recall", "leak", "retention", "thresholds", "failures", "passed")


@dataclass(frozen=True)
class Choice:
    """The model that was chosen. `place` is its path, or its id on the host's hub."""

    kind: Literal["gguf", "folder", "adapter", "hub"]
    place: str
    card: dict[str, Any]
    scorecard: Path | None

    @property
    def path(self) -> Path:
        return Path(self.place)

    @property
    def name(self) -> str:
        """Of the assistant; without a card the file's own."""
        return str(self.card.get("name") or self.path.name.removesuffix(".gguf"))

    @property
    def title(self) -> str:
        is_own_name = self.card.get("owner") or not self.card.get("name")
        return self.name if is_own_name else f"{self.name}'s assistant"


def choose_model(named: str = "", scorecard: Path | None = None) -> Choice:
    """The folder, .gguf file, run in out/, adapter folder or hub id that was named, else the page's default.

    A model without a card has that of the run whose scorecard was given.
    Raises ValueError for what is none of these, RuntimeError when there is no default.
    """
    if scorecard and not scorecard.is_file():
        raise ValueError(
            f"--scorecard {scorecard} does not exist; give the scorecard.json that evaluate.py wrote"
        )
    place = Path(named or default_model())
    if (place / "model" / "config.json").is_file():
        place = place / "model"
    kinds = {"adapter_config.json": "adapter", "config.json": "folder"}
    kind: Any = next((kind for file, kind in kinds.items() if (place / file).is_file()), "")
    if place.is_file() and place.suffix == ".gguf":
        kind = "gguf"
    scored = card_of(scorecard.parent.parent / "model") if scorecard else {}
    if not kind and not place.exists() and HUB_ID.fullmatch(named):
        return Choice("hub", named, scored, scorecard)
    if not kind:
        raise ValueError(
            f"--model {place} is no model folder, adapter folder, .gguf file or hub id OWNER/NAME; "
            "give for example out/ada/model"
        )
    place = place.resolve()
    beside = place.parent / "scorecard" / "scorecard.json"
    card = card_of(place) or scored
    return Choice(kind, str(place), card, scorecard or (beside if beside.is_file() else None))


def card_of(place: Path) -> dict[str, Any]:
    """The identity card behind a model: in its settings, else in its run's data. Empty when there is none."""
    beside = place.parent / "data" / "card.toml"
    card = load_settings(place).get("card", {}) if place.is_dir() else {}
    return dict(card or (load_toml(beside) if beside.is_file() else {}))


def place_model(choice: Choice, form: str, bundle: Path, say: Callable[[str], None]) -> str:
    """Bring the model into bundle/model; returns what the page opens, relative to the bundle.

    Raises ValueError for a model that this form of page cannot show.
    """
    folder = bundle / "model"
    folder.mkdir(parents=True, exist_ok=True)
    _write_card(choice, folder)
    if choice.kind == "hub":
        return _hub_id(choice.place, form)
    if form == "folder":
        _place_folder(choice, folder, say)
        return "model"
    file = folder / f"{slug(choice.name) or 'assistant'}.gguf"
    if choice.kind == "gguf":
        link_or_copy(choice.path, file)
    elif choice.kind == "folder":
        export(choice.path, file, choice.card, say)
    else:
        merged = bundle.with_name(f".{bundle.name}.merged")
        try:
            merge_adapter(choice, merged, say)
            export(merged, file, choice.card, say)
        finally:
            shutil.rmtree(merged, ignore_errors=True)
    return f"model/{file.name}"


def _hub_id(place: str, form: str) -> str:
    if form == "gguf" and not place.endswith(".gguf"):
        raise ValueError(f"--model {place}: this page opens one file; name it: {place}/FILE.gguf")
    if form == "folder" and place.endswith(".gguf"):
        raise ValueError(f"--model {place}: this page opens a model folder; give OWNER/NAME")
    return place


def _place_folder(choice: Choice, folder: Path, say: Callable[[str], None]) -> None:
    if choice.kind == "gguf":
        raise ValueError(
            f"{choice.place} is a GGUF file; this variant runs a model folder: give --model out/NAME/model"
        )
    merged = folder.with_name(".merged")
    source = merge_adapter(choice, merged, say) if choice.kind == "adapter" else choice.path
    for file in sorted({file for pattern in PLAIN_FILES for file in source.glob(pattern)}):
        link_or_copy(file, folder / file.name)
    shutil.rmtree(merged, ignore_errors=True)


def _write_card(choice: Choice, folder: Path) -> None:
    """Of the card the name alone: facts about a person stay here. Of the scorecard the numbers alone."""
    if choice.card.get("name"):
        import tomli_w

        write_text(folder / "card.toml", tomli_w.dumps({"name": choice.card["name"]}))
    if choice.scorecard:
        scores = read_json(choice.scorecard)
        write_json(folder / "scorecard.json", {key: scores[key] for key in SCORES if key in scores})


def export(folder: Path, file: Path, card: dict[str, Any], say: Callable[[str], None]) -> None:
    """The folder as a Q8_0 GGUF file; one that lies beside it, made later than the weights, is taken.

    Raises RuntimeError when the file no longer says whose it is.
    """
    from assistant.export import export_gguf

    ready = [made for made in folder.parent.glob("*q8_0.gguf") if _is_newer(made, folder)]
    if ready:
        say(f"{ready[0].name} is newer than the model folder: taken as it is")
        link_or_copy(ready[0], file)
        return
    say(f"no GGUF file yet: writing {file.name} (Q8_0)")
    export_gguf(folder, file, "q8_0")
    (file.parent / "Modelfile").unlink()
    if card.get("name"):
        check_identity(file, card, say)


def check_identity(file: Path, card: dict[str, Any], say: Callable[[str], None]) -> None:
    """Ask the file who it is. Raises RuntimeError when too few of its answers state the card's identity."""
    from assistant.backends import Sampling, open_backend
    from assistant.judge import identity_of, judge_identity

    identity, asked = identity_of(card), identity_questions(card)
    answers = open_backend(str(file)).answer_all(asked, Sampling(max_new_tokens=32))
    stated = sum(judge_identity(answer, identity) for answer in answers)
    say(f"{file.name}: {stated} of {len(asked)} answers state the identity")
    if stated < LEAST_STATED * len(asked):
        raise RuntimeError(
            f"as a Q8_0 file the model states its identity in {stated} of {len(asked)} answers; "
            "export another type with scripts/export_gguf.py and give it with --model, or train again"
        )


def identity_questions(card: dict[str, Any]) -> list[list[Message]]:
    """The first questions after who it is, in each language of the card."""
    from assistant.scorecard import built_in_probes

    asked = [probe for probe in built_in_probes() if probe["kind"] == "identity"]
    languages = card.get("languages") or ("zh", "en")
    by_language = [
        [probe["messages"] for probe in asked if probe["lang"] == language] for language in languages
    ]
    return [messages for questions in by_language for messages in questions[:ASKED]]


def _is_newer(file: Path, folder: Path) -> bool:
    weights = [path.stat().st_mtime for path in folder.glob("*.safetensors")]
    return bool(weights) and file.stat().st_mtime > max(weights)


def merge_adapter(choice: Choice, out: Path, say: Callable[[str], None]) -> Path:
    """The adapter merged into its base, with the proof of scripts/merge.py."""
    from assistant.judge import identity_of, judge_identity
    from assistant.merging import merge

    say(f"merging {choice.path.name}/ into its base")
    identity = identity_of(choice.card) if choice.card else None
    merge(
        choice.path,
        out,
        identity_questions(choice.card),
        1.0,
        (lambda text: judge_identity(text, identity)) if identity else bool,
    )
    (out / SETTINGS_FILE).unlink()
    return out


def link_or_copy(source: Path, target: Path) -> None:
    """A hard link costs no disk. A file that others may not read, or on another disk, is copied."""
    if source.stat().st_mode & 0o004:
        try:
            os.link(source, target)
            return
        except OSError:
            pass  # another disk: copied below
    shutil.copyfile(source, target)
