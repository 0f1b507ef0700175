"""From a model to a public page: build what the host needs, check it, show it, ask once, send it.

Run: python scripts/publish.py --to huggingface --repo OWNER/NAME
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from assistant.bundles import choose_model, find_target
from assistant.bundles.checks import fit_problems
from assistant.bundles.confirming import say, stop_at
from assistant.bundles.git import Remote
from assistant.bundles.parcels import workplace
from assistant.bundles.publishing import check_wishes, model_and_faults, page_and_faults, send
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
    work: Path = REPOSITORY / "out" / ".publish"
    """What is sent is made here, in a folder that is gone afterwards."""
    resolve: bool = True
    """Ask the package index whether the host can install the page."""
    verify: str = ""
    """Ask the live page at this address who it is, and stop."""

    def __post_init__(self) -> None:
        for name in ("git_remote", "verify"):  # printed without what stands before an @
            object.__setattr__(self, name, Remote(getattr(self, name)))


def main(settings: Settings) -> None:
    model = choose_model(settings.model, settings.scorecard)
    if settings.verify:
        return verify(settings.verify, model.scorecard, model.name, say)
    what, where, private = settings.what, (settings.repo, settings.git_remote), settings.private
    only, facts = settings.bundle_only, settings.facts
    check_wishes(settings.to, what, *where, bool(only), is_private=private, with_facts=facts)
    target = find_target(str(settings.to), settings.variant)
    parcel, bundle, found = None, None, fit_problems(model)
    with workplace(settings.work) as made:
        if what != "app":
            parcel, faults = model_and_faults(target, model, made / "model", settings.repo, facts)
            found += faults
        if what != "model":
            out = only or made / f"{target.host}-{target.variant}"
            bundle, faults = page_and_faults(target, model, out, settings.resolve)
            found += faults
        stop_at(found, settings.force)
        if only:
            return print(only)
        links = send(model, parcel, bundle, target.host, *where, is_private=private, is_agreed=settings.yes)
    print("\n".join(links))


if __name__ == "__main__":
    run_command(main, Settings)
