"""Whether this page may make assistants, and whether this machine can. Knows no framework."""

import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from assistant.settings import REPOSITORY
from assistant.web.line import is_loopback

VARIABLE = "ASSISTANT_ALLOW_TRAINING"
# What Hugging Face and ModelScope set where they run a page.
HOSTED = ("SPACE_ID", "SPACES_ZERO_GPU", "MODELSCOPE_ENVIRONMENT")
NEEDED = ("torch", "transformers", "peft", "trl")


def may_train(environment: Mapping[str, str], address: str) -> bool:
    """As ASSISTANT_ALLOW_TRAINING says (0 or 1); else only where no other machine reaches the page.

    Raises ValueError for another value.
    """
    said = environment.get(VARIABLE, "").strip()
    if said not in ("", "0", "1"):
        raise ValueError(f"{VARIABLE}={said} must be 0 or 1")
    return said == "1" or (not said and is_loopback(address) and not any(map(environment.get, HOSTED)))


def can_train(root: Path = REPOSITORY) -> bool:
    """The command is here (a published page has none) with what it imports, and the system can stop it."""
    is_here = (root / "scripts" / "make_assistant.py").is_file() and os.name == "posix"
    return is_here and all(find_spec(name) for name in NEEDED)
