"""Tokens: from the environment, from the host's own store, or asked for on a terminal; never kept by us.

Knows no host.
"""

import getpass
import os
import re
import sys
from collections.abc import Callable


def find_token(variable: str, stored: Callable[[], str | None], help_text: str) -> str:
    """The first token found; with a terminal, the one typed there without an echo.

    Raises RuntimeError with `help_text`, which says where such a token is made.
    """
    token = os.environ.get(variable, "").strip() or (stored() or "").strip()
    if not token and sys.stdin is not None and sys.stdin.isatty():
        print(help_text, file=sys.stderr)
        token = getpass.getpass("token (not shown): ").strip()
    if not token:
        raise RuntimeError(f"no token: set {variable}. {help_text}")
    if not re.fullmatch(r"[!-~]+", token):
        raise RuntimeError(f"the token in {variable} holds characters that no token has. {help_text}")
    return token


def find_user(variable: str, prompt: str) -> str:
    """A user name, which is no secret. Empty when it is neither set nor typed."""
    name = os.environ.get(variable, "").strip()
    if not name and sys.stdin is not None and sys.stdin.isatty():
        print(prompt, end=" ", file=sys.stderr, flush=True)
        name = sys.stdin.readline().strip()
    return name


def scrub(text: object, *secrets: str) -> str:
    """The text on one line, with stars in place of every secret in it."""
    line = " ".join(str(text).split())
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        line = line.replace(secret, "***")
    return line
