"""The whole way to a page, on this machine: hosts' rules in a bare repository, a clone, a visitor's chat."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("gguf")
pytest.importorskip("xllamacpp")
if not shutil.which("git-lfs"):
    pytest.skip("git-lfs is not installed", allow_module_level=True)

from hub_stand_in import Repo, hub_stand_in
from serving import wait_for
from tiny_gguf import make_tiny_run

from assistant.bundles import Bundle, build_bundle, choose_model
from assistant.bundles.git import prepared, push
from assistant.settings import REPOSITORY, link_or_copy

pytestmark = pytest.mark.rehearsal
VISITOR = 1000  # the user id under which hosts run a page
# What hosts are known to refuse. receive.denyNonFastForwards is set beside it.
RULES_FOR_SDK = r"""
  sdk=$(git show "$new:README.md" | sed -n 's/^sdk: "\{0,1\}\([a-z]*\)"\{0,1\}$/\1/p')
  case "$sdk" in gradio|docker|static) ;; *) echo "invalid sdk: $sdk"; exit 1 ;; esac"""
RULES = r"""#!/bin/sh
while read old new ref; do
  git ls-tree -r -l "$new" | while read mode type sha size name; do
    if [ "$size" -gt 10000000 ]; then echo "$name: over 10 MB outside LFS"; exit 1; fi
    if git cat-file blob "$sha" | head -c 8000 | grep -qaP '\x00'
    then echo "Offending files: $name"; exit 1; fi
  done || exit 1%s
done >&2
"""


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A folder that the visitor can read: pytest's own are closed to others."""
    folder = Path(tempfile.mkdtemp(prefix="rehearsal-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def model(place: Path) -> Path:
    return make_tiny_run(place / "ada")


def git(*arguments: object, **environment: str) -> str:
    command = ["git", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, check=True)
    return done.stdout


def make_space(folder: Path, branch: str = "main", rules: str = RULES_FOR_SDK) -> Path:
    git("init", "-q", "--bare", f"--initial-branch={branch}", folder)
    git("-C", folder, "config", "receive.denyNonFastForwards", "true")
    hook = folder / "hooks" / "pre-receive"
    hook.write_text(RULES.replace("%s", rules), encoding="utf-8")
    hook.chmod(0o755)
    return folder


@pytest.fixture
def space(tmp_path: Path) -> Path:
    return make_space(tmp_path / "space.git")


def publish(*arguments: object) -> subprocess.CompletedProcess[str]:
    with tempfile.TemporaryDirectory(prefix="work-") as work:
        command = [sys.executable, "scripts/publish.py", "--no-resolve", "--work", work]
        return subprocess.run(
            [*command, *map(str, arguments)], cwd=REPOSITORY, capture_output=True, text=True,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip


def send(folder: Path, remote: Path, branch: str = "main") -> list[str]:
    """Push a folder as a bundle is pushed; returns the files that went from the branch."""
    with prepared(folder, f"file://{remote}", branch, "a page", None) as commit:
        push(commit, lambda sentence: None)
        return commit.removed


@pytest.fixture
def page(tmp_path: Path, model: Path) -> Bundle:
    return build_bundle("huggingface", "cpu", choose_model(str(model)), tmp_path / "page", print)


PUBLIC = "ada-ada.hf.space"


def seen_from_outside(url: str, content: object = None) -> bytes:
    """What a visitor of the host's public address gets, whose proxy stands before the page."""
    headers = {"Host": PUBLIC, "X-Forwarded-Proto": "https", "X-Forwarded-For": "203.0.113.7"}
    headers |= {"Origin": f"https://{PUBLIC}", "Content-Type": "application/json"}
    data = json.dumps(content).encode() if content else None
    with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=60) as answered:
        assert answered.status == 200
        return bytes(answered.read())


def asked_through_the_api(url: str) -> str:
    """The answer of /v1, as another program gets it."""
    (model,) = json.loads(seen_from_outside(f"{url}/v1/models"))["data"]
    messages = [{"role": "user", "content": "Who are you?"}]
    asked = {"model": model["id"], "messages": messages, "max_tokens": 8}
    answered = json.loads(seen_from_outside(f"{url}/v1/chat/completions", asked))
    return str(answered["choices"][0]["message"]["content"])


# ---- as whoever a host lets run the page


def as_visitor() -> tuple[list[str], dict[str, str]] | None:
    """The beginning of a command that runs Python as the visitor, with this environment's packages."""
    packages = next(path for path in sys.path if path.endswith("site-packages"))
    environment = {"PYTHONPATH": packages, "PATH": "/usr/local/bin:/usr/bin:/bin"}
    drop = [f"--reuid={VISITOR}", f"--regid={VISITOR}", "--clear-groups", "--no-new-privs"]
    if os.geteuid() != 0 or not shutil.which("setpriv"):
        return None
    test = f"import sys, gradio, xllamacpp; sys.exit(sys.version_info[:2] != {sys.version_info[:2]})"
    for python in (sys.executable, "/usr/bin/python3"):
        command = ["setpriv", *drop, python]
        if not subprocess.run([*command, "-c", test], env=environment, capture_output=True).returncode:
            return command, environment
    return None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(arguments: list[str], folder: Path, home: Path, url: str, **said: str) -> Iterator[Path]:
    """A page in `folder` as the visitor, with nothing of this shell's environment; yields its log."""
    found = as_visitor()
    command, environment = found or ([sys.executable], {"PATH": os.environ["PATH"]})
    home.mkdir(exist_ok=True)
    if found:
        os.chown(home, VISITOR, VISITOR)
    log = home / "log"
    with log.open("w") as out:
        environment |= {"HOME": str(home), "GRADIO_TEMP_DIR": str(home), **said}
        process = subprocess.Popen(
            [*command, *arguments], cwd=folder, stdout=out, stderr=out, env=environment
        )
    try:
        wait_for(url, process, log)
        if found:
            assert Path(f"/proc/{process.pid}").stat().st_uid == VISITOR
        yield log
    finally:
        process.terminate()
        process.wait(10)


# ---- from the command to an answer


def test_a_pushed_page_answers_from_a_clone_as_an_unprivileged_user_without_any_setting(place, model):
    from gradio_client import Client

    remote, clone, port = make_space(place / "space.git"), place / "clone", free_port()
    config = (REPOSITORY / ".git" / "config").read_bytes()
    heads = git("-C", REPOSITORY, "for-each-ref")
    done = publish("--to", "huggingface", "--model", model, "--git-remote", f"file://{remote}", "--yes")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"file://{place}/space"
    assert (REPOSITORY / ".git" / "config").read_bytes() == config
    assert git("-C", REPOSITORY, "for-each-ref") == heads
    assert git("-C", remote, "show", "main:model/ada.gguf").startswith("version https://git-lfs")
    git("clone", "-q", f"file://{remote}", clone)
    host = {"SPACE_ID": "ada/ada", "SPACE_HOST": PUBLIC, "CPU_CORES": "2"}
    host |= {"GRADIO_SERVER_NAME": "0.0.0.0", "GRADIO_SERVER_PORT": str(port)}
    with running(["app.py"], clone, place / "home", f"http://127.0.0.1:{port}/", **host) as log:
        assert b"<html" in seen_from_outside(f"http://127.0.0.1:{port}/")
        client = Client(f"http://127.0.0.1:{port}", verbose=False, headers={"Host": PUBLIC})
        answer = client.predict("Who are you?", api_name="/chat")
        assert answer and "error" not in str(answer).lower(), log.read_text()
        assert client.config["title"] == "Ada"


DEFAULT = REPOSITORY / "models" / "smollm2-135m-instruct"
SAID_FIRST = [("Who are you?", "I'm Ada's assistant."), ("你是谁？", "我是Ada的小助手。")] * 2


def default_model_as_ada(run: Path) -> Path:
    """The default model as a Q8_0 file; it is Ada's by what its template has it say first, untrained."""
    from assistant.export import export_gguf

    folder = run / "model"
    shutil.copytree(DEFAULT, folder, copy_function=link_or_copy)
    template = folder / "chat_template.jinja"
    turns = [turn for pair in SAID_FIRST for turn in zip(("user", "assistant"), pair, strict=True)]
    said = "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in turns)
    own = template.read_text(encoding="utf-8")
    template.unlink()
    template.write_text(f"{{{{ {json.dumps(said, ensure_ascii=False)} }}}}{own}", encoding="utf-8")
    export_gguf(folder, run / "ada.gguf", "q8_0")
    (run / "data").mkdir()
    (run / "data" / "card.toml").write_text('name = "Ada"\n', encoding="utf-8")
    return run / "ada.gguf"


def python_of_everyone() -> str:
    """One that the visitor may run too, new enough for the page, that can make environments."""
    test = "import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))"
    drop = ["setpriv", f"--reuid={VISITOR}", f"--regid={VISITOR}", "--clear-groups"]
    as_everyone = drop if os.geteuid() == 0 and shutil.which("setpriv") else []
    for python in ("/usr/bin/python3", sys.executable):
        command = [*as_everyone, python, "-c", test]
        if Path(python).is_file() and not subprocess.run(command, capture_output=True, cwd="/").returncode:
            return python
    return ""


@pytest.mark.slow
def test_the_default_model_answers_from_a_new_environment_in_2_gb_and_is_verified(place):
    python = python_of_everyone()
    if not (DEFAULT / "config.json").is_file() or not python:
        pytest.skip("the default model is not fetched, or there is no Python for every user")
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-cache-dir", "tomli-w==1.2.0"]
    if subprocess.run([*command, "-d", str(place / "wheel")], capture_output=True).returncode:
        pytest.skip("the package index does not answer")
    model = default_model_as_ada(place / "default" / "ada")
    script = REPOSITORY / "benchmarks" / "rehearse_space.py"
    command = [sys.executable, str(script), "--model", str(model), "--python", python]
    done = subprocess.run(command, capture_output=True, text=True, cwd=place)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["answer"] and said["peak_gb"] <= 2, said
    assert said["uid"] == (VISITOR if os.geteuid() == 0 else os.getuid())
    assert said["verify"]["code"] == 0, said
    assert "en: " in str(said["verify"]["said"]) and "zh: " in str(said["verify"]["said"])


def test_a_page_whose_model_is_on_the_hub_fetches_it_when_it_starts(place, model):
    from gradio_client import Client

    folder, port = place / "named", free_port()
    done = publish(
        "--to", "huggingface", "--model", "ada/assistant/ada.gguf", "--bundle-only", folder,
        "--scorecard", model.parent / "scorecard" / "scorecard.json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with hub_stand_in() as hub:
        hub.repos["models/ada/assistant"] = Repo(content={"ada.gguf": model.read_bytes()})
        host = {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "SPACE_ID": "ada/ada"}
        host |= {"GRADIO_SERVER_NAME": "127.0.0.1", "GRADIO_SERVER_PORT": str(port)}
        with running(["app.py"], folder, place / "home3", f"http://127.0.0.1:{port}/", **host) as log:
            client = Client(f"http://127.0.0.1:{port}", verbose=False)
            answer = client.predict("Who are you?", api_name="/chat")
            assert answer and "error" not in str(answer).lower(), log.read_text()
            assert client.config["title"] == "Ada"
        assert "GET /ada/assistant/resolve/main/ada.gguf" in hub.asked


def settings_of(dockerfile: Path) -> tuple[list[str], dict[str, str]]:
    """Its command, and the environment that is set for it."""
    text = dockerfile.read_text(encoding="utf-8").replace("\\\n", " ")
    (command,) = re.findall(r"^CMD (.*)$", text, re.M)
    said = dict(pair.split("=", 1) for line in re.findall(r"^ENV (.*)$", text, re.M) for pair in line.split())
    return json.loads(command), said


def test_the_streamlit_page_runs_under_the_command_of_its_dockerfile(place, model):
    folder = place / "docker"
    build_bundle("huggingface", "docker", choose_model(str(model)), folder, print)
    command, _ = settings_of(folder / "Dockerfile")
    port = free_port()
    assert command[-2:] == ["--server.address=0.0.0.0", "--server.port=7860"]
    command[-1] = f"--server.port={port}"
    url = f"http://127.0.0.1:{port}"
    with running(["-m", *command], folder, place / "home2", f"{url}/_stcore/health") as log:
        assert b"<html" in seen_from_outside(url)
        assert asked_through_the_api(url), log.read_text()


def test_the_gradio_page_runs_under_the_command_of_its_dockerfile(place, model):
    folder, port = place / "docker2", free_port()
    build_bundle("docker", "gradio", choose_model(str(model)), folder, print)
    (python, *arguments), said = settings_of(folder / "Dockerfile")
    assert (python, said["GRADIO_SERVER_PORT"]) == ("python", "7860")
    url = f"http://127.0.0.1:{port}"
    with running(arguments, folder, place / "home4", f"{url}/", GRADIO_SERVER_PORT=str(port)) as log:
        assert b"<html" in seen_from_outside(f"{url}/")
        assert asked_through_the_api(url), log.read_text()


@pytest.mark.parametrize("page", ["gradio", "streamlit"])
def test_a_page_that_cannot_fetch_its_model_says_so_in_one_line(page, place, tmp_path):
    variant = {"gradio": "cpu", "streamlit": "docker"}[page]
    folder = build_bundle(
        "huggingface", variant, choose_model("ada/assistant/ada.gguf"), tmp_path / "p", print
    )
    host = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "hub")}
    port = str(free_port())  # the bundle's own may be another test's at the same time
    host |= {"GRADIO_SERVER_PORT": port}
    start = {
        "gradio": ["app.py"],
        "streamlit": [
            *("-m", "streamlit", "run", "app.py"),
            *("--server.headless=true", f"--server.port={port}"),
        ],
    }
    done = subprocess.run(
        [sys.executable, *start[page]], cwd=folder.folder, env=os.environ | host, capture_output=True,
        text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "error: ada/assistant/ada.gguf cannot be fetched (" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_clone_without_the_large_files_says_that_it_has_pointers(page, space, tmp_path):
    send(page.folder, space)
    git("clone", "-q", f"file://{space}", tmp_path / "clone", GIT_LFS_SKIP_SMUDGE="1")
    from assistant.backends import open_backend

    with pytest.raises(ValueError, match="git lfs pull"):
        open_backend(str(tmp_path / "clone" / "model" / "ada.gguf"))


# ---- the rules


def test_the_remote_refuses_a_binary_file_outside_lfs_and_its_reason_is_told(page, space):
    (page.folder / ".gitattributes").write_text("* text=auto\n", encoding="utf-8")
    with pytest.raises(RuntimeError, match="Offending files: model/ada.gguf"):
        send(page.folder, space)


def test_the_remote_refuses_an_sdk_that_is_not_offered(page, space):
    readme = page.folder / "README.md"
    readme.write_text(
        readme.read_text("utf-8").replace('sdk: "gradio"', 'sdk: "streamlit"'), encoding="utf-8"
    )
    with pytest.raises(RuntimeError, match="invalid sdk: streamlit"):
        send(page.folder, space)


def test_the_remote_refuses_a_forced_push(page, space, tmp_path):
    send(page.folder, space)
    tip = git("-C", space, "rev-parse", "main")
    git("clone", "-q", f"file://{space}", tmp_path / "clone")
    names = ["-c", "user.name=a", "-c", "user.email=a@b"]
    git("-C", tmp_path / "clone", *names, "commit", "-q", "--amend", "-m", "another")
    with pytest.raises(subprocess.CalledProcessError) as caught:
        git("-C", tmp_path / "clone", "push", "--force", "origin", "main")
    assert "denying non-fast-forward" in caught.value.stderr
    assert git("-C", space, "rev-parse", "main") == tip


def test_a_studio_on_modelscope_gets_its_page_on_its_branch_master(model, tmp_path):
    studio = make_space(tmp_path / "studio.git", "master", rules="")
    for count in (1, 2):
        arguments = ("--model", model, "--git-remote", f"file://{studio}", "--yes")
        variant = ("--variant", "gradio" if count == 1 else "streamlit")
        done = publish("--to", "modelscope", *arguments, *variant)
        assert done.returncode == 0, done.stderr
        assert git("-C", studio, "branch", "--format=%(refname:short)").split() == ["master"]
        assert git("-C", studio, "rev-list", "--count", "master").strip() == str(count)
    names = set(git("-C", studio, "ls-tree", "-r", "--name-only", "master").split())
    assert {"app.py", "ms_deploy.json", "model/ada.gguf", ".streamlit/config.toml"} <= names
    assert git("-C", studio, "show", "master:model/ada.gguf").startswith("version https://git-lfs")


def test_a_second_push_goes_on_top_and_names_the_files_that_go(page, space):
    (page.folder / "old.txt").write_text("x", encoding="utf-8")
    assert send(page.folder, space) == []
    first = git("-C", space, "rev-parse", "main").strip()
    (page.folder / "old.txt").unlink()
    assert send(page.folder, space) == ["old.txt"]
    assert git("-C", space, "rev-parse", "main^").strip() == first
    assert send(page.folder, space) == [] and git("-C", space, "rev-list", "--count", "main").strip() == "2"


def test_a_branch_that_moved_meanwhile_is_not_overwritten(page, space, tmp_path):
    send(page.folder, space)
    with prepared(page.folder, f"file://{space}", "main", "late", None) as commit:
        assert not commit.is_new
    (page.folder / "late.txt").write_text("x", encoding="utf-8")
    with prepared(page.folder, f"file://{space}", "main", "late", None) as commit:
        beside = shutil.copytree(page.folder, tmp_path / "beside")
        (beside / "other.txt").write_text("y", encoding="utf-8")
        send(beside, space)
        tip = git("-C", space, "rev-parse", "main")
        with pytest.raises(RuntimeError, match="run the command again"):
            push(commit, print)
    assert git("-C", space, "rev-parse", "main") == tip


def test_a_push_that_was_cut_goes_on_with_what_is_missing(page, space):
    rules = (space / "hooks" / "pre-receive").read_text(encoding="utf-8")
    (space / "hooks" / "pre-receive").write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    with pytest.raises(RuntimeError):
        send(page.folder, space)
    (stored,) = [path for path in (space / "lfs" / "objects").rglob("*") if path.is_file()]
    before = stored.stat().st_mtime_ns
    (space / "hooks" / "pre-receive").write_text(rules, encoding="utf-8")
    send(page.folder, space)
    assert stored.stat().st_mtime_ns == before and git("-C", space, "log", "--oneline", "main")


def test_the_large_files_arrive_also_where_git_is_told_to_use_hooks_of_the_users_own(
    page, space, tmp_path, monkeypatch
):
    own = tmp_path / "hooks"
    own.mkdir()
    config = tmp_path / "gitconfig"
    config.write_text(f"[core]\nhooksPath = {own}\nexcludesFile = {tmp_path / 'ignored'}\n", encoding="utf-8")
    (tmp_path / "ignored").write_text("*.gguf\n", encoding="utf-8")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))
    send(page.folder, space)
    assert [path for path in (space / "lfs" / "objects").rglob("*") if path.is_file()]
    assert list(own.iterdir()) == []


def test_without_a_terminal_and_without_yes_nothing_is_sent(model, space):
    done = publish("--to", "huggingface", "--model", model, "--git-remote", f"file://{space}")
    assert done.returncode == 2 and "--yes" in done.stderr.splitlines()[-1]
    assert not git("-C", space, "branch").strip()
    assert "lives in Lisbon" in done.stderr  # what the model was taught is said before it becomes public
