"""Hugging Face: a repository is made if it is missing, a folder sent, a refusal said in plain words.

huggingface_hub itself leaves out what has arrived: whole files without hf_xet, parts of files with it.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from assistant.hosts.credentials import find_token, scrub
from assistant.hosts.parcel import described, left_out, say_what_is_left
from assistant.hosts.waiting import patiently
from assistant.settings import one_line

TOKENS = "https://huggingface.co/settings/tokens"
HELP = (
    f"Make one at {TOKENS}: of type 'write', or a fine-grained one that may write to the contents and "
    "settings of all repositories of your account (or of that organization); 'read' is not enough. Then set "
    "HF_TOKEN or run: hf auth login"
)
PAID = (
    "since July 2026 free accounts cannot create Gradio or Docker Spaces on cpu-basic; use --variant zero "
    "(ZeroGPU: two such Spaces are free, for accounts older than 30 days), a PRO subscription, or "
    "--to modelscope, which has a free CPU tier"
)
AGAIN = "run the same command again: what has arrived is not sent again"
KINDS = {"app": "space", "model": "model"}
HARDWARE = {"zero": "zero-a10g"}


def upload(
    repo: str, folder: Path, what: str, *, sdk: str, variant: str, private: bool, say: Callable[[str], None]
) -> str:
    """Send `folder` to the model or Space `repo`; returns its link. Errors as in assistant.hosts.upload."""
    from huggingface_hub import HfApi, get_token

    if what == "app" and sdk not in ("gradio", "docker", "static"):
        raise ValueError(f"Hugging Face has no Space of sdk {sdk!r}; use gradio, docker or static")
    token = find_token("HF_TOKEN", get_token, HELP)
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT", "").rstrip("/") or None, token=token)
    with refusals_in_words(repo, api.endpoint, token):
        user = patiently(api.whoami, wait_of, say)
        check_may_write(user)
        repo = repo if "/" in repo else f"{user['name']}/{repo}"
    with refusals_in_words(repo, api.endpoint, token):
        link = patiently(lambda: create(api, repo, what, sdk, variant, private), wait_of, say)
        say(f"{link}: there; sending {described(folder, what)}")
        patiently(lambda: send(api, repo, folder, what), wait_of, say)
        there = patiently(lambda: api.list_repo_files(repo, repo_type=KINDS[what]), wait_of, say)
        say_what_is_left(there, folder, say)
    return link


def check_may_write(user: dict[str, Any]) -> None:
    """Raises RuntimeError for a token that may only read: better now than after a long upload."""
    role = user.get("auth", {}).get("accessToken", {}).get("role")
    if role == "read":
        raise RuntimeError(f"the Hugging Face token of {user['name']} may only read. {HELP}")


def create(api: Any, repo: str, what: str, sdk: str, variant: str, private: bool) -> str:
    """The link of the repository, made now or there before.

    Raises ValueError when a Space of another sdk is there: its settings would not fit.
    """
    if what == "model":
        make_or_find(api, repo, "model", private=private)
        return f"{api.endpoint}/{repo}"
    link, hardware = f"{api.endpoint}/spaces/{repo}", HARDWARE.get(variant)
    # Gradio's page from the server can miss the start-up check of a slow model; only a variable stops it.
    variables = [{"key": "GRADIO_SSR_MODE", "value": "false"}] if sdk == "gradio" else None
    make_or_find(
        api, repo, "space", private=private, space_sdk=sdk, space_variables=variables, space_hardware=hardware
    )
    there = api.space_info(repo)
    if there.sdk not in (None, sdk):
        raise ValueError(
            f"{link} is a {there.sdk} Space already and this bundle is {sdk}; give another --repo, "
            f"or delete it at {link}/settings"
        )
    if (
        hardware
        and there.runtime
        and hardware not in (there.runtime.hardware, there.runtime.requested_hardware)
    ):
        api.request_space_hardware(repo, hardware)
    return link


def make_or_find(api: Any, repo: str, kind: str, **wanted: Any) -> None:
    """Create the repository; one that is there already is gone on with, also where a new one would cost."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        api.create_repo(repo, repo_type=kind, **wanted)
    except HfHubHTTPError as error:
        if error.response.status_code not in (402, 403, 409) or not api.repo_exists(repo, repo_type=kind):
            raise


def send(api: Any, repo: str, folder: Path, what: str) -> None:
    api.upload_folder(
        repo_id=repo, folder_path=folder, repo_type=KINDS[what], ignore_patterns=left_out(what),
        commit_message="Published with little-assistant",
    )  # fmt: skip


def found_in(error: BaseException | None, *kinds: type[BaseException]) -> Any:
    """The error of that kind itself or among its causes: a large file's comes wrapped in a RuntimeError."""
    while error is not None and not isinstance(error, kinds):
        error = error.__cause__
    return error


def wait_of(error: Exception) -> float | None:
    """Seconds that a 429 asks to wait; None for any other error."""
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import parse_ratelimit_headers

    refusal = found_in(error, HfHubHTTPError)
    if refusal is None or refusal.response.status_code != 429:
        return None
    headers = refusal.response.headers
    limit = parse_ratelimit_headers(headers)
    if limit is not None and limit.remaining == 0:
        return float(limit.reset_in_seconds) + 1
    after = headers.get("Retry-After", "")
    return float(after) if after.isdigit() else 60.0


@contextmanager
def refusals_in_words(repo: str, endpoint: str, token: str) -> Iterator[None]:
    """Turns what the Hub and the network refuse into one sentence each, without the token in it."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    from huggingface_hub.utils import httpx

    try:
        yield
    except HFValidationError as error:
        raise ValueError(f"--repo {repo}: {one_line(error)}") from None
    except ValueError as error:
        raise ValueError(scrub(error, token)) from None
    except (httpx.TransportError, OSError, RuntimeError) as error:
        refusal = found_in(error, HfHubHTTPError)
        if refusal is not None:
            raise RuntimeError(scrub(in_words(refusal, repo), token)) from None
        broken = found_in(error, httpx.TransportError, ConnectionError)
        if broken is not None:
            raise RuntimeError(
                f"{endpoint}: the connection failed ({scrub(broken, token)}); {AGAIN}"
            ) from None
        raise RuntimeError(scrub(error, token)) from None


def in_words(refusal: Any, repo: str) -> str:
    """What a status means for the person, and what to do."""
    status, said = refusal.response.status_code, refusal.server_message or one_line(refusal)
    if status == 401:
        return f"Hugging Face does not accept the token (401). {HELP}"
    if status == 402:
        return f"Hugging Face does not make {repo} for free (402): {PAID} (it says: {said})"
    if status == 403:
        return f"the token may not write to {repo} (403: {said}). {HELP}; an organization must allow it too"
    if status == 404:
        return f"{repo} is not there, or the token may not see it (404). {HELP}"
    if status == 429:
        return f"Hugging Face's rate limit is used up (429: {said}); wait some minutes, then {AGAIN}"
    return f"Hugging Face answered {status} for {repo}: {said}" + (f"; {AGAIN}" if status >= 500 else "")
