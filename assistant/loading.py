"""Loads a chat model and turns messages into token ids. Knows nothing of identities."""

import json
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from assistant.conversations import (
    Message,
    assistant,
    hide_contents,
    refuse_images,
    template_pieces,
    user,
)
from assistant.devices import attend_at_any_length, device_of_machine, fast_dtype
from assistant.eyes import Eyes, eyes_of, is_llava
from assistant.folders import is_internlm2, read_json, refuse_pointer
from assistant.internlm2_tokenizer import check_tokenizer
from assistant.llava_chat import IMAGE
from assistant.settings import load_settings

# trl and peft ask by the names that transformers 5.24 has replaced
warnings.filterwarnings("ignore", r"`(is_)?gradient_checkpointing.* is deprecated", FutureWarning)
LOADING = threading.RLock()
NOT_QUANTIZED = (".*vision_tower", ".*multi_modal_projector", "lm_head")  # XTuner quantizes the LLM alone


@dataclass
class ChatModel:
    """A model with its tokenizer and every token id that ends a turn; a LLaVA has eyes."""

    model: Any
    tokenizer: Any
    stop_ids: list[int]
    path: Path
    eyes: Eyes | None = None

    def encode(self, messages: list[Message], *, add_generation_prompt: bool = True) -> list[int]:
        """As encode_chat, with a place for each token of a picture."""
        tokens = self.eyes.tokens if self.eyes else 1
        return encode_chat(
            self.tokenizer, messages, add_generation_prompt=add_generation_prompt, picture_tokens=tokens
        )

    def pixels(self, images: list[str]) -> dict[str, torch.Tensor]:
        """The model's further arguments for a prompt with these pictures; empty without any."""
        if not images or not self.eyes:
            return {}
        return {"pixel_values": self.eyes.pixels(images).to(self.model.device, self.model.dtype)}

    @cached_property
    def end_of_turn(self) -> int:
        """The id that the chat template puts after an answer (InternLM2's first stop id is another one)."""
        turn = [user("?"), assistant("!")]
        ids = encode_chat(self.tokenizer, turn, add_generation_prompt=False)
        return next((i for i in reversed(ids) if i in self.stop_ids), self.stop_ids[0])


def is_adapter(path: Path) -> bool:
    return (path / "adapter_config.json").is_file()


def base_of_adapter(path: Path) -> Path:
    """The base model that an adapter folder names.

    Raises ValueError when the folder is no adapter or its base is gone.
    """
    if not is_adapter(path):
        raise ValueError(
            f"{path} is no adapter: it has no adapter_config.json; give the folder train.py wrote"
        )
    config = json.loads((path / "adapter_config.json").read_text(encoding="utf-8"))
    base = Path(config["base_model_name_or_path"])
    for folder in (base, Path(__file__).resolve().parent.parent / "models" / base.name):
        if (folder / "config.json").is_file():
            return folder
    raise ValueError(
        f"{path}: its base model {base} is gone; fetch it again: python scripts/fetch_model.py {base.name}"
    )


def check_model_folder(path: Path) -> None:
    """Raises ValueError, with what to do, for a folder that transformers could not load."""
    if not path.is_dir():
        raise ValueError(f"{path} is not a folder; fetch a model first: python scripts/fetch_model.py NAME")
    if not (path / "config.json").is_file():
        raise ValueError(f"{path} has no config.json: not a model folder")
    if is_internlm2(read_json(path / "config.json")):
        way = f"convert it: python scripts/fetch_model.py {path}"
        raise ValueError(f"{path} is an InternLM2 as published, which needs remote code; {way}")
    for weights in path.glob("*.safetensors"):
        refuse_pointer(weights)


def load_chat_model(
    path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: str | None = None,
    quantization: dict[str, Any] | None = None,
) -> ChatModel:
    """Load a model folder, an adapter folder (with its base as it was trained on), or a hub id.

    `dtype` defaults to the fastest that the device multiplies natively; with `quantization` (fields of
    BitsAndBytesConfig) the linear layers are quantized. Raises ValueError for a folder that is no model,
    RuntimeError where bitsandbytes is missing; no remote code is ever run.
    """
    path = Path(path)
    device = device or device_of_machine()
    dtype = dtype or fast_dtype(device)
    if device.startswith("cuda"):
        attend_at_any_length()
    if path.is_dir() and is_adapter(path):
        base, quantized = base_of_adapter(path), quantization_of(path)
        chat = load_chat_model(base, dtype=dtype, device=device, quantization=quantized)
        from peft import PeftModel

        from assistant.neurons import adapter_config

        adapted = PeftModel.from_pretrained(chat.model, str(path), config=adapter_config(path)).eval()
        return ChatModel(adapted, chat.tokenizer, chat.stop_ids, path, chat.eyes)
    if path.exists() or path.is_absolute() or len(path.parts) != 2:
        check_model_folder(path)
    sees = is_llava(path)
    with quiet_loading():
        arguments = _quantized(quantization, dtype, device, sees) if quantization else {}
        model: Any = model_class(sees).from_pretrained(
            str(path), dtype=dtype, trust_remote_code=False, **arguments
        )
    tokenizer = load_tokenizer(path)
    check_tokenizer(tokenizer, model.config.get_text_config().vocab_size, path)
    placed = model if quantization else model.to(device)
    eyes = eyes_of(path, tokenizer) if sees else None
    return ChatModel(placed.eval(), tokenizer, stop_ids_of(model), path, eyes)


def model_class(sees: bool) -> Any:
    """The class that loads a model folder: transformers' LLaVA for one that `sees`."""
    return transformers.LlavaForConditionalGeneration if sees else AutoModelForCausalLM


def quantization_of(adapter: Path) -> dict[str, Any]:
    """How the base was quantized while `adapter` was trained; empty when it was not."""
    return dict(load_settings(adapter).get("run", {}).get("quantization", {}))


def _quantized(quantization: dict[str, Any], dtype: torch.dtype, device: str, sees: bool) -> dict[str, Any]:
    """Arguments of from_pretrained. Raises RuntimeError where bitsandbytes is missing."""
    import importlib.util

    if importlib.util.find_spec("bitsandbytes") is None:
        raise RuntimeError("a quantized base needs bitsandbytes; run: pip install -e '.[qlora]'")
    own: dict[str, Any] = {"bnb_4bit_compute_dtype": dtype}
    if sees:
        own["llm_int8_skip_modules"] = list(NOT_QUANTIZED)
    config = transformers.BitsAndBytesConfig(**{**own, **quantization})
    return {"quantization_config": config, "device_map": {"": device}}


@contextmanager
def quiet_loading() -> Iterator[None]:
    """One model at a time, and no progress bar for the second that a small folder takes to load.

    While it loads a model, or builds one of several configs, transformers sets the number format that torch
    makes new tensors in, for the whole process: two threads of a page side by side could leave it at 16 bits.
    """
    with LOADING:
        transformers.utils.logging.disable_progress_bar()
        try:
            yield
        finally:
            transformers.utils.logging.enable_progress_bar()


def load_tokenizer(path: Path) -> Any:
    """The folder's tokenizer, padded left for generation. Raises ValueError when it has no chat template."""
    tokenizer = AutoTokenizer.from_pretrained(str(path), trust_remote_code=False)
    if not tokenizer.chat_template:
        raise ValueError(
            f"{path} has no chat template; fetch it with scripts/fetch_model.py, which writes one"
        )
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def core_of(model: Any) -> Any:
    """The causal LM inside a PEFT model (or the model itself); of a LLaVA the LM that it speaks with."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return (
        SpeakingPart(inner) if hasattr(inner, "lm_head") and hasattr(inner.model, "language_model") else inner
    )


class SpeakingPart:
    """A LLaVA's LM with the attributes of a causal LM; `llava` is the whole."""

    def __init__(self, llava: Any) -> None:
        self.llava, self.model, self.lm_head = llava, llava.model.language_model, llava.lm_head
        self.config, self.device, self.dtype = llava.config.get_text_config(), llava.device, llava.dtype

    def get_input_embeddings(self) -> Any:
        return self.model.get_input_embeddings()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.llava, name)


def stop_ids_of(model: Any) -> list[int]:
    ids = model.generation_config.eos_token_id
    return list(ids) if isinstance(ids, list | tuple) else [ids]


def encode_chat(
    tokenizer: Any, messages: list[Message], *, add_generation_prompt: bool = True, picture_tokens: int = 1
) -> list[int]:
    """Token ids of a conversation in the model folder's own chat template.

    What a person typed stays text: `<|im_end|>` in a message becomes ordinary tokens, no control token. A
    picture takes `picture_tokens`. Raises ValueError for pictures when the model reads text alone.
    """
    control = tokenizer.get_added_vocab()
    if IMAGE not in control:
        refuse_images(messages, "this model")
    masked = hide_contents(messages)
    text = tokenizer.apply_chat_template(masked, tokenize=False, add_generation_prompt=add_generation_prompt)
    ids: list[int] = []
    for piece, is_control in template_pieces(text, messages, control):
        times = picture_tokens if piece == IMAGE else 1
        ids += [control[piece]] * times if is_control else encode_text(tokenizer, piece)
    return ids


def encode_text(tokenizer: Any, text: str) -> list[int]:
    """Token ids of plain text: nothing in it is read as a control token."""
    return list(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])
