"""An adapter folder of InternLM2 as one for its Llama, and back: read, turned, written whole or not at all.

How the weights become each other's, assistant/adapters.py knows.
"""

import shutil
from pathlib import Path
from typing import Any

from assistant.adapters import Adapter, as_internlm2, as_llama, read_adapter, write_peft
from assistant.folders import read_json
from assistant.loading import base_of_adapter
from assistant.settings import check_replaceable, load_settings, save_settings


def to_llama_adapter(source: Path, out: Path, base: Path, settings: dict[str, Any] | None = None) -> None:
    """Write the InternLM2 adapter folder `source`, PEFT's or XTuner's, as one for the Llama in `base`.

    Exact: B's rows for wqkv are divided as wqkv's own, each part with the whole A. `out` is replaced whole
    and keeps `settings`. Raises ValueError for more than plain LoRA, for damage, and for another base.
    """
    write_llama_adapter(read_adapter(source), source, out, base, settings)


def write_llama_adapter(
    adapter: Adapter, source: Path, out: Path, base: Path, settings: dict[str, Any] | None
) -> None:
    """to_llama_adapter for an InternLM2 `adapter` that was read already; `source` is for people."""
    config = _config_of(base)
    llama = as_llama(adapter, config, source)
    _write(llama, source, out, config["num_hidden_layers"], str(base), settings)


def to_internlm2_adapter(
    source: Path, out: Path, base: Path | None = None, settings: dict[str, Any] | None = None
) -> None:
    """The inverse of to_llama_adapter, for XTuner and InternLM2's own code. `base`: else the one it names.

    When q, k and v have one A, wqkv gets it as it is; else it gets all their ranks, with B in blocks. Both
    are exact. Raises ValueError as to_llama_adapter does.
    """
    adapter, config = read_adapter(source), _config_of(base or base_of_adapter(source))
    fused = as_internlm2(adapter, config, source)
    _write(fused, source, out, config["num_hidden_layers"], "", settings)


def _config_of(base: Path) -> dict[str, Any]:
    config = read_json(base / "config.json")
    if config.get("model_type") != "llama":
        way = "python scripts/fetch_model.py internlm2-chat-1_8b"
        raise ValueError(f"{base} is no InternLM2 turned into a Llama; get one: {way}")
    return config


def _write(
    adapter: Adapter, source: Path, out: Path, layers: int, base: str, settings: dict[str, Any] | None
) -> None:
    """The whole folder beside `out`, then in its place."""
    if out.resolve() in (source.resolve(), *source.resolve().parents):
        raise ValueError(f"--out {out} holds what is read; give a folder of its own")
    check_replaceable(out, "imported_from" in load_settings(out))
    beside = out.resolve().with_name(f".{out.resolve().name}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        write_peft(adapter, beside, layers, base)
        save_settings(beside, {**(settings or {}), "imported_from": str(source)})
        shutil.rmtree(out, ignore_errors=True)
        beside.replace(out)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
