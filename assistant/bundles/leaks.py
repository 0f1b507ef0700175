"""Secrets in files: what detect-secrets finds, the hosts' own token shapes, the values that are set here.

Of text above a megabyte (a tokenizer's, a data set's) detect-secrets reads what its own patterns meet.
"""

import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from assistant.bundles.lfs import is_binary

LARGEST_READ = 1_000_000  # bytes; detect-secrets takes half a minute for each more
AROUND = 500  # characters of a line on either side of a place that a pattern meets
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
        known = {line for line, _ in found}
        found += [find for find in (scan if is_small else _in_pieces(scan))(path) if find[0] not in known]
        yield from ((name, f"line {line} {sentence}; {CURE}") for line, sentence in found)


def values_of(environment: Mapping[str, str]) -> dict[str, str]:
    """What the variables of credentials hold, and of a login the password alone: value → variable."""
    values = {environment.get(name, "").strip(): name for name in SECRET_VARIABLES}
    values[environment.get("ASSISTANT_LOGIN", "").partition(":")[2]] = "ASSISTANT_LOGIN"
    return {value: name for value, name in values.items() if len(value) >= SHORTEST}


def _own_finds(path: Path, values: Mapping[str, str]) -> Iterator[tuple[int, str]]:
    """(line, what it holds), a line once."""
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            kinds = [f"holds the value of {name}" for value, name in values.items() if value in line]
            kinds += [f"holds {kind}" for kind, shape in SHAPES.items() if shape.search(line)]
            yield from ((number, kind) for kind in kinds[:1])


Scan = Callable[[Path], Iterator[tuple[int, str]]]


def _in_pieces(scan: Scan) -> Scan:
    """The same for large text: what its patterns meet, each in a line of its own, is scanned alone."""

    def scan_pieces(path: Path) -> Iterator[tuple[int, str]]:
        text, seen = path.read_text(encoding="utf-8", errors="replace"), set()
        pieces = sorted(_pieces(text))
        with TemporaryDirectory() as place:
            excerpt = Path(place) / path.name  # its ending says how it is read
            excerpt.write_text("".join(f"{text[begin:end]}\n" for _, begin, end in pieces), encoding="utf-8")
            for line, sentence in scan(excerpt):
                found = pieces[line - 1][0], sentence
                if found not in seen:
                    seen.add(found)
                    yield found

    return scan_pieces


def _pieces(text: str) -> set[tuple[int, int, int]]:
    """(line, begin, end) of what is around each place that one of detect-secrets' patterns meets."""
    ends = [match.start() for match in re.finditer("\n", text)] + [len(text)]
    pieces = set()
    for pattern in _patterns():
        for match in pattern.finditer(text):
            for line in range(bisect_left(ends, match.start()), bisect_left(ends, match.end()) + 1):
                begin, end = (ends[line - 1] + 1 if line else 0), ends[line]
                around = max(begin, match.start() - AROUND), min(end, match.end() + AROUND)
                pieces.add((line + 1, *around))
    return pieces


@cache
def _patterns() -> list[re.Pattern[str]]:
    """Where none of them meets, no plugin finds anything."""
    from detect_secrets.plugins.base import RegexBasedDetector
    from detect_secrets.plugins.keyword import DENYLIST

    kinds = [kind for kind in _plugins() if issubclass(kind, RegexBasedDetector)]
    own = [pattern for kind in kinds for pattern in kind().denylist]
    return [re.compile("|".join(DENYLIST), re.IGNORECASE), *own]


def _plugins() -> list[Any]:
    from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class as classes_of

    known: dict[str, Any] = classes_of()
    return [kind for kind in known.values() if kind.__name__ not in LEFT_OUT]


def _scanner() -> Scan:
    """detect-secrets as a function of a file: (line, sentence) for each find."""
    try:
        from detect_secrets import SecretsCollection
        from detect_secrets.settings import get_settings, transient_settings
    except ModuleNotFoundError:
        raise RuntimeError(
            "the search for secrets needs detect-secrets; run: pip install -e '.[publish]'"
        ) from None
    plugins = [{"name": name} for name in sorted({kind.__name__ for kind in _plugins()})]

    def scan(path: Path) -> Iterator[tuple[int, str]]:
        text = path.read_text(encoding="utf-8", errors="replace")
        if not any(pattern.search(text) for pattern in _patterns()):
            return  # detect-secrets takes as long for it as for a file full of them
        with transient_settings({"plugins_used": plugins}):
            get_settings().disable_filters(OBEYED)
            found = SecretsCollection()
            found.scan_file(str(path))
        for _, secret in found:
            yield secret.line_number, f"looks like a secret ({secret.type})"

    return scan
