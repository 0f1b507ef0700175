"""Where a live page is, behind a host's link to it, and the keys that open it. Asks nobody."""

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from assistant.bundles.logins import login_for

HUB = r"https://(?:www\.)?(?:huggingface\.co|hf\.co)"
SPACE = HUB + r"/spaces/([\w.-]+)/([\w.-]+)(?:/(?:tree|blob|settings|discussions|commits)\b.*)?"
STUDIO = (
    r"https://(?:www\.)?modelscope\.cn/studios/([\w.-]+)/([\w.-]+)(?:/(?:summary|files|file|setting)\b.*)?"
)


@dataclass(frozen=True)
class Keys:
    """What lets us in where not everyone is; shown to the page alone, and only when it asks."""

    hub_token: str = field(default="", repr=False)
    """For a private Space."""
    login: str = field(default="", repr=False)
    """user:password of the page."""
    api_key: str = field(default="", repr=False)
    """Of the page's /v1."""

    def for_page(self, address: str) -> str:
        """The value of an Authorization header; empty when there is none for this page."""
        if is_space(address):
            return f"Bearer {self.hub_token}" if self.hub_token else ""
        return f"Basic {base64.b64encode(self.login.encode()).decode()}" if self.login else ""

    def for_api(self, address: str) -> str:
        return f"Bearer {self.api_key}" if self.api_key else self.for_page(address)


def keys_from(environment: Mapping[str, str]) -> Keys:
    """HF_TOKEN or the hub's store, ASSISTANT_LOGIN, and ASSISTANT_API_KEY, else OPENAI_API_KEY."""
    hub = login_for("https://huggingface.co", environment)
    names = ("ASSISTANT_API_KEY", "OPENAI_API_KEY")
    api_keys = [key for name in names if (key := environment.get(name, "").strip())]
    return Keys(hub.token if hub else "", environment.get("ASSISTANT_LOGIN", ""), (api_keys or [""])[0])


def page_address(url: str) -> str:
    """The page itself behind a link of a host: a Space or a studio is shown in a frame of another address.

    Raises ValueError for what is no address, and for one with a login in it, which is not repeated.
    """
    if "@" in urlsplit(url).netloc:
        raise ValueError(
            "--verify holds a login, which every process list shows; leave it out and set "
            "ASSISTANT_LOGIN=user:password"
        )
    plain = url.partition("#")[0].partition("?")[0].rstrip("/")
    for link, domain in ((SPACE, "hf.space"), (STUDIO, "ms.show")):
        if found := re.fullmatch(link, plain):
            return f"https://{re.sub('[^a-z0-9]+', '-', '-'.join(found.groups()).lower())}.{domain}"
    if not re.match(r"https?://[^/\s]+", url):
        raise ValueError(f"--verify {url!r} is no address; give one like https://OWNER-NAME.hf.space")
    if re.match(HUB, url):
        raise ValueError(
            f"--verify {url!r} is no Space; give a link like https://huggingface.co/spaces/OWNER/NAME"
        )
    return plain


def is_space(address: str) -> bool:
    parts = urlsplit(address)
    return parts.scheme == "https" and (parts.hostname or "").endswith(".hf.space")
