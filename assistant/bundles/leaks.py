"""Secrets in files: what detect-secrets finds, the hosts' own token shapes, the values that are set here.

Text above a megabyte (a tokenizer's, a data set's) is searched by the last two alone.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from assistant.bundles.lfs import is_binary

LARGEST_READ = 1_000_000  # bytes; detect-secrets takes a minute for a tokenizer of ten
SHAPES = {
    "a Hugging Face token": re.compile(r"\bhf_[A-Za-z0-9]{30,}\b"),
    "a ModelScope token": re.compile(r"\bms-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b"),
    "a private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY"),
    # `HF_TOKEN=…` in a .env file, `"openxlab_token": "…"` in JSON; not `HF_TOKEN=$1` or `= os.environ[…]`
    "a login": re.compile(
        r"(?i)\b(?:HF_TOKEN|MODELSCOPE_API_TOKEN|OPENXLAB_(?:TOKEN|AK|SK)|PUBLISH_GIT_TOKEN|OPENAI_API_KEY"
        r"|ASSISTANT_API_KEY)[\"']?\s*[:=]\s*[\"']?[A-Za-z0-9][\w./+-]{7,}(?![\w.(\[])"
    ),
}
# Those that guess by entropy take every hash for a secret; addresses are none.
LEFT_OUT = {"Base64HighEntropyString", "HexHighEntropyString", "IPPublicDetector"}
OBEYED = "detect_secrets.filters.allowlist.is_line_allowlisted"  # a comment that silences it: not here
SECRET_VARIABLES = (
    "HF_TOKEN", "MODELSCOPE_API_TOKEN", "OPENXLAB_TOKEN", "OPENXLAB_AK", "OPENXLAB_SK", "PUBLISH_GIT_TOKEN",
    "OPENAI_API_KEY", "ASSISTANT_LOGIN", "ASSISTANT_API_KEY",
)  # fmt: skip
SHORTEST = 8  # characters of a value that is looked for: shorter ones are words too
CURE = "take it out, and revoke it if it was ever published"


def secrets_in(folder: Path, names: list[str], environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """(file, sentence) for each secret; the secret itself is never repeated.

    Raises RuntimeError when detect-secrets is not installed.
    """
    scan, values = _scanner(), values_of(environment)
    for name in names:
        path = folder / name
        is_small = path.stat().st_size <= LARGEST_READ
        if not is_small and is_binary(path):
            continue  # weights
        found = list(_own_finds(path, values))
        yield from ((name, f"line {line} holds {kind}; {CURE}") for line, kind in found)
        if is_small:
            known = {line for line, _ in found}
            yield from ((name, sentence) for line, sentence in scan(path) if line not in known)


def values_of(environment: Mapping[str, str]) -> dict[str, str]:
    """What the variables of credentials hold, and of a login the password alone: value → variable."""
    values = {environment.get(name, "").strip(): name for name in SECRET_VARIABLES}
    values[environment.get("ASSISTANT_LOGIN", "").partition(":")[2]] = "ASSISTANT_LOGIN"
    return {value: name for value, name in values.items() if len(value) >= SHORTEST}


def _own_finds(path: Path, values: Mapping[str, str]) -> Iterator[tuple[int, str]]:
    """(line, what it holds), a line once."""
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            kinds = [f"the value of {name}" for value, name in values.items() if value in line]
            kinds += [kind for kind, shape in SHAPES.items() if shape.search(line)]
            yield from ((number, kind) for kind in kinds[:1])


def _scanner() -> Any:
    """detect-secrets as a function of a file: (line, sentence) for each find."""
    try:
        from detect_secrets import SecretsCollection
        from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class as classes_of
        from detect_secrets.settings import get_settings, transient_settings
    except ModuleNotFoundError:
        raise RuntimeError(
            "the search for secrets needs detect-secrets; run: pip install -e '.[publish]'"
        ) from None
    known: dict[str, Any] = classes_of()
    plugins = [{"name": name} for name in sorted({kind.__name__ for kind in known.values()} - LEFT_OUT)]

    def scan(path: Path) -> Iterator[tuple[int, str]]:
        with transient_settings({"plugins_used": plugins}):
            get_settings().disable_filters(OBEYED)
            found = SecretsCollection()
            found.scan_file(str(path))
        for _, secret in found:
            yield secret.line_number, f"line {secret.line_number} looks like a secret ({secret.type}); {CURE}"

    return scan
