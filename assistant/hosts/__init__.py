"""Hugging Face, ModelScope and OpenXLab: a folder goes up, a link comes back, and the live page is asked.

Knows nothing of what the folder holds: that is for whoever made and checked it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from assistant.hosts.verifying import verify
from assistant.settings import near_names

__all__ = ["HOSTS", "What", "upload", "verify"]

What = Literal["model", "app"]
HOSTS = ("huggingface", "modelscope", "openxlab")


def upload(
    host: str,
    repo: str,
    folder: Path,
    what: What,
    *,
    sdk: str = "",
    variant: str = "",
    private: bool = False,
    say: Callable[[str], None],
) -> str:
    """Log in, make the repository if it is missing, send the folder; returns the public link.

    `repo` is OWNER/NAME, or NAME for one's own. What an earlier, cut upload has sent is not sent again.
    Raises ValueError for wrong input, RuntimeError for a host that refuses or a connection that breaks.
    """
    if host not in HOSTS:
        raise ValueError(f"host {host!r}{near_names(host, HOSTS)}")
    if not folder.is_dir() or not any(folder.iterdir()):
        raise ValueError(f"{folder} is no folder with files; make the bundle or the model first")
    check_repo(repo)
    if host == "huggingface":
        from assistant.hosts import huggingface

        return huggingface.upload(repo, folder, what, sdk=sdk, variant=variant, private=private, say=say)
    if host == "modelscope":
        from assistant.hosts import modelscope

        return modelscope.upload(repo, folder, what, sdk=sdk, private=private, say=say)
    from assistant.hosts import openxlab

    return openxlab.upload(repo, folder, what, private=private, say=say)


def check_repo(repo: str) -> None:
    """Raises ValueError for a name that no host takes: the hosts' common rules are Hugging Face's."""
    parts = repo.split("/")
    if len(parts) > 2 or not all(_is_plain(part) for part in parts):
        raise ValueError(
            f"--repo {repo!r} must be NAME or OWNER/NAME of Latin letters, digits, '-', '_' and '.', "
            "for example ada-assistant"
        )


def _is_plain(part: str) -> bool:
    plain = part.isascii() and part.replace("-", "").replace("_", "").replace(".", "").isalnum()
    return plain and len(part) <= 96 and part[0] not in "-." and part[-1] not in "-." and ".." not in part
