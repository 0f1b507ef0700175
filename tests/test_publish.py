"""The command that a person types, from its flags to the printed link, against stand-ins of the hosts."""

import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

pytest.importorskip("gguf")
pytest.importorskip("detect_secrets")

from hub_stand_in import Hub, hub_stand_in
from modelscope_stand_in import ModelScopeHandler
from tiny_gguf import make_tiny_run

from assistant.settings import REPOSITORY

SECRETS = ("hf_writer", "ms-writer", "oxl-secret-token")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_run(tmp_path_factory.mktemp("run") / "ada")


@dataclass
class Host:
    """A host on loopback, and how a shell is set up for it."""

    name: str
    url: str
    hub: Hub
    work: Path
    environment: dict[str, str] = field(default_factory=dict)

    def publish(
        self, *arguments: object, stdin: int = subprocess.DEVNULL
    ) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "scripts/publish.py", "--to", self.name, "--no-resolve"]
        command += ["--work", str(self.work)]
        done = subprocess.run(
            [*command, *map(str, arguments)], cwd=REPOSITORY, env=os.environ | self.environment, stdin=stdin,
            capture_output=True, text=True,
        )  # fmt: skip
        assert not [secret for secret in SECRETS if secret in done.stdout + done.stderr]
        assert not self.work.is_dir() or not list(self.work.iterdir()), "nothing stays behind"
        return done

    def files(self, repo: str, what: str) -> set[str]:
        """What is there of a model or a page."""
        if self.name != "openxlab":
            kinds = {"model": "models", "app": "spaces" if self.name == "huggingface" else "studios"}
            return set(self.hub.repos[f"{kinds[what]}/{repo}"].content)
        place = f"{self.url.removeprefix('file://')}/{repo}.git"
        listed = subprocess.run(
            ["git", "-C", place, "ls-tree", "-r", "--name-only", "main"], capture_output=True, text=True
        )
        return set(listed.stdout.splitlines())


@pytest.fixture
def host(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Host]:
    name = getattr(request, "param", "huggingface")
    with hub_stand_in(*([ModelScopeHandler] if name == "modelscope" else [])) as hub:
        host = Host(name, hub.url, hub, tmp_path / "work")
        if host.name == "openxlab":
            host.url = f"file://{tmp_path / 'xlab'}"
            for name in ("assistant", "page"):
                place = tmp_path / "xlab" / "ada" / f"{name}.git"
                subprocess.run(
                    ["git", "init", "-q", "--bare", "--initial-branch=main", str(place)], check=True
                )
        host.environment = {
            "HF_ENDPOINT": host.url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "no-store"),
            "HF_TOKEN": "hf_writer", "MODELSCOPE_ENDPOINT": host.url, "MODELSCOPE_HOME": str(tmp_path),
            "MODELSCOPE_API_TOKEN": "ms-writer", "OPENXLAB_ENDPOINT": host.url, "OPENXLAB_USERNAME": "ada",
            "OPENXLAB_TOKEN": "oxl-secret-token", "OPENXLAB_AK": "", "OPENXLAB_SK": "",
        }  # fmt: skip
        yield host


@pytest.fixture
def huggingface(host: Host) -> Host:
    return host


LINKS = {
    "huggingface": "{url}/ada/assistant\n{url}/spaces/ada/assistant\n",
    "modelscope": "{url}/models/ada/assistant\n{url}/studios/ada/assistant\n",
    "openxlab": "https://openxlab.org.cn/models/detail/ada/assistant\n{url}/ada/page\n",
}


@pytest.mark.parametrize("host", ["huggingface", "modelscope", "openxlab"], indirect=True)
def test_both_arrive_and_their_links_are_all_that_is_printed(host: Host, model: Path) -> None:
    remote = ["--git-remote", f"{host.url}/ada/page.git"] if host.name == "openxlab" else []
    done = host.publish("--model", model, "--what", "both", "--repo", "ada/assistant", "--yes", *remote)
    assert done.returncode == 0, done.stderr
    assert done.stdout == LINKS[host.name].format(url=host.url)
    assert {"README.md", "ada.gguf"} <= host.files("ada/assistant", "model")
    page = host.files("ada/page" if remote else "ada/assistant", "app")
    assert {"app.py", "model/ada.gguf", "deploy.json"} <= page
    assert "[y/N]" not in done.stderr


def test_a_page_alone_makes_no_model(huggingface: Host, model: Path) -> None:
    done = huggingface.publish("--model", model, "--repo", "ada/assistant", "--yes", "--private")
    assert (done.returncode, done.stdout) == (0, f"{huggingface.url}/spaces/ada/assistant\n"), done.stderr
    assert list(huggingface.hub.repos) == ["spaces/ada/assistant"]
    assert huggingface.hub.repos["spaces/ada/assistant"].private


def test_a_model_alone_makes_no_page(huggingface: Host, model: Path) -> None:
    done = huggingface.publish("--model", model, "--what", "model", "--repo", "assistant", "--yes")
    assert (done.returncode, done.stdout) == (0, f"{huggingface.url}/ada/assistant\n"), done.stderr
    assert list(huggingface.hub.repos) == ["models/ada/assistant"]


@pytest.mark.parametrize("answer", ["y", "n"])
def test_one_question_on_the_terminal_decides_about_both(huggingface: Host, model: Path, answer: str) -> None:
    ours, theirs = pty.openpty()
    os.write(ours, f"{answer}\n".encode())
    arguments = ("--model", model, "--what", "both", "--repo", "ada/assistant")
    done = huggingface.publish(*arguments, stdin=theirs)
    os.close(theirs)
    os.close(ours)
    asked = "Send the model to huggingface ada/assistant (visible to everyone) and the page? [y/N]"
    assert done.stderr.count("[y/N]") == 1 and asked in done.stderr
    if answer == "y":
        assert (done.returncode, len(huggingface.hub.repos)) == (0, 2), done.stderr
    else:
        assert (done.returncode, done.stdout, huggingface.hub.asked) == (2, "", [])
        assert done.stderr.endswith("error: nothing was sent\n")


@pytest.mark.parametrize(
    ("host", "variable", "sentence"),
    [
        (
            "huggingface",
            "HF_TOKEN",
            "error: no token: set HF_TOKEN. Make one at https://huggingface.co/settings/",
        ),
        (
            "modelscope",
            "MODELSCOPE_API_TOKEN",
            "error: no token: set MODELSCOPE_API_TOKEN. Make an access token ",
        ),
        ("openxlab", "OPENXLAB_TOKEN", "error: no token: set OPENXLAB_TOKEN. At https://openxlab.org.cn"),
    ],
    indirect=["host"],
)
def test_without_a_token_the_last_line_says_where_to_get_one(
    host: Host, model: Path, variable: str, sentence: str
) -> None:
    host.environment[variable] = ""
    done = host.publish("--model", model, "--what", "model", "--repo", "ada/assistant", "--yes")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].startswith(sentence), done.stderr


@pytest.mark.parametrize("host", ["openxlab"], indirect=True)
def test_on_openxlab_a_page_does_not_replace_its_model(host: Host, model: Path) -> None:
    """Both are git repositories there, and the later push would take away the files of the first."""
    done = host.publish("--model", model, "--what", "both", "--repo", "ada/assistant", "--yes")
    assert done.returncode == 2 and "--git-remote" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("token", ["令牌", "hf_one hf_two"])
def test_a_token_that_was_copied_badly_is_refused_in_words(
    huggingface: Host, model: Path, token: str
) -> None:
    huggingface.environment["HF_TOKEN"] = token
    done = huggingface.publish("--model", model, "--what", "model", "--repo", "ada/assistant", "--yes")
    assert (done.returncode, done.stdout, huggingface.hub.asked) == (2, "", [])
    assert done.stderr.splitlines()[-1].startswith("error: the token in HF_TOKEN holds characters that no")
    assert token not in done.stderr


def test_a_cut_file_is_not_sent_even_by_force(huggingface: Host, model: Path, tmp_path: Path) -> None:
    cut = tmp_path / "ada.gguf"
    cut.write_bytes(model.read_bytes()[:-20])
    done = huggingface.publish("--model", cut, "--repo", "ada/assistant", "--yes", "--force")
    assert (done.returncode, done.stdout, huggingface.hub.asked) == (2, "", []), done.stderr
    assert "problem: model/ada.gguf: is cut off" in done.stderr and "Traceback" not in done.stderr
