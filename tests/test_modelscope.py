"""Uploads to ModelScope through its real client against a stand-in on loopback. No network."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_stand_in import Hub, hub_stand_in
from modelscope_stand_in import ModelScopeHandler

from assistant.hosts import upload
from assistant.settings import REPOSITORY

WEIGHTS = b"\0weights" * 20_000  # its client sends what is above 64 KiB as a large file
OTHER = b"\0other" * 20_000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "bundle"
    (made / "model").mkdir(parents=True)
    (made / "README.md").write_text("---\ndomain: nlp\n---\n# Ada\n")
    (made / "app.py").write_text("print('Ada')\n")
    (made / "model" / "a.gguf").write_bytes(WEIGHTS)
    (made / "model" / "b.gguf").write_bytes(OTHER)
    deploy = {"sdk_type": "gradio", "resource_configuration": "platform/2v-cpu-16g-mem"}
    (made / "ms_deploy.json").write_text(json.dumps(deploy))
    return made


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    monkeypatch.setenv("MODELSCOPE_HOME", str(tmp_path / "no-store"))
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", "ms-writer")
    with hub_stand_in(ModelScopeHandler) as standing_in:
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", standing_in.url)
        yield standing_in


def send(
    folder: Path, repo: str = "ada/assistant", said: list[str] | None = None, sdk: str = "gradio"
) -> str:
    return upload("modelscope", repo, folder, "app", sdk=sdk, say=(said if said is not None else []).append)


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_a_studio_is_made_filled_and_started(
    hub: Hub, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    said: list[str] = []
    assert send(folder, said=said) == f"{hub.url}/studios/ada/assistant"
    studio = hub.repos["studios/ada/assistant"]
    assert (studio.sdk, studio.hardware, studio.private) == ("gradio", "platform/2v-cpu-16g-mem", False)
    sent = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert studio.content == sent
    assert sorted(hub.put) == sorted([digest(WEIGHTS), digest(OTHER)])
    assert hub.asked[-1] == "POST /openapi/v1/studios/ada/assistant/deploy"
    out, error = capfd.readouterr()
    assert out == "" and "ms-writer" not in error + " ".join(said)


def test_a_model_under_its_bare_name_goes_to_the_tokens_own_account(hub: Hub, folder: Path) -> None:
    (folder / "settings.toml").write_text('owner = "Grace"\n')
    link = upload("modelscope", "assistant", folder, "model", private=True, say=print)
    assert link == f"{hub.url}/models/ada/assistant"
    assert hub.repos["models/ada/assistant"].private
    assert "settings.toml" not in hub.repos["models/ada/assistant"].content
    assert not any(request.endswith("/deploy") for request in hub.asked)


@pytest.mark.parametrize("what", ["app", "model"])
def test_a_second_upload_sends_only_the_large_files_that_changed(hub: Hub, folder: Path, what: str) -> None:
    upload("modelscope", "ada/assistant", folder, what, sdk="gradio", say=print)  # type: ignore[arg-type]
    hub.put.clear()
    (folder / "model" / "b.gguf").write_bytes(OTHER + b"!")
    upload("modelscope", "ada/assistant", folder, what, sdk="gradio", say=print)  # type: ignore[arg-type]
    assert hub.put == [digest(OTHER + b"!")]


def test_an_upload_cut_in_the_middle_resumes_without_sending_again(hub: Hub, folder: Path) -> None:
    hub.stalls_at = digest(OTHER)
    lines = "from pathlib import Path\nfrom assistant.hosts import upload\n"
    call = f"upload('modelscope', 'ada/assistant', Path({str(folder)!r}), 'app', sdk='gradio', say=print)"
    client = subprocess.Popen(
        [sys.executable, "-c", lines + call], env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        stderr=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert hub.stalled.wait(60)
    deadline = time.monotonic() + 20
    while hub.put != [digest(WEIGHTS)]:
        assert time.monotonic() < deadline, hub.put
        time.sleep(0.01)
    client.send_signal(signal.SIGKILL)
    client.communicate()
    assert hub.repos["studios/ada/assistant"].content == {}
    hub.stalls_at = ""
    send(folder)
    assert hub.put == [digest(WEIGHTS), digest(OTHER)]
    assert hub.repos["studios/ada/assistant"].content["model/b.gguf"] == OTHER


def test_a_studio_made_anew_gets_every_file_again(hub: Hub, folder: Path) -> None:
    send(folder)
    del hub.repos["studios/ada/assistant"]
    send(folder)
    assert "app.py" in hub.repos["studios/ada/assistant"].content


def test_a_studio_of_another_sdk_is_not_overwritten(hub: Hub, folder: Path) -> None:
    send(folder)
    with pytest.raises(ValueError, match="is a gradio studio already and this bundle is streamlit"):
        send(folder, sdk="streamlit")


def test_a_token_that_is_not_accepted_says_where_to_get_one(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", "ms-wrong")
    with pytest.raises(RuntimeError, match=r"does not accept the token \(401\).*my/access/token") as caught:
        send(folder)
    assert "ms-wrong" not in str(caught.value) and "\n" not in str(caught.value)


def test_no_token_anywhere_is_one_sentence(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MODELSCOPE_API_TOKEN")
    with pytest.raises(RuntimeError, match="no token: set MODELSCOPE_API_TOKEN. .*modelscope login"):
        send(folder)


def test_the_hosts_own_store_is_read(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from modelscope_hub.config import HubConfig

    monkeypatch.delenv("MODELSCOPE_API_TOKEN")
    HubConfig().save_token("ms-writer")
    assert send(folder).endswith("/studios/ada/assistant")


@pytest.mark.parametrize(
    ("status", "body", "sentence"),
    [
        (403, {"code": "OperationNotAllowed"}, r"may not write to ada/assistant \(403\)"),
        (403, {"code": "QuotaLimitExceed", "message": "5 studios"}, "quota .* is used up: .*5 studios"),
        (402, {"code": "PaymentRequired", "message": "balance"}, "answered 402 for ada/assistant: .*balance"),
        (400, {"code": "InputParameterError", "message": "bad base_image"}, "answered 400 .*bad base_image"),
    ],
)
def test_a_refusal_is_one_sentence(hub: Hub, folder: Path, status: int, body: dict, sentence: str) -> None:  # type: ignore[type-arg]
    hub.refusals["POST /openapi/v1/studios"] = [(status, body, {})]
    with pytest.raises(RuntimeError, match=sentence) as caught:
        send(folder)
    assert "\n" not in str(caught.value) and hub.put == []


@pytest.mark.parametrize(
    "request_start", ["POST /openapi/v1/studios", "POST /api/v1/repos/studios/ada/assistant/commit"]
)
def test_a_busy_host_is_waited_for_as_its_header_says(hub: Hub, folder: Path, request_start: str) -> None:
    hub.refuse(request_start, 429, "slow down", **{"Retry-After": "1"})
    start = time.monotonic()
    send(folder)
    assert time.monotonic() - start >= 1
    assert sorted(hub.put) == sorted([digest(WEIGHTS), digest(OTHER)]), "nothing is sent twice"


def test_what_an_earlier_upload_left_is_named_and_kept(hub: Hub, folder: Path) -> None:
    send(folder)
    (folder / "model" / "b.gguf").unlink()
    said: list[str] = []
    send(folder, said=said)
    assert "left there from before, not among what was sent: model/b.gguf" in said


def test_an_unreachable_host_is_one_sentence(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from modelscope_hub import _openapi

    monkeypatch.setattr(_openapi.time, "sleep", lambda seconds: None)
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(RuntimeError, match="http://127.0.0.1:9: the upload broke off .*not sent again"):
        send(folder)


def test_an_unknown_sdk_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="no studio of sdk 'static-html'"):
        send(folder, sdk="static-html")
