"""The targets of a publication and their rules, from files/targets.toml. Knows no model and no network."""

from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from assistant.settings import REPOSITORY, load_toml, near_names

FILES = Path(__file__).resolve().with_name("files")


@dataclass(frozen=True)
class Target:
    """One variant of one host; fields as files/targets.toml explains them."""

    host: str
    variant: str
    about: str
    sdk: str
    form: Literal["gguf", "folder"]
    """What the page opens: one GGUF file, or a model folder for transformers."""
    page: Literal["gradio", "streamlit", "python39"]
    python: str
    requirements: tuple[str, ...]
    packages: tuple[str, ...]
    branch: str
    largest_file_gb: float
    largest_gb: float
    largest_plain_mb: float
    front_rules: str
    platform: str
    host_requirements: tuple[str, ...] = ()
    """What the host installs in the same pass as requirements.txt."""
    environment: dict[str, str] | None = None
    front: dict[str, Any] | None = None
    extra: dict[str, str] | None = None
    """File in the bundle → template in files/."""


@cache
def _hosts() -> dict[str, Any]:
    return load_toml(FILES / "targets.toml")


def hosts() -> list[str]:
    return list(_hosts())


def variants(host: str) -> list[str]:
    return list(_hosts()[host]["variants"])


def find_target(host: str, variant: str = "") -> Target:
    """The host's variant, by default its first. Raises ValueError for an unknown one."""
    if host not in _hosts():
        raise ValueError(f"no target {host!r}{near_names(host, hosts())}")
    variant = variant or variants(host)[0]
    if variant not in variants(host):
        raise ValueError(f"{host} has no variant {variant!r}{near_names(variant, variants(host))}")
    rules = {name: value for name, value in _hosts()[host].items() if name != "variants"}
    values = {**rules, **_hosts()[host]["variants"][variant]}
    lists = ("requirements", "packages", "host_requirements")
    values |= {
        name: tuple(line.format(gradio=gradio_version()) for line in values.get(name, ())) for name in lists
    }
    return Target(host=host, variant=variant, **values)


@cache
def gradio_version() -> str:
    """The one version that the page is made for: sdk_version in the README's front matter."""
    from assistant.bundles.front_matter import read_front_matter

    return str(read_front_matter(REPOSITORY / "README.md")["sdk_version"])


def pinned(requirement: str) -> str:
    """`tyro` → `tyro==1.0.17`, the version that runs here; hosts build again and again, and newer ones break.

    xllamacpp is the one of requirements.txt, whose C functions are the known ones.
    """
    if any(sign in requirement for sign in "=<>~"):
        return requirement
    lines = (REPOSITORY / "requirements.txt").read_text(encoding="utf-8").splitlines()
    exact = [line.split()[0] for line in lines if line.startswith(f"{requirement}==")]
    try:
        return exact[0] if exact else f"{requirement}=={version(requirement).partition('+')[0]}"
    except PackageNotFoundError:
        return requirement
