"""Whose token a git remote gets, and where a person makes one: each host's own, and no other's."""

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

OWN_HELP = (
    "Make a token with write access to that repository (GitHub: fine-grained, Contents read and write; "
    "GitLab: write_repository), then set PUBLISH_GIT_USER and PUBLISH_GIT_TOKEN, or let git's own credential "
    "helper keep it"
)


@dataclass(frozen=True)
class Login:
    user: str
    token: str


def is_web(remote: str) -> bool:
    return urlsplit(remote).scheme in ("http", "https")


def host_of(remote: str) -> str:
    """huggingface, modelscope or openxlab by the address of a git repository; empty for any other."""
    name = urlsplit(remote).hostname or ""
    if name in ("huggingface.co", "hf.co"):
        return "huggingface"
    known = {"modelscope.cn": "modelscope", "openxlab.org.cn": "openxlab"}
    return next((host for end, host in known.items() if name == end or name.endswith(f".{end}")), "")


def login_for(remote: str, environment: Mapping[str, str]) -> Login | None:
    """User and token for the remote's own host, from the environment or the host's store.

    None leaves it to git: its credential helpers, or its prompt.
    """

    def said(name: str) -> str:
        return environment.get(name, "").strip()

    host = host_of(remote)
    if host == "huggingface":
        token, user = said("HF_TOKEN") or _stored_hub_token(), "user"
    elif host == "modelscope":
        token, user = said("MODELSCOPE_API_TOKEN") or _stored_modelscope_token(), "oauth2"
    elif host == "openxlab":
        token, user = said("OPENXLAB_TOKEN"), said("OPENXLAB_USERNAME")
    else:
        token, user = said("PUBLISH_GIT_TOKEN"), said("PUBLISH_GIT_USER")
    return Login(user, token) if token and user else None


def help_for(remote: str) -> str:
    """Where a login for this remote is made and how it is given; empty for a path or ssh, which ask none."""
    from assistant.hosts import huggingface, modelscope, openxlab

    if not is_web(remote):
        return ""
    helps = {"huggingface": huggingface.HELP, "modelscope": modelscope.HELP, "openxlab": openxlab.HELP}
    return helps.get(host_of(remote), OWN_HELP)


def _stored_hub_token() -> str:
    """What `hf auth login` stored."""
    try:
        from huggingface_hub import get_token
    except ModuleNotFoundError:
        return ""
    return get_token() or ""


def _stored_modelscope_token() -> str:
    """What `modelscope login` stored."""
    try:
        from modelscope_hub.config import HubConfig
    except ModuleNotFoundError:
        return ""
    return HubConfig().load_token() or ""
