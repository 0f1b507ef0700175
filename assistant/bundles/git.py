"""A bundle as one commit on top of what a git remote holds, its large files through git-lfs.

Works in a repository of its own beside the bundle: the user's clone, its settings and remotes stay untouched.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from assistant.bundles.logins import Login, is_web
from assistant.hosts.credentials import scrub

OWN_OF_A_HOOK = {"GIT_DIR", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_PREFIX"}
# The secret itself stays in the environment of git's own processes; this text is all that is ever written.
# printf, for echo may read a backslash as the begin of something else.
HELPER = """!f() { printf 'username=%s\\npassword=%s\\n' "$PUBLISH_USER" "$PUBLISH_TOKEN"; }; f"""

NOT_LET_IN = re.compile(
    r"Authentication failed|could not read (Username|Password)|Authorization error|\b40[13]\b"
)


class Remote(str):
    """The address of a git repository, shown without what stands before its @."""

    def __repr__(self) -> str:
        return repr(re.sub(r"(?<=://)[^/@]+@", "***@", self))


@dataclass(frozen=True)
class Commit:
    """What is about to be pushed. `removed`: files of the remote that the bundle does not have."""

    repository: Path
    remote: str
    branch: str
    is_new: bool
    removed: list[str]
    environment: dict[str, str]
    token: str = ""
    help_text: str = ""
    """Where a login is made, for one that does not let us in."""


def check_remote(remote: str) -> None:
    """Raises ValueError for an address with a token in it, RuntimeError without git and git-lfs."""
    parts = urlsplit(remote)
    if parts.scheme in ("http", "https") and "@" in parts.netloc:
        raise ValueError(
            "--git-remote holds a user or token, which every process list shows; leave it out and set the "
            "variable that docs/deploy names. If it was a real one, revoke it"
        )
    if shutil.which("git") is None or shutil.which("git-lfs") is None:
        raise RuntimeError("pushing needs git and git-lfs; run: apt-get install git git-lfs")


@contextmanager
def prepared(
    folder: Path, remote: str, branch: str, message: str, login: Login | None, help_text: str = ""
) -> Iterator[Commit]:
    """The commit of `folder` on top of the remote's branch, in a repository that is gone afterwards.

    It lies beside the folder: large files need its disk, and what a kill leaves is replaced by the next run.
    Raises RuntimeError when the remote cannot be read or the commit cannot be made.
    """
    repository = folder.resolve().with_name(f".{folder.resolve().name}.push")
    shutil.rmtree(repository, ignore_errors=True)
    try:
        token = login.token if login else ""
        environment = _environment(remote, folder, login)
        commit = Commit(repository, remote, branch, False, [], environment, token, help_text)
        subprocess.run(["git", "init", "-q", f"--initial-branch={branch}", str(repository)], check=True)
        hooks = str(repository / ".git" / "hooks")  # not the user's own, should git be told to use those
        _run(commit, "config", "core.hooksPath", hooks)
        _run(commit, "lfs", "install", "--local")
        _run(commit, "config", "lfs.locksverify", "false")
        _run(commit, "remote", "add", "host", remote)
        parent = _fetch(commit)
        _run(commit, "add", "--all", "--force", ".")
        yield _committed(commit, parent, message)
    finally:
        shutil.rmtree(repository, ignore_errors=True)


def _environment(remote: str, folder: Path, login: Login | None) -> dict[str, str]:
    """The bundle as git's work tree, no prompt without a terminal, a credential helper for this host."""
    values = {name: value for name, value in os.environ.items() if name not in OWN_OF_A_HOOK}
    values |= {"GIT_LFS_FORCE_PROGRESS": "1", "GIT_WORK_TREE": str(folder.resolve()), "LC_ALL": "C.UTF-8"}
    if not (sys.stdin and sys.stdin.isatty()):
        values["GIT_TERMINAL_PROMPT"] = "0"
    parts = urlsplit(remote)
    if login and is_web(remote):
        # hf.co leads to huggingface.co, which then asks. An empty helper first: nobody else's is asked
        names = {parts.netloc, *(["huggingface.co"] if parts.netloc == "hf.co" else [])}
        scopes = [f"credential.{parts.scheme}://{name}.helper" for name in sorted(names)]
        settings = [(scope, helper) for scope in scopes for helper in ("", HELPER)]
        values |= {"PUBLISH_USER": login.user, "PUBLISH_TOKEN": login.token}
        for number, (key, value) in enumerate(settings, int(values.get("GIT_CONFIG_COUNT", "0"))):
            values |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
            values["GIT_CONFIG_COUNT"] = str(number + 1)
    return values


def _fetch(commit: Commit) -> str:
    """The remote branch's newest commit, without its large files; empty for a new branch."""
    listed = _run(commit, "ls-remote", "--heads", "host", f"refs/heads/{commit.branch}")
    if not listed.strip():
        return ""
    _run(commit, "fetch", "--quiet", "--depth", "1", "host", f"refs/heads/{commit.branch}")
    parent = _run(commit, "rev-parse", "FETCH_HEAD").strip()
    _run(commit, "update-ref", f"refs/heads/{commit.branch}", parent)
    return parent


def _committed(commit: Commit, parent: str, message: str) -> Commit:
    tree = _run(commit, "write-tree").strip()
    before = set(_names(_run(commit, "ls-tree", "-r", "-z", "--name-only", parent))) if parent else set()
    after = set(_names(_run(commit, "ls-tree", "-r", "-z", "--name-only", tree)))
    if parent and _run(commit, "rev-parse", f"{parent}^{{tree}}").strip() == tree:
        return commit
    author = _author(commit)
    new = _run(
        commit, *author, "commit-tree", tree, *(("-p", parent) if parent else ()), "-m", message
    ).strip()
    _run(commit, "update-ref", f"refs/heads/{commit.branch}", new)
    return replace(commit, is_new=True, removed=sorted(before - after))


def _author(commit: Commit) -> tuple[str, ...]:
    """The user's own name where git knows one."""
    known = subprocess.run(["git", "var", "GIT_COMMITTER_IDENT"], capture_output=True, env=commit.environment)
    return (
        () if not known.returncode else ("-c", "user.name=publish.py", "-c", "user.email=publish@localhost")
    )


def _names(listed: str) -> list[str]:
    return [name for name in listed.split("\0") if name]


def push(commit: Commit, say: Callable[[str], None]) -> None:
    """Send it, never by force. Objects that an earlier, cut push brought are not sent again by git-lfs.

    Raises RuntimeError with the remote's own reason.
    """
    if not commit.is_new:
        say(f"{commit.branch} holds exactly this already")
        return
    _run(commit, "push", "--progress", "host", f"refs/heads/{commit.branch}", shown=True)


def _run(commit: Commit, *arguments: str, shown: bool = False) -> str:
    """Run git in the temporary repository. Raises RuntimeError with its reason, never with the token."""
    process = subprocess.Popen(
        ["git", f"--git-dir={commit.repository}/.git", *arguments],
        cwd=commit.environment["GIT_WORK_TREE"], env=commit.environment,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT if shown else subprocess.PIPE,
        text=True, encoding="utf-8", errors="replace",
    )  # fmt: skip
    if shown:
        output, errors = "", _show(process, commit.token)
        process.wait()
    else:
        output, errors = process.communicate()
    if process.returncode:
        doing = next(word for word in arguments if not word.startswith("-") and "=" not in word)
        reason = _reason(errors, commit.token)
        if commit.help_text and NOT_LET_IN.search(reason):
            reason += f". {commit.help_text}"
        raise RuntimeError(f"git {doing} of {Remote(commit.remote)!r} failed: {reason}")
    return output


def _show(process: subprocess.Popen[str], token: str) -> str:
    """What git and git-lfs tell, as it comes, on standard error with the token starred out; returns all."""
    assert process.stdout
    lines = []
    for line in process.stdout:
        lines.append(line)
        is_passing = "%" in line and "100%" not in line
        if not is_passing or sys.stderr.isatty():
            print(scrub(line, token), file=sys.stderr, end="\r" if is_passing else "\n", flush=True)
    return "".join(lines)


def _reason(errors: str, token: str) -> str:
    """What the remote or git itself said, on one line."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    said = [line.removeprefix("remote:").strip() for line in lines if line.startswith("remote:")]
    told = [line for line in lines if line.startswith(("fatal:", "error:", "! ", "batch response:", "LFS:"))]
    if any("non-fast-forward" in line or "fetch first" in line for line in lines):
        told.append("the branch moved meanwhile: run the command again")
    return scrub("; ".join(filter(None, [*said, *told] or lines[-2:] or ["no reason given"])), token)[:600]
