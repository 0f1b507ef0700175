"""How the chosen model comes into the bundle: linked, exported, merged, or named for the hub.

Knows nothing of hosts.
"""

import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

from assistant.bundles.choosing import Choice
from assistant.bundles.model_checks import HOW_TO_SCORE
from assistant.catalog import PLAIN_FILES
from assistant.conversations import Message
from assistant.folders import read_json, write_json
from assistant.settings import slug, write_text

Result = TypeVar("Result")
CONFIGS = ("config.json", "tokenizer_config.json", "generation_config.json", "preprocessor_config.json")
PLACES = ("_name_or_path", "name_or_path")  # written by older versions of transformers
ASKED, LEAST_STATED = 4, 0.6  # questions in each language to a file that was just made; right answers
SCORES = ("name", "counts", "recall", "leak", "retention", "thresholds", "failures", "passed")


def place_model(choice: Choice, form: str, bundle: Path, say: Callable[[str], None]) -> str:
    """Bring the model into bundle/model; returns what the page opens, relative to the bundle.

    Raises ValueError for a model that this form of page cannot show.
    """
    folder = bundle / "model"
    folder.mkdir(parents=True, exist_ok=True)
    _write_card(choice, folder)
    if choice.kind == "hub":
        return _hub_id(choice.place, form)
    merged = bundle.with_name(f".{bundle.name}.merged")
    try:
        return _place_weights(choice, form, folder, merged, say)
    finally:
        shutil.rmtree(merged, ignore_errors=True)


def _place_weights(choice: Choice, form: str, folder: Path, merged: Path, say: Callable[[str], None]) -> str:
    if form == "folder":
        _place_folder(choice, folder, merged, say)
        return "model"
    file = folder / f"{slug(choice.name) or 'assistant'}.gguf"
    if choice.kind == "gguf":
        link_or_copy(choice.path, file)
    else:
        export(_whole_model(choice, merged, say), file, choice.card, say)
    return f"model/{file.name}"


def _hub_id(place: str, form: str) -> str:
    if form == "gguf" and not place.endswith(".gguf"):
        raise ValueError(f"--model {place}: this page opens one file; name it: {place}/FILE.gguf")
    if form == "folder" and place.endswith(".gguf"):
        raise ValueError(f"--model {place}: this page opens a model folder; give OWNER/NAME")
    return place


def _place_folder(choice: Choice, folder: Path, merged: Path, say: Callable[[str], None]) -> None:
    if choice.kind == "gguf":
        raise ValueError(
            f"{choice.place} is a GGUF file; this variant runs a model folder: give --model out/NAME/model"
        )
    source = _whole_model(choice, merged, say)
    for file in sorted({file for pattern in PLAIN_FILES for file in source.glob(pattern)}):
        place_file(file, folder / file.name)


def _whole_model(choice: Choice, merged: Path, say: Callable[[str], None]) -> Path:
    """The model folder that was chosen, or what its adapter becomes."""
    return merge_adapter(choice, merged, say) if choice.kind == "adapter" else choice.path


def _write_card(choice: Choice, folder: Path) -> None:
    """Of the card the name alone: facts about a person stay here. Of the scorecard the numbers alone."""
    if choice.card.get("name"):
        import tomli_w

        write_text(folder / "card.toml", tomli_w.dumps({"name": choice.card["name"]}))
    if choice.scorecard:
        try:
            scores = read_json(choice.scorecard)
        except ValueError:
            raise ValueError(f"{choice.scorecard} is no JSON object; {HOW_TO_SCORE}") from None
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
    from assistant.judge import identity_of, judge_identity

    identity, asked = identity_of(card), identity_questions(card)
    answers = apart(answers_of, file, asked)
    stated = sum(judge_identity(answer, identity) for answer in answers)
    say(f"{file.name}: {stated} of {len(asked)} answers state the identity")
    if stated < LEAST_STATED * len(asked):
        raise RuntimeError(
            f"as a Q8_0 file the model states its identity in {stated} of {len(asked)} answers; "
            "export another type with scripts/export_gguf.py and give it with --model, or train again"
        )


def answers_of(file: Path, asked: list[list[Message]]) -> list[str]:
    from assistant.backends import Sampling, open_backend

    return open_backend(str(file)).answer_all(asked, Sampling(max_new_tokens=32))


def apart(task: Callable[..., Result], *arguments: Any) -> Result:
    """What `task` returns or raises in a new process, without torch.

    Where torch was loaded first, llama.cpp gets torch's OpenMP, whose threads spin while they wait: beside
    a busy process its answers take ten times as long. Told to sleep, torch itself is half as fast.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(task, *arguments).result()


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
    """The adapter merged into its base, with the proof of scripts/merge.py, or its merge that was proved."""
    from assistant.judge import identity_of, judge_identity
    from assistant.merging import is_proved, merge

    beside = choice.path.with_name("model")
    if is_proved(choice.path, beside):
        say(f"{beside.name}/ beside it is the proved merge of this adapter and its base: taken as it is")
        return beside
    say(f"merging {choice.path.name}/ into its base")
    identity = identity_of(choice.card) if choice.card else None
    states = (lambda text: judge_identity(text, identity)) if identity else bool
    merge(choice.path, out, identity_questions(choice.card), 1.0, states, {"card": choice.card})
    return out


def place_file(source: Path, target: Path) -> None:
    """Linked; only a config that tells where the model lay on its maker's machine is written without that."""
    content = read_json(source) if source.name in CONFIGS else {}
    if not any(f'"{key}"' in json.dumps(content) for key in PLACES):
        return link_or_copy(source, target)
    write_json(target, without(PLACES, content))


def without(keys: tuple[str, ...], content: Any) -> Any:
    """The same without those keys, at any depth."""
    if isinstance(content, list):
        return [without(keys, item) for item in content]
    if not isinstance(content, dict):
        return content
    return {key: without(keys, item) for key, item in content.items() if key not in keys}


def link_or_copy(source: Path, target: Path) -> None:
    """A hard link costs no disk. A file that others may not read, or on another disk, is copied."""
    if source.stat().st_mode & 0o004:
        try:
            os.link(source, target)
            return
        except OSError:
            pass  # another disk: copied below
    shutil.copyfile(source, target)
