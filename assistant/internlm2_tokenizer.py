"""InternLM2's tokenizer.model as a tokenizer.json that transformers reads without remote code.

Source: InternLM2's tokenization_internlm2_fast.py (a BPE without pre-tokenizer or prefix space).
"""

from pathlib import Path
from typing import Any

from assistant.folders import write_json

UNUSED = "[UNUSED_TOKEN_0]"  # of all tokenizers, only InternLM2's has this piece
CONTROL = {
    "[UNUSED_TOKEN_141]": "<|plugin|>",
    "[UNUSED_TOKEN_142]": "<|interpreter|>",
    "[UNUSED_TOKEN_143]": "<|action_end|>",
    "[UNUSED_TOKEN_144]": "<|action_start|>",
    "[UNUSED_TOKEN_145]": "<|im_end|>",
    "[UNUSED_TOKEN_146]": "<|im_start|>",
}
ENDS = ("<unk>", "<s>", "</s>")
CONTROL_IDS = dict(enumerate(ENDS)) | dict(enumerate(CONTROL.values(), start=92538))
KNOWN_TEXT, KNOWN_TEXT_IDS = "Hello world", [9843, 2028]


def make_tokenizer(model: Path, folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json for a SentencePiece `model` into `folder`.

    Raises ValueError when the file is no SentencePiece model or is not InternLM2's.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

    pieces = [CONTROL.get(piece, piece) for piece in _read_pieces(model)]
    vocab = {piece: number for number, piece in enumerate(pieces)}
    if lacking := [token for token in (*ENDS, *CONTROL.values()) if token not in vocab]:
        raise ValueError(f"{model} has no place for {', '.join(lacking)}; it is not InternLM2's tokenizer")
    bpe = models.BPE(vocab, merges(pieces), unk_token=ENDS[0], fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(bpe)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    parts: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(parts)
    bos = [("<s>", vocab["<s>"])]
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A <s>:1 $B:1", bos)
    added = [AddedToken(token, special=True, normalized=False) for token in (*ENDS, *CONTROL.values())]
    tokenizer.add_special_tokens(added)
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", _config())


def merges(pieces: list[str]) -> list[tuple[str, str]]:
    """BPE merges in the order of the pieces that they make: SentencePiece's pieces stand by rank.

    None makes a control token: `<s` and `>` typed by a person stay two pieces.
    """
    vocab = {piece: number for number, piece in enumerate(pieces)}
    pairs = []
    for number, piece in enumerate(pieces):
        if piece in (*ENDS, *CONTROL.values()):
            continue
        halves = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        pairs += [(number, vocab[a], vocab[b], a, b) for a, b in halves if a in vocab and b in vocab]
    return [(a, b) for *_, a, b in sorted(pairs)]


def _read_pieces(model: Path) -> list[str]:
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2 as formats

    content = formats.ModelProto()  # type: ignore[attr-defined]
    try:
        content.ParseFromString(model.read_bytes())
    except DecodeError:
        raise ValueError(f"{model} is no SentencePiece model; fetch the model again") from None
    return [piece.piece for piece in content.pieces]


def _config() -> dict[str, Any]:
    """Never LlamaTokenizer: it puts a space before the text and the control tokens past the embedding."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": True,
        "add_eos_token": False,
        "unk_token": "<unk>",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "</s>",
        "padding_side": "left",
        "additional_special_tokens": list(reversed(list(CONTROL.values()))),
        "clean_up_tokenization_spaces": False,
        "model_max_length": 32768,
    }


def write_original_config(folder: Path, chat_template: str) -> None:
    """tokenizer_config.json as InternLM2's own code and XTuner read it, with the house's chat template."""
    code = "internlm/internlm2-chat-1_8b--tokenization_internlm2{}"
    names = [code.format(".InternLM2Tokenizer"), code.format("_fast.InternLM2TokenizerFast")]
    original = {"tokenizer_class": "InternLM2Tokenizer", "auto_map": {"AutoTokenizer": names}}
    added = {str(number): _added(token) for number, token in CONTROL_IDS.items()}
    content = _config() | original | {"added_tokens_decoder": added, "chat_template": chat_template}
    write_json(folder / "tokenizer_config.json", content)


def _added(token: str) -> dict[str, Any]:
    return dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False) | {
        "content": token,
        "special": True,
    }


def check_tokenizer(tokenizer: Any, vocab_size: int, folder: Path) -> None:
    """Raises ValueError when ids lie past the embedding, or an InternLM2 tokenizer is not the original's.

    transformers gives several wrong ones without a word: as LlamaTokenizer, or with its remote code.
    """
    if len(tokenizer) > vocab_size:
        wrong = f"has {len(tokenizer)} tokens and the model {vocab_size}"
    elif UNUSED not in (vocab := tokenizer.get_vocab()):
        return
    elif moved := [token for number, token in CONTROL_IDS.items() if vocab.get(token) != number]:
        wrong = f"gives {', '.join(moved)} other ids than InternLM2's"
    elif (ids := tokenizer.encode(KNOWN_TEXT, add_special_tokens=False)) != KNOWN_TEXT_IDS:
        wrong = f"reads {KNOWN_TEXT!r} as {ids}, not {KNOWN_TEXT_IDS}"
    else:
        return
    raise ValueError(f"{folder}: its tokenizer {wrong}; fetch the model again with scripts/fetch_model.py")
