"""List, show and copy training recipes.

Run: python scripts/recipes.py list · show NAME · copy NAME DIR
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from assistant.settings import RECIPES, near_names, run_command, write_text


@dataclass(frozen=True)
class Settings:
    do: tyro.conf.Positional[Literal["list", "show", "copy"]]
    name: tyro.conf.Positional[str] = ""
    """A recipe's name; for list, a part of one."""
    folder: tyro.conf.Positional[Path | None] = None
    """For copy: where the recipe goes."""


def main(settings: Settings) -> None:
    recipes = {path.stem: path for path in sorted(RECIPES.glob("*.toml"))}
    if settings.do == "list":
        for name in (name for name in recipes if settings.name in name):
            print(name)
        return
    if settings.name not in recipes:
        raise ValueError(f"recipe {settings.name!r} is unknown{near_names(settings.name, recipes)}")
    text = recipes[settings.name].read_text(encoding="utf-8")
    if settings.do == "show":
        print(text, end="")
        return
    if settings.folder is None:
        raise ValueError("copy needs a folder: python scripts/recipes.py copy identity_lora my-recipes")
    copy = settings.folder / f"{settings.name}.toml"
    if copy.exists():
        raise ValueError(f"{copy} is there already; remove it or give another folder")
    write_text(copy, text)
    print(f"{copy}: edit it and train with --recipe {copy}", file=sys.stderr)


if __name__ == "__main__":
    run_command(main, Settings)
