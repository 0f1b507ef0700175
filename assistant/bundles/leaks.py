"""Secrets in text files, found by detect-secrets and by the hosts' own token shapes."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LARGEST_READ = 1_000_000  # bytes; larger text is a tokenizer's or a data set's
TOKENS = {
    "Hugging Face token": re.compile(r"\bhf_[A-Za-z0-9]{30,}\b"),
    "ModelScope token": re.compile(r"\bms-[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b"),
}
# Those that guess by entropy take every hash for a secret; addresses are none.
LEFT_OUT = {"Base64HighEntropyString", "HexHighEntropyString", "IPPublicDetector"}
CURE = "take it out, and revoke it if it was ever published"


def secrets_in(folder: Path, names: list[str]) -> Iterator[tuple[str, str]]:
    """(file, sentence) for each secret; the secret itself is never repeated.

    Raises RuntimeError when detect-secrets is not installed.
    """
    try:
        from detect_secrets import SecretsCollection
        from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class as classes_of
        from detect_secrets.settings import transient_settings
    except ModuleNotFoundError:
        raise RuntimeError(
            "the search for secrets needs detect-secrets; run: pip install -e '.[publish]'"
        ) from None
    known: dict[str, Any] = classes_of()
    classes = {kind.__name__ for kind in known.values()}
    plugins = [{"name": name} for name in sorted(classes - LEFT_OUT)]
    for name in names:
        path = folder / name
        if path.stat().st_size > LARGEST_READ:
            continue
        yield from ((name, f"line {line} holds a {kind}; {CURE}") for line, kind in _tokens(path))
        with transient_settings({"plugins_used": plugins}):
            found = SecretsCollection()
            found.scan_file(str(path))
        for _, secret in found:
            yield name, f"line {secret.line_number} looks like a secret ({secret.type}); {CURE}"


def _tokens(path: Path) -> Iterator[tuple[int, str]]:
    text = path.read_text(encoding="utf-8", errors="replace")
    for number, line in enumerate(text.splitlines(), 1):
        yield from ((number, kind) for kind, shape in TOKENS.items() if shape.search(line))
