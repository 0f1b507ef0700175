"""The two things that can be sent, a model and a page: prepared, asked for once, sent."""

import os
import shutil
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

from assistant import hosts
from assistant.bundles import Bundle, Choice, Target, build_bundle, requirements_of
from assistant.bundles.checks import Problem, model_problems, problems
from assistant.bundles.confirming import ask_once, say, show_files, tell_private_facts
from assistant.bundles.git import Commit, Remote, check_remote, prepared, push
from assistant.bundles.logins import help_for, login_for
from assistant.bundles.parcels import model_parcel
from assistant.bundles.requirements import ask_index
from assistant.hosts.openxlab import check_kind


def check_wishes(
    to: str | None,
    what: str,
    repo: str,
    git_remote: str,
    is_for_files_only: bool,
    *,
    is_private: bool = False,
    with_facts: bool = False,
) -> None:
    """Raises ValueError, before anything is built, for flags that do not go together."""
    if shutil.which("git") is None:
        raise RuntimeError("git says which files go through LFS; run: apt-get install git git-lfs")
    if not to:
        raise ValueError("--to is missing; write --to huggingface, modelscope, openxlab or docker")
    if repo:
        hosts.check_repo(repo)
    if git_remote:
        check_remote(git_remote)
    if to == "docker" and what != "app":
        raise ValueError(
            "--to docker makes a page alone; a model goes to huggingface, modelscope or openxlab"
        )
    if to == "docker" and repo:
        raise ValueError(
            "--to docker has no --repo: give --bundle-only DIR, or the --git-remote of your server"
        )
    if what != "app" and is_for_files_only:
        raise ValueError("--bundle-only builds a page; leave out --what")
    if what != "app" and not repo:
        raise ValueError(f"--what {what} needs --repo OWNER/NAME, where the model goes")
    if to == "openxlab" and what == "both" and not git_remote:
        raise ValueError(
            "on OpenXLab a model and a page are two git repositories: --repo is the model's; "
            "give the page's with --git-remote URL"
        )
    if with_facts and what == "app":
        raise ValueError("--facts is about the model's card, and a page has none; add --what model or both")
    if is_private and (is_for_files_only or not repo or (git_remote and what == "app")):
        raise ValueError(
            "--private is for a repository that this command makes (--repo); who may see a git remote is "
            "set where that was made"
        )
    if not (repo or git_remote or is_for_files_only):
        repo_too = "" if to == "docker" else "--repo OWNER/NAME, "
        raise ValueError(f"where to? give {repo_too}--git-remote URL, or --bundle-only DIR to only build")


def model_and_faults(
    target: Target, model: Choice, out: Path, repo: str, with_facts: bool
) -> tuple[Path, list[Problem]]:
    """The model as it is sent in `out`, shown, and what is wrong with it."""
    parcel = model_parcel(model, out, repo, target, with_facts)
    show_files(parcel, f"{model.title}: the model")
    return parcel, model_problems(parcel, target, model.scorecard)


def page_and_faults(
    target: Target, model: Choice, out: Path, with_index: bool
) -> tuple[Bundle, list[Problem]]:
    """The page in `out`, shown, and what is wrong with it; the index is asked while the page is made."""
    index = ask_index(requirements_of(target, model), target) if with_index else str
    bundle = build_bundle(target.host, target.variant, model, out, say)
    show_files(out, f"{model.title} for {target.host}: {target.about}")
    return bundle, problems(out, target, index)


def send(
    model: Choice,
    parcel: Path | None,
    bundle: Bundle | None,
    host: str,
    repo: str,
    git_remote: str,
    *,
    is_private: bool,
    is_agreed: bool,
) -> list[str]:
    """Ask once, then send what there is; returns the links. A page goes by git where a remote is given."""
    with ExitStack() as stack:
        commit = stack.enter_context(_commit_of(bundle, git_remote)) if bundle and git_remote else None
        if commit and host == "openxlab":
            check_kind(commit, "app")
        tell_private_facts(model)
        asked = question(commit, f"{host} {repo}", parcel is not None, bundle is not None, is_private)
        ask_once(asked, is_agreed)
        links = []
        if parcel:
            links.append(hosts.upload(host, repo, parcel, "model", private=is_private, say=say))
        if commit and bundle:
            push(commit, say)
            links.append(link_of(bundle, git_remote))
        elif bundle:
            links.append(_upload_page(bundle, host, repo, is_private))
        return links


def _upload_page(bundle: Bundle, host: str, repo: str, is_private: bool) -> str:
    target = bundle.target
    return hosts.upload(
        host, repo, bundle.folder, "app", sdk=target.sdk, variant=target.variant, private=is_private, say=say
    )


def _commit_of(bundle: Bundle, git_remote: str) -> AbstractContextManager[Commit]:
    message = f"{bundle.model.title}: {bundle.target.about}"
    login, help_text = login_for(git_remote, os.environ), help_for(git_remote)
    return prepared(bundle.folder, git_remote, bundle.target.branch, message, login, help_text)


def question(commit: Commit | None, where: str, with_model: bool, with_page: bool, is_private: bool) -> str:
    """What is sent where, as one sentence. The files that a push takes away are said before it."""
    things = [name for name, is_there in (("the model", with_model), ("the page", with_page)) if is_there]
    if commit:
        things[-1] += f" to {Remote(commit.remote)!r}, branch {commit.branch}"
        if commit.removed:
            shown = ", ".join(commit.removed[:5]) + (" …" if len(commit.removed) > 5 else "")
            say(f"note: {len(commit.removed)} files of that branch are not in the page and go: {shown}")
    if with_model or not commit:
        things[0] += f" to {where} ({'visible to you alone' if is_private else 'visible to everyone'})"
    return f"Send {' and '.join(things)}?"


def link_of(bundle: Bundle, git_remote: str) -> str:
    """Where a person sees what was pushed."""
    address = git_remote.removesuffix(".git")
    if bundle.target.host == "openxlab" and git_remote.startswith("http"):
        return f"{address} (connect it on openxlab.org.cn: create, Gradio, this repository)"
    return address
