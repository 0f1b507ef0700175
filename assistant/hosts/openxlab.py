"""OpenXLab: a folder pushed with git and git-lfs. Since January 2025 the platform is not maintained.

There is no API to make a repository but the one behind its SDK (openxlab_sdk.py).
"""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from assistant.bundles.git import Commit, check_remote, prepared, push
from assistant.bundles.lfs import outside_lfs, write_attributes
from assistant.bundles.logins import Login
from assistant.bundles.weights import link_or_copy
from assistant.downloading import OPENXLAB
from assistant.hosts.credentials import find_token, find_user, scrub
from assistant.hosts.openxlab_sdk import METAFILE, register, write_metafile
from assistant.hosts.parcel import described, files_of
from assistant.settings import one_line

UNMAINTAINED = "OpenXLab has not been maintained since January 2025: best effort, and it may vanish"
HELP = (
    "At https://openxlab.org.cn, below your picture, are the user name (account and security) and the Git "
    "tokens (key management): add one with the right to write; one that may only read can clone, not push, "
    "and AK and SK are another pair. Then set OPENXLAB_USERNAME and OPENXLAB_TOKEN"
)
PLAIN_MB = 1  # text above it goes through git-lfs as well, unless a bundle's own rules say else
LARGEST_PLAIN_MB = 10
METAFILES = (METAFILE, "metafile.yaml")
KINDS = {"model": "model", "app": "page"}
LINKS = {"model": "models", "app": "apps"}


def upload(repo: str, folder: Path, what: str, *, private: bool, say: Callable[[str], None]) -> str:
    """Push `folder` to OWNER/NAME on code.openxlab.org.cn; returns the public link.

    OPENXLAB_ENDPOINT may name another server. Errors as in assistant.hosts.upload.
    """
    say(UNMAINTAINED)
    login = log_in()
    repo = repo if "/" in repo else f"{login.user}/{repo}"
    remote = f"{os.environ.get('OPENXLAB_ENDPOINT', '').rstrip('/') or OPENXLAB}/{repo}.git"
    check_remote(remote)
    with staged(folder, what, repo) as parcel:
        if what == "model":
            register(repo, parcel / METAFILE, private, say)
        say(f"{remote}: sending {described(parcel, what)}")
        commit_of_it = prepared(parcel, remote, "main", "Published with little-assistant", login)
        with failures_in_words(repo, login.token), commit_of_it as commit:
            check_kind(commit, what)
            if commit.removed:
                say(f"{len(commit.removed)} files of its last commit go: {', '.join(commit.removed[:5])}")
            push(commit, say)
    if what == "app":
        say("to start it: openxlab.org.cn, create, Gradio, and choose this repository")
    return f"https://openxlab.org.cn/{LINKS[what]}/detail/{repo}"


def log_in() -> Login:
    """User and token from the environment or a terminal. Raises RuntimeError, saying where to get them."""
    user = find_user("OPENXLAB_USERNAME", "OpenXLab user name:")
    if not user:
        raise RuntimeError(f"no user: set OPENXLAB_USERNAME. {HELP}")
    return Login(user, find_token("OPENXLAB_TOKEN", lambda: None, HELP))


def check_kind(commit: Commit, what: str) -> None:
    """Raises ValueError for a page that would take a model's place, or a model that would take a page's."""
    for there, kind in (("model", METAFILES), ("page", ("app.py",))):
        if there != KINDS[what] and (found := [name for name in kind if name in commit.removed]):
            raise ValueError(
                f"{commit.remote} holds a {there} ({found[0]}), whose files a {KINDS[what]} would replace; "
                "give another repository"
            )


@contextmanager
def staged(folder: Path, what: str, repo: str) -> Iterator[Path]:
    """The files that are sent, as links, with the rules for git-lfs and, for a model, its metafile.yml.

    Raises RuntimeError when a binary or large file would go around git-lfs.
    """
    parcel = folder.with_name(f".{folder.name}.openxlab")
    shutil.rmtree(parcel, ignore_errors=True)
    try:
        for path in files_of(folder, what):
            target = parcel / path.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            link_or_copy(path, target)
        if what == "model":
            write_metafile(parcel, repo)
        if not (parcel / ".gitattributes").is_file():
            write_attributes(parcel, PLAIN_MB)
        if left := outside_lfs(parcel, LARGEST_PLAIN_MB):
            raise RuntimeError(
                f"{', '.join(left[:5])} would go around git-lfs; add a line for each to .gitattributes"
            )
        yield parcel
    finally:
        shutil.rmtree(parcel, ignore_errors=True)


@contextmanager
def failures_in_words(repo: str, token: str) -> Iterator[None]:
    """Git's refusals with what to do about them, without the token."""
    try:
        yield
    except RuntimeError as error:
        said = scrub(error, token)
        if re.search(r"Authentication failed|could not read Username|\b40[13]\b|denied", said):
            raise RuntimeError(f"OpenXLab does not let you write to {repo}. {HELP} ({said})") from None
        if re.search(r"not found|does not (exist|appear)|\b404\b", said, re.IGNORECASE):
            where = f"{repo} is not there: make it at https://openxlab.org.cn first"
            raise RuntimeError(f"{where} ({said})") from None
        raise RuntimeError(f"{said}; run the same command again: large files that arrived stay") from None
    except OSError as error:
        raise RuntimeError(scrub(one_line(error), token)) from None
