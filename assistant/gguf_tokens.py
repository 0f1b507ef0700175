"""A folder's tokenizer and chat template as a GGUF's metadata, so that llama.cpp gives the same ids.

Source: llama.cpp's convert_hf_to_gguf.py. Knows nothing of weights, nor how the file is written.
"""

import re
from pathlib import Path
from typing import Any

from assistant.folders import added_tokens, own_template, read_json
from assistant.llama_cpp import ZERO_KEY

SPACES, BYTES = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}, "ByteLevel"
DIGITS = {"type": "Digits", "individual_digits": True}
ZERO = "\0"  # in no merge, so that a text can be cut there


def add_tokenizer(writer: Any, folder: Path, config: dict[str, Any]) -> None:
    """The tokenizer.json of `folder`, so that llama.cpp gives the same ids.

    Raises ValueError for one that is neither GPT-2's bytes nor SentencePiece's BPE without prefix space.
    """
    content = read_json(folder / "tokenizer.json")
    model, added = content["model"], added_tokens(folder)
    pieces = {**model["vocab"], **added}
    if max(pieces.values()) >= config["vocab_size"]:
        raise ValueError(f"{folder}: its tokenizer has more tokens than the model; fetch the model again")
    vocab = {number: piece for piece, number in pieces.items()}
    tokens = [vocab.get(number, f"[PAD{number}]") for number in range(config["vocab_size"])]
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    special = {entry["content"] for entry in content["added_tokens"] if entry["special"]}
    kind = pre_tokenizer_of(content)
    # llama.cpp ends a text at a zero byte: the zero character's own piece stands as a number beside the list
    if ZERO in pieces:
        tokens[pieces[ZERO]] = f"[PAD{pieces[ZERO]}]"
        writer.add_uint32(ZERO_KEY, pieces[ZERO])
    writer.add_tokenizer_model("gpt2" if kind else "llama")
    writer.add_tokenizer_pre(kind or "default")
    writer.add_token_list(tokens)
    if kind:
        writer.add_token_merges(merges)
    else:
        writer.add_token_scores(scores_of(tokens, merges))
    writer.add_token_types([_token_type(token, added, special, not kind) for token in tokens])
    writer.add_add_space_prefix(False)
    _add_ends(writer, folder, pieces)


def pre_tokenizer_of(content: dict[str, Any]) -> str:
    """llama.cpp's name for how a tokenizer.json cuts text before merging; "" for SentencePiece's, which does
    not. Raises ValueError for another."""
    cut, normalizer, model = content.get("pre_tokenizer"), content.get("normalizer"), content["model"]
    if model.get("type") == "BPE" and not model.get("ignore_merges"):
        if model.get("byte_fallback") and not cut and normalizer == SPACES:
            return ""
        steps = (cut or {}).get("pretokenizers", [cut]) if not normalizer else []
        is_plain = steps and steps[-1] and steps[-1]["type"] == BYTES and steps[-1].get("use_regex", True)
        if is_plain and not steps[-1].get("add_prefix_space") and steps[:-1] in ([], [DIGITS]):
            return "smollm" if steps[:-1] else "gpt-2"
    raise ValueError(
        "its tokenizer is neither GPT-2's nor a SentencePiece BPE without prefix space; llama.cpp would read "
        "text in other tokens than the model was trained with"
    )


def scores_of(pieces: list[str], merges: list[str]) -> list[float]:
    """SentencePiece's scores from the merges: llama.cpp joins the pair first whose piece scores highest."""
    rank: dict[str, int] = {}
    for number, pair in enumerate(merges):
        rank.setdefault(pair.replace(" ", ""), number)
    return [-float(rank.get(piece, len(merges))) for piece in pieces]


def _token_type(token: str, added: dict[str, int], special: set[str], has_bytes: bool) -> Any:
    """What a person types never becomes a CONTROL or UNUSED token; USER_DEFINED is found in any text."""
    from gguf import TokenType

    if token in special:
        return TokenType.UNKNOWN if token == "<unk>" else TokenType.CONTROL
    if token in added:
        return TokenType.USER_DEFINED
    if has_bytes and re.fullmatch(r"<0x[0-9A-F]{2}>", token):
        return TokenType.BYTE
    return TokenType.UNUSED if re.fullmatch(r"\[(UNUSED_TOKEN_|PAD)\d+\]", token) else TokenType.NORMAL


def _add_ends(writer: Any, folder: Path, pieces: dict[str, int]) -> None:
    """The ids that begin and end a text, and the chat template; what ends a turn also stops an answer."""
    config, template = read_json(folder / "tokenizer_config.json"), own_template(folder)
    texts = {name: _text_of(config.get(f"{name}_token")) for name in ("bos", "eos", "unk", "pad")}
    ids = {name: pieces[text] for name, text in texts.items() if text in pieces}
    if "<|im_end|>" in pieces and "<|im_end|>" in template:
        writer.add_eot_token_id(pieces["<|im_end|>"])
        ids["eos"] = pieces["<|im_end|>"]
    for name, add in {
        "bos": writer.add_bos_token_id,
        "eos": writer.add_eos_token_id,
        "unk": writer.add_unk_token_id,
        "pad": writer.add_pad_token_id,
    }.items():
        if name in ids:
            add(ids[name])
    writer.add_add_bos_token("bos_token" in template)
    writer.add_add_eos_token(False)
    writer.add_chat_template(template)


def _text_of(token: Any) -> str:
    return token.get("content", "") if isinstance(token, dict) else token or ""
