"""How a LLaVA folder speaks of pictures: an id for `<image>`, the chat template, the processor's settings.

Knows no weights; the vocabulary keeps its size, so that no embedding is resized.
"""

import json
import re
from pathlib import Path
from typing import Any

from assistant.folders import CHATML, STOP_TOKENS, added_tokens, own_template, read_json, write_json
from assistant.settings import write_text

IMAGE = "<image>"
# Tokens that no chat uses, the likeliest first: InternLM2's, Llama 3's, Gemma's, SmolLM2's.
SPARE = (
    r"\[UNUSED_TOKEN_\d+\]",
    r"<\|reserved_special_token_\d+\|>",
    r"<unused\d+>",
    r"<empty_output>|<jupyter_script>|<issue_closed>",
)
CONTENT = ("message['content']", 'message["content"]', "message.content")
SPOKEN = """{%- macro spoken(content) -%}{%- if content is string -%}{{- content -}}{%- else -%}\
{%- for part in content if part['type'] == 'image' -%}{{- '<image>\\n' -}}{%- endfor -%}\
{%- for part in content if part['type'] == 'text' -%}{{- part['text'] -}}{%- endfor -%}\
{%- endif -%}{%- endmacro -%}"""
CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]
CLIP_SPREAD = [0.26862954, 0.26130258, 0.27577711]
BICUBIC = 3


def add_image_token(folder: Path, vocab_size: int) -> int:
    """Give `<image>` an id in the tokenizer in `folder` that nothing else uses, and return it.

    Raises ValueError when the embedding of `vocab_size` rows has none to spare.
    """
    path = folder / "tokenizer.json"
    content = read_json(path)
    known = {**content["model"]["vocab"], **added_tokens(folder)}
    if IMAGE in known:
        return int(known[IMAGE])
    spare = _spare_token(known)
    if spare is None and max(known.values()) + 1 >= vocab_size:
        raise ValueError(
            f"{folder.name}: its tokenizer has no unused token for {IMAGE} (none named [UNUSED_TOKEN_…], "
            "<|reserved_special_token_…|> or <unused…>) and its embedding no spare row; take another LLM"
        )
    number = max(known.values()) + 1 if spare is None else known[spare]
    if spare is not None:
        _forget(content, spare)
        _rename_in_configs(folder, spare)
    content["added_tokens"].append(
        {"id": number, "content": IMAGE, "special": True, "normalized": False}
        | dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
    )
    content["added_tokens"].sort(key=lambda entry: entry["id"])
    if spare in content["model"]["vocab"]:
        vocab = content["model"]["vocab"]
        content["model"]["vocab"] = {IMAGE if piece == spare else piece: at for piece, at in vocab.items()}
    write_text(path, json.dumps(content, ensure_ascii=False))
    return int(number)


def _spare_token(known: dict[str, int]) -> str | None:
    """The last token of the first kind that there is: the first ones are the likeliest to be used."""
    for pattern in SPARE:
        if found := [token for token in known if re.fullmatch(pattern, token)]:
            return max(found, key=lambda token: known[token])
    return None


def _forget(content: dict[str, Any], token: str) -> None:
    """Take `token` out of the added tokens and out of the merges that would make it."""
    content["added_tokens"] = [entry for entry in content["added_tokens"] if entry["content"] != token]
    merges = content["model"].get("merges", [])
    halves = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
    kept = [pair for pair in halves if "".join(pair) != token and token not in pair]
    content["model"]["merges"] = kept if len(kept) < len(merges) else merges


def _rename_in_configs(folder: Path, token: str) -> None:
    """A config that still lists the old token would have it added again, past the embedding."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).is_file():
            text = json.dumps(read_json(folder / name), ensure_ascii=False)
            write_json(folder / name, json.loads(text.replace(json.dumps(token), json.dumps(IMAGE))))


def write_template(folder: Path) -> None:
    """Let the folder's own chat template take pictures, as `<image>` and a new line before a turn's text.

    Raises ValueError for a template whose messages cannot be found in it.
    """
    template = own_template(folder)
    if not any(form in template for form in CONTENT):
        raise ValueError(f"{folder.name} has no chat template with message['content']; fetch the model again")
    for form in CONTENT:
        template = template.replace(form, f"spoken({form})")
    write_text(folder / "chat_template.jinja", SPOKEN + template)
    config = read_json(folder / "tokenizer_config.json")
    write_json(folder / "tokenizer_config.json", {k: v for k, v in config.items() if k != "chat_template"})


def write_stop_ids(folder: Path, text_config: dict[str, Any]) -> None:
    """generation_config.json with every id that ends an answer, whether the LLM's folder had one or not."""
    path, tokens = folder / "generation_config.json", added_tokens(folder)
    generation = read_json(path) if path.is_file() else {}
    ids: list[int] = []
    for entry in (generation.get("eos_token_id"), text_config.get("eos_token_id")):
        ids += entry if isinstance(entry, list) else [] if entry is None else [entry]
    if set(CHATML) <= set(tokens):
        ids += [tokens[token] for token in STOP_TOKENS if token in tokens]
    write_json(path, {**generation, "eos_token_id": list(dict.fromkeys(ids))})


def write_processor(folder: Path, pictures: dict[str, Any], patch: int, before: int, *, kept: bool) -> None:
    """preprocessor_config.json and processor_config.json as transformers' LlavaProcessor reads them.

    `pictures`: how a picture becomes pixels (picture_settings); `patch`: pixels of a token, each way;
    `before`: features that the tower gives before those of places; `kept`: whether the LLM reads them.
    """
    write_json(folder / "preprocessor_config.json", pictures)
    processor = {
        "processor_class": "LlavaProcessor",
        "image_token": IMAGE,
        "patch_size": patch,
        "vision_feature_select_strategy": "full" if kept else "default",
        "num_additional_image_tokens": before,
        "image_processor": pictures,
    }
    write_json(folder / "processor_config.json", processor)


def picture_settings(
    size: int, mean: list[float], spread: list[float], own: dict[str, Any]
) -> dict[str, Any]:
    """Settings of transformers' LlavaImageProcessor: a square by borders, `size` pixels wide.

    `own`: a tower's preprocessor_config.json, of which mean, spread and resampling are taken.
    """
    return {
        "image_processor_type": "LlavaImageProcessor",
        "do_convert_rgb": True,
        "do_pad": True,
        "do_resize": True,
        "size": {"shortest_edge": size},
        "resample": own.get("resample", BICUBIC),
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": own.get("image_mean", mean),
        "image_std": own.get("image_std", spread),
    }
