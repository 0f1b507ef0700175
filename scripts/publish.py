"""From a model to a public page: build what the host needs, check it, show it, ask once, send it.

Run: python scripts/publish.py --to huggingface --repo OWNER/NAME
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from assistant.bundles import choose_model, find_target
from assistant.bundles.checks import model_problems
from assistant.bundles.confirming import say, show_files, stop_at
from assistant.bundles.git import Remote
from assistant.bundles.publishing import build_and_check, check_wishes, model_parcel, send
from assistant.hosts import verify
from assistant.settings import REPOSITORY, run_command


@dataclass(frozen=True)
class Settings:
    to: Literal["huggingface", "modelscope", "openxlab", "docker"] | None = None
    variant: str = ""
    """huggingface: cpu, zero, docker. modelscope: gradio, streamlit. docker: streamlit, gradio."""
    model: str = ""
    """Model folder, adapter folder, .gguf file or hub id; else what app.py would show."""
    repo: str = ""
    """OWNER/NAME on the host; made when it is missing."""
    what: Literal["model", "app", "both"] = "app"
    git_remote: str = ""
    """Push the page there with git and git-lfs instead of the host's API. No token in it."""
    bundle_only: Path | None = None
    """Build and check the page in this folder, and stop."""
    scorecard: Path | None = None
    """scorecard.json of the model, when it does not lie in its run."""
    facts: bool = False
    """The model's card may tell the facts of the identity card: the person they are about agreed."""
    yes: bool = False
    """Do not ask before sending."""
    force: bool = False
    """Publish although the scorecard is missing or below its thresholds."""
    private: bool = False
    resolve: bool = True
    """Ask the package index whether the page can be installed on the host's Python."""
    verify: str = ""
    """Ask the live page at this address who it is, and stop."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "git_remote", Remote(self.git_remote))  # printed without its token


def main(settings: Settings) -> None:
    if settings.verify:
        model = choose_model(settings.model, settings.scorecard)
        return verify(settings.verify, model.scorecard, model.name, say)
    only = settings.bundle_only
    check_wishes(settings.to, settings.what, settings.repo, settings.git_remote, bool(only))
    target = find_target(str(settings.to), settings.variant)
    model = choose_model(settings.model, settings.scorecard)
    made, parcel, bundle, found = REPOSITORY / "out" / ".publish", None, None, []
    if settings.what != "app":
        parcel = model_parcel(model, made / "model", settings.repo, settings.facts)
        found += model_problems(parcel, target, model.scorecard)
        show_files(parcel, f"{model.title}: the model")
    if settings.what != "model":
        out = only or made / f"{target.host}-{target.variant}"
        bundle, faults = build_and_check(target, model, out, settings.resolve)
        found += faults
        show_files(out, f"{model.title} for {target.host}: {target.about}")
    stop_at(found, settings.force)
    if only or not (settings.repo or settings.git_remote):
        print(out)
        return
    links = send(
        model, parcel, bundle, target.host, settings.repo, settings.git_remote,
        is_private=settings.private, is_agreed=settings.yes,
    )  # fmt: skip
    print("\n".join(links))


if __name__ == "__main__":
    run_command(main, Settings)
