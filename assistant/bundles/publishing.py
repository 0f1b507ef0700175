"""The two things that can be sent, a model and a page: prepared, asked for once, sent."""

import os
import shutil
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

from assistant import hosts
from assistant.bundles import Bundle, Choice, Target, build_bundle, requirements_of
from assistant.bundles.checks import Problem, problems
from assistant.bundles.confirming import ask_once, say, tell_private_facts
from assistant.bundles.git import Commit, Remote, check_remote, login_for, prepared, push
from assistant.bundles.requirements import ask_index
from assistant.bundles.weights import link_or_copy
from assistant.catalog import ADAPTER_FILES, PLAIN_FILES


def check_wishes(to: str | None, what: str, repo: str, git_remote: str, is_for_files_only: bool) -> None:
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
    if to != "docker" and not (repo or git_remote or is_for_files_only):
        raise ValueError(
            "where to? give --repo OWNER/NAME, --git-remote URL, or --bundle-only DIR to only build"
        )


def model_parcel(model: Choice, folder: Path, repo: str, with_facts: bool) -> Path:
    """The model's files and its card in a new `folder`. Raises ValueError for a model on a hub."""
    from assistant.model_card import write_model_card

    if model.kind == "hub":
        raise ValueError(f"{model.place} is on a hub already; give a folder or a .gguf file with --model")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if model.kind == "gguf":
        files = [model.path]
    else:
        patterns = ADAPTER_FILES if model.kind == "adapter" else PLAIN_FILES
        files = sorted({file for pattern in patterns for file in model.path.glob(pattern)})
    for file in files:
        link_or_copy(file, folder / file.name)
    write_model_card(model.path.parent, folder, repo=repo, include_facts=with_facts)
    return folder


def build_and_check(
    target: Target, model: Choice, out: Path, with_index: bool
) -> tuple[Bundle, list[Problem]]:
    """The page in `out`, and what is wrong with it; the package index is asked while the page is made."""
    index = ask_index(requirements_of(target, model), target) if with_index else str
    bundle = build_bundle(target.host, target.variant, model, out, say)
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
    login = login_for(git_remote, os.environ)
    return prepared(bundle.folder, git_remote, bundle.target.branch, message, login)


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
