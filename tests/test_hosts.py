"""Uploads through the hosts' real clients against stand-ins on loopback. No network."""

import hashlib
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_stand_in import Hub, hub_stand_in

from assistant.hosts import upload
from assistant.hosts.credentials import find_token, scrub
from assistant.settings import REPOSITORY

WEIGHTS = b"\0weights" * 1000
OTHER = b"\0other" * 1000
NOWHERE = "http://127.0.0.1:9"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small bundle: two large files by their bytes, and two of text."""
    made = tmp_path / "bundle"
    (made / "model").mkdir(parents=True)
    (made / "README.md").write_text("---\nsdk: gradio\n---\n# Ada\n")
    (made / "app.py").write_text("print('Ada')\n")
    (made / "model" / "a.gguf").write_bytes(WEIGHTS)
    (made / "model" / "b.gguf").write_bytes(OTHER)
    return made


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-store"))
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    with hub_stand_in() as standing_in:
        monkeypatch.setenv("HF_ENDPOINT", standing_in.url)
        yield standing_in


def send(folder: Path, repo: str = "ada/assistant", said: list[str] | None = None, **rest: str) -> str:
    say = (said if said is not None else []).append
    return upload("huggingface", repo, folder, "app", **{"sdk": "gradio", **rest}, say=say)


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_a_space_is_made_and_the_bundle_arrives_whole(hub: Hub, folder: Path) -> None:
    link = send(folder, variant="zero")
    assert link == f"{hub.url}/spaces/ada/assistant"
    space = hub.repos["spaces/ada/assistant"]
    assert (space.sdk, space.hardware, space.private) == ("gradio", "zero-a10g", False)
    assert {"key": "GRADIO_SSR_MODE", "value": "false"} in space.variables
    sent = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert space.content == sent
    assert sorted(hub.put) == sorted([digest(WEIGHTS), digest(OTHER)])


def test_a_model_under_its_bare_name_goes_to_the_tokens_own_account(hub: Hub, folder: Path) -> None:
    said: list[str] = []
    link = upload("huggingface", "assistant", folder, "model", private=True, say=said.append)
    assert link == f"{hub.url}/ada/assistant"
    assert hub.repos["models/ada/assistant"].private
    assert any("4 files" in line for line in said)


def test_a_second_upload_sends_only_what_changed(hub: Hub, folder: Path) -> None:
    send(folder)
    (folder / "model" / "b.gguf").write_bytes(OTHER + b"!")
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "app.pyc").write_bytes(b"\0")
    hub.put.clear()
    assert send(folder) == f"{hub.url}/spaces/ada/assistant"
    assert hub.put == [digest(OTHER + b"!")]
    assert "__pycache__/app.pyc" not in hub.repos["spaces/ada/assistant"].content


def test_what_an_earlier_upload_left_is_named_and_kept(hub: Hub, folder: Path) -> None:
    send(folder)
    (folder / "model" / "b.gguf").unlink()
    said: list[str] = []
    send(folder, said=said)
    assert said[-1] == "left there from before, not among what was sent: model/b.gguf"
    assert "model/b.gguf" in hub.repos["spaces/ada/assistant"].content


def test_a_models_records_stay_here(hub: Hub, folder: Path) -> None:
    for name in ("settings.toml", "card.toml", "watch.jsonl", "model/settings.toml"):
        (folder / name).write_text('owner = "Grace"\n')
    upload("huggingface", "ada/assistant", folder, "model", say=print)
    assert "app.py" in hub.repos["models/ada/assistant"].content
    assert not [text for text in hub.repos["models/ada/assistant"].content.values() if b"Grace" in text]


def test_an_upload_cut_in_the_middle_resumes_without_sending_again(hub: Hub, folder: Path) -> None:
    hub.stalls_at = digest(OTHER)
    lines = "from pathlib import Path\nfrom assistant.hosts import upload\n"
    call = f"upload('huggingface', 'ada/assistant', Path({str(folder)!r}), 'app', sdk='gradio', say=print)"
    environment = os.environ | {"HF_HUB_DISABLE_XET": "1", "PYTHONPATH": str(REPOSITORY)}
    client = subprocess.Popen(
        [sys.executable, "-c", lines + call], env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert hub.stalled.wait(60)
    deadline = time.monotonic() + 20
    while hub.put != [digest(WEIGHTS)]:
        assert time.monotonic() < deadline, hub.put
        time.sleep(0.01)
    client.send_signal(signal.SIGKILL)
    client.communicate()
    assert hub.repos["spaces/ada/assistant"].content == {}, "a cut upload must leave no half commit"
    hub.stalls_at = ""
    send(folder)
    assert hub.put == [digest(WEIGHTS), digest(OTHER)]
    assert hub.repos["spaces/ada/assistant"].content["model/b.gguf"] == OTHER


def test_a_token_that_is_not_accepted_says_where_to_get_one(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(RuntimeError, match=r"does not accept the token \(401\).*settings/tokens") as caught:
        send(folder)
    assert "hf_wrong" not in str(caught.value) and "\n" not in str(caught.value)


def test_a_token_that_may_only_read_is_refused_before_anything_is_made(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    with pytest.raises(
        RuntimeError, match="may only read.*of type 'write', or a fine-grained one.*'read' is not enough"
    ):
        send(folder)
    assert hub.asked == ["GET /api/whoami-v2"]


def test_no_token_anywhere_is_one_sentence(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(RuntimeError, match="no token: set HF_TOKEN. .*hf auth login"):
        send(folder)
    assert hub.asked == []


def test_the_hosts_own_store_is_read(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.delenv("HF_TOKEN")
    Path(constants.HF_TOKEN_PATH).write_text("hf_writer")
    assert send(folder).endswith("/spaces/ada/assistant")


def test_a_space_that_costs_names_the_ways_that_do_not(hub: Hub, folder: Path) -> None:
    hub.refuse("POST /api/repos/create", 402, "hosting Gradio Spaces on free cpu-basic requires PRO")
    with pytest.raises(RuntimeError, match=r"\(402\).*July 2026.*--variant zero.*--to modelscope"):
        send(folder)
    assert hub.put == []


def test_a_space_that_is_there_is_gone_on_with_though_a_new_one_would_cost(hub: Hub, folder: Path) -> None:
    send(folder)
    hub.refuse("POST /api/repos/create", 402, "requires PRO")
    assert send(folder) == f"{hub.url}/spaces/ada/assistant"


def test_a_space_of_another_sdk_is_not_overwritten(hub: Hub, folder: Path) -> None:
    send(folder)
    with pytest.raises(ValueError, match="is a gradio Space already and this bundle is docker"):
        send(folder, sdk="docker")


def test_a_space_on_other_hardware_gets_what_the_variant_asks_for(hub: Hub, folder: Path) -> None:
    send(folder)
    assert hub.repos["spaces/ada/assistant"].hardware is None
    send(folder, variant="zero")
    assert hub.repos["spaces/ada/assistant"].hardware == "zero-a10g"


def test_a_token_without_the_right_to_that_owner_says_which_right(hub: Hub, folder: Path) -> None:
    hub.refuse("POST /api/repos/create", 403, "You don't have the rights to create under this namespace")
    with pytest.raises(RuntimeError, match=r"may not write to other/assistant \(403: .*\).*fine-grained"):
        send(folder, repo="other/assistant")


@pytest.mark.parametrize(
    "request_start", ["GET /api/whoami", "POST /api/repos/create", "POST /api/spaces/ada/assistant/commit"]
)
def test_a_busy_hub_is_waited_for_as_its_header_says(hub: Hub, folder: Path, request_start: str) -> None:
    limits = {"RateLimit": '"api";r=0;t=1', "RateLimit-Policy": '"fixed window";"api";q=1000;w=300'}
    hub.refuse(request_start, 429, "slow down", **limits)
    said: list[str] = []
    start = time.monotonic()
    send(folder, said=said)
    assert time.monotonic() - start >= 2  # what it asks for, and one for its rounding
    assert "the host asks to wait 2 s (429); then it goes on" in said
    assert sorted(hub.put) == sorted([digest(WEIGHTS), digest(OTHER)]), "nothing is sent twice"


def test_a_wait_beyond_reason_is_said_and_not_slept(hub: Hub, folder: Path) -> None:
    hub.refuse("POST /api/repos/create", 429, "slow down", **{"Retry-After": "4000"})
    with pytest.raises(RuntimeError, match="rate limit is used up .*run the same command again"):
        send(folder)


def test_a_readme_that_the_hub_refuses_is_named_with_its_fault(hub: Hub, folder: Path) -> None:
    (folder / "README.md").write_text("---\nlicense: nonsense\n---\n")
    with pytest.raises(ValueError, match='README.md.*"license" must be one of') as caught:
        send(folder)
    assert "\n" not in str(caught.value)


def test_a_large_file_refused_in_the_middle_is_one_sentence(hub: Hub, folder: Path) -> None:
    hub.refuse("POST /spaces/ada/assistant.git/info/lfs", 413, "storage is full")
    with pytest.raises(RuntimeError, match="answered 413 for ada/assistant: .*storage is full"):
        send(folder)


def test_an_unreachable_hub_says_that_the_next_run_resumes(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", NOWHERE)
    with pytest.raises(RuntimeError, match=f"{NOWHERE}: the connection failed .*not sent again"):
        send(folder)


@pytest.mark.parametrize(
    "repo", ["a/b/c", "", "ada/", "ada/my assistant", "阿达", "-ada", "ada..b", "https://x"]
)
def test_a_repository_name_that_no_host_takes_is_refused(folder: Path, repo: str) -> None:
    with pytest.raises(ValueError, match="must be NAME or OWNER/NAME"):
        send(folder, repo=repo)


def test_wrong_hosts_folders_and_sdks_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="did you mean huggingface"):
        upload("hugingface", "a/b", folder, "model", say=print)
    with pytest.raises(ValueError, match="is no folder with files"):
        upload("huggingface", "a/b", tmp_path / "none", "model", say=print)
    with pytest.raises(ValueError, match="no Space of sdk 'streamlit'"):
        send(folder, sdk="streamlit")


def test_a_token_is_taken_from_the_environment_then_from_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_TOKEN", " from-environment ")
    assert find_token("A_TOKEN", lambda: "stored", "help") == "from-environment"
    monkeypatch.delenv("A_TOKEN")
    assert find_token("A_TOKEN", lambda: "stored", "help") == "stored"


def test_a_token_typed_on_a_terminal_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal of its own: the prompt comes, the token is typed, and only its length shows."""
    code = "from assistant.hosts.credentials import find_token; print(len(find_token('NO', str, 'go there')))"
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    child, terminal = pty.fork()
    if child == 0:
        os.execv(sys.executable, [sys.executable, "-c", code])
    shown = b""
    while b"not shown" not in shown:
        shown += os.read(terminal, 1000)
    os.write(terminal, b"typed-secret\n")
    while b"12" not in shown:
        shown += os.read(terminal, 1000)
    assert os.waitpid(child, 0)[1] == 0
    assert b"go there" in shown and b"typed-secret" not in shown


def test_no_secret_is_left_in_a_scrubbed_line() -> None:
    line = scrub("https://me:abcd@host\n said abc and abcd", "abc", "abcd", "")
    assert line == "https://me:***@host said *** and ***"
