"""Fetch a base model into models/NAME, checked and ready to load.

    python scripts/fetch_model.py smollm2-135m-instruct
    python scripts/fetch_model.py internlm2-chat-1_8b --source modelscope
    python scripts/fetch_model.py internlm/internlm2-chat-1_8b
    python scripts/fetch_model.py path/to/a/folder
    python scripts/fetch_model.py models/internlm2-chat-1_8b --to internlm2 --out out/internlm2

Without --source, the catalog's sources (data/models.toml) are tried in order. A finished folder is kept.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from assistant.catalog import SourceKind
from assistant.fetching import fetch, fetch_back
from assistant.settings import run_command


@dataclass(frozen=True)
class FetchModel:
    """What to fetch and where to put it."""

    name: tyro.conf.Positional[str] = "smollm2-135m-instruct"
    """A name from data/models.toml, a hub's owner/name, or the path of a model folder or .gguf file."""
    source: SourceKind | None = None
    """The only source to try; without it the catalog's order is followed."""
    out: Path | None = None
    """The folder to write; models/NAME without it."""
    to: Literal["llama", "internlm2"] = "llama"
    """internlm2 turns a converted folder back into InternLM2's own layout, in --out."""


def main(settings: FetchModel) -> None:
    if settings.to == "internlm2":
        if settings.out is None:
            raise ValueError("--to internlm2 needs --out, the folder to write")
        return fetch_back(settings.name, settings.out)
    fetch(settings.name, settings.source, settings.out)


if __name__ == "__main__":
    run_command(main, FetchModel)
