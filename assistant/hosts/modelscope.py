"""ModelScope: a model or a studio is made if it is missing, a folder sent, the studio started.

modelscope_hub asks the host which large files it has and leaves those out.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from assistant.hosts.credentials import find_token, scrub
from assistant.hosts.parcel import described, left_out, say_what_is_left
from assistant.hosts.waiting import patiently

HELP = (
    "Make an access token (ms-...) at https://modelscope.cn/my/access/token; it may do what its account may, "
    "and should the page offer rights, take those to write. Then set MODELSCOPE_API_TOKEN or run: "
    "modelscope login"
)
AGAIN = "run the same command again: large files that have arrived are not sent again"
KINDS = {"app": "studio", "model": "model"}
DEPLOY_FILE = "ms_deploy.json"
SDKS = ("gradio", "streamlit", "docker", "static")


def upload(repo: str, folder: Path, what: str, *, sdk: str, private: bool, say: Callable[[str], None]) -> str:
    """Send `folder` to the model or studio `repo`; returns its link. Errors as in assistant.hosts.upload."""
    try:
        from modelscope_hub import HubApi
        from modelscope_hub.config import HubConfig
    except ImportError:
        raise RuntimeError(
            "publishing to ModelScope needs a package; run: pip install -e '.[publish]'"
        ) from None
    if what == "app" and sdk not in SDKS:
        raise ValueError(f"ModelScope has no studio of sdk {sdk!r}; use {', '.join(SDKS)}")
    config = HubConfig(endpoint=os.environ.get("MODELSCOPE_ENDPOINT") or None)
    config.token = token = find_token("MODELSCOPE_API_TOKEN", config.load_token, HELP)
    api = HubApi(config)
    with refusals_in_words(repo, str(config.endpoint), token):
        user = patiently(api.whoami, wait_of, say)
        repo = repo if "/" in repo else f"{user.username}/{repo}"
        patiently(lambda: make_or_find(api, repo, folder, what, sdk, private), wait_of, say)
        link = f"{config.endpoint}/{KINDS[what]}s/{repo}"
        say(f"{link}: there; sending {described(folder, what)}")
        patiently(lambda: send(api, repo, folder, what), wait_of, say)
        say_what_is_left(patiently(lambda: files_there(api, repo, what), wait_of, say), folder, say)
        if what == "app":
            patiently(lambda: api.deploy_repo(repo, "studio"), wait_of, say)
            say("the studio is being started; its page shows the log")
    return link


def make_or_find(api: Any, repo: str, folder: Path, what: str, sdk: str, private: bool) -> None:
    """Create the repository, or go on with the one that is there.

    Raises ValueError when a studio of another sdk is there.
    """
    from modelscope_hub.errors import AlreadyExistsError

    wanted = {"visibility": "private" if private else "public"}
    if what == "app":
        wanted |= {"sdk_type": sdk, **studio_settings(folder)}
    try:
        api.create_repo(repo, KINDS[what], **wanted)
        return
    except AlreadyExistsError:
        there = api.get_repo(repo, KINDS[what])
    if what == "app" and there.sdk_type not in (None, "", sdk):
        raise ValueError(
            f"{repo} is a {there.sdk_type} studio already and this bundle is {sdk}; give another --repo, "
            "or delete it in its settings"
        )


def studio_settings(folder: Path) -> dict[str, str]:
    """What the bundle's ms_deploy.json says of the machine, in the words of the API that makes studios."""
    path = folder / DEPLOY_FILE
    said = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    names = {"sdk_version": "sdk_version", "base_image": "base_image", "resource_configuration": "hardware"}
    return {ours: str(said[theirs]) for theirs, ours in names.items() if said.get(theirs)}


def send(api: Any, repo: str, folder: Path, what: str) -> None:
    """Its own record of what was sent is not used: it would believe files to be in a studio made anew."""
    with redirect_stdout(sys.stderr):  # it prints a report
        api.upload_folder(
            repo, KINDS[what], folder, ignore_patterns=left_out(what), use_cache=False,
            commit_message="Published with little-assistant",
        )  # fmt: skip


def files_there(api: Any, repo: str, what: str) -> list[str]:
    return [str(entry.path) for entry in api.list_repo_files(repo, KINDS[what]) if entry.type != "tree"]


def wait_of(error: Exception) -> float | None:
    """Seconds that a 429 asks to wait; None for any other error."""
    from modelscope_hub.errors import RateLimitError

    if not isinstance(error, RateLimitError):
        return None
    return float(error.retry_after or 60)


@contextmanager
def refusals_in_words(repo: str, endpoint: str, token: str) -> Iterator[None]:
    """Turns what the host and the network refuse into one sentence each, without the token in it."""
    from modelscope_hub import errors

    try:
        yield
    except errors.APIError as error:
        raise RuntimeError(scrub(in_words(error, repo, endpoint), token)) from None
    except (errors.HubError, ConnectionError, OSError) as error:
        reason = scrub(error, token)[:300]
        raise RuntimeError(f"{endpoint}: the upload broke off ({reason}); {AGAIN}") from None


def in_words(error: Any, repo: str, endpoint: str) -> str:
    """What a refusal means for the person, and what to do."""
    from modelscope_hub import errors

    if isinstance(error, errors.AuthenticationError):
        return f"{endpoint} does not accept the token (401). {HELP}"
    if isinstance(error, errors.PermissionDeniedError):
        return f"the token may not write to {repo} (403). {HELP}; an organization must allow it too"
    if isinstance(error, errors.QuotaExceededError):
        return f"the account's quota at {endpoint} is used up: {error.message}; delete something there first"
    if isinstance(error, errors.RateLimitError):
        return f"the rate limit of {endpoint} is used up (429); wait some minutes, then {AGAIN}"
    said = f"{endpoint} answered {error.status_code or 'an error'} for {repo}: {error.message}"
    return said + (f"; {AGAIN}" if error.retryable else "")
