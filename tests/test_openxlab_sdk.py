"""A model's repository made by the real `openxlab` package, in the environment that our code makes for it.

The package comes from PyPI, once: pytest's cache keeps it. OpenXLab's API is a stand-in.
"""

import threading
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from openxlab_stand_in import AK, MODELS, OPEN, SK, TOKEN, openxlab_stand_in
from serving import listening
from test_openxlab_push import every_command_line, files_in, model, pytestmark, remote  # noqa: F401

from assistant.hosts import openxlab_sdk, upload


@pytest.fixture(scope="module")
def cache(pytestconfig: pytest.Config) -> Path:
    place = pytestconfig.cache.mkdir("openxlab")  # type: ignore[union-attr]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(place))
        try:
            openxlab_sdk.own_environment(print)
        except RuntimeError as error:
            if "No matching distribution" not in str(error):
                raise
            pytest.skip(f"PyPI cannot be reached, from where this test takes {openxlab_sdk.PACKAGE}: {error}")
    return place


@pytest.fixture(autouse=True)
def keys(remote: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    for name, value in {
        "XDG_CACHE_HOME": str(cache),
        "HOME": str(tmp_path),
        "OPENXLAB_AK": AK,
        "OPENXLAB_SK": SK,
    }.items():
        monkeypatch.setenv(name, value)


def send(folder: Path, api: str, monkeypatch: pytest.MonkeyPatch, private: bool = False) -> list[str]:
    """What was said; the push itself goes to the bare repository."""
    said: list[str] = []
    monkeypatch.setenv("OPENXLAB_API", api)
    upload("openxlab", "assistant", folder, "model", private=private, say=said.append)
    return said


def why_not(said: list[str]) -> str:
    line = next(line for line in said if "it was not made" in line)
    return line.removeprefix("ada/assistant on OpenXLab: it was not made (").removesuffix("), going on")


@pytest.mark.parametrize("private", [False, True])
def test_with_its_keys_the_repository_of_a_model_is_made(
    remote: Path, model: Path, private: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path  # noqa: F811
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    with openxlab_stand_in(look=every_command_line) as api:
        said = send(model, api.url, monkeypatch, private)
    assert "ada/assistant on OpenXLab: it was made" in said
    assert [path for path, _ in api.heard] == [
        f"{OPEN}/auth",
        f"{OPEN}/getJwt",
        f"{MODELS}/createModelRepository",
    ]
    made = api.heard[-1][1]
    assert (made["name"], made["license"], made["publicStatus"]) == (
        "assistant",
        "apache-2.0",
        int(not private),
    )
    (entry,) = made["models"]
    assert (entry["name"], entry["weightName"]) == ("model", "model.safetensors")
    assert "openxlab_register.py" in api.seen
    assert not [secret for secret in (AK, SK, TOKEN) if secret in api.seen + " ".join(said)]
    assert not (tmp_path / ".openxlab").exists(), "the token that it keeps goes with its own home"
    assert "model.safetensors" in files_in(remote)


def test_nobody_else_is_told_of_it(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """Its own `model create` reports to its maker. What leaves for another machine would meet this proxy."""
    met: list[str] = []

    class Proxy(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

        def do_CONNECT(self) -> None:
            met.append(self.path)
            self.send_error(502)

    with listening(Proxy) as proxy, openxlab_stand_in() as api:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
            monkeypatch.setenv(name, proxy)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        assert "ada/assistant on OpenXLab: it was made" in send(model, api.url, monkeypatch)
    assert not met


@pytest.mark.parametrize(
    ("faults", "why"),
    [
        ({"refusal": f"name taken ({SK})"}, "Create repository error:name taken (***), traceId:t"),
        ({"status": 502}, "http://HOST refuses: 502 Server Error"),
        ({"form": {"code": 1}}, "http://HOST answered in a form that its SDK does not know: "),
    ],
)
def test_a_repository_that_cannot_be_made_is_gone_on_with_and_no_key_is_repeated(
    remote: Path,  # noqa: F811
    model: Path,  # noqa: F811
    faults: dict[str, object],
    why: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    with openxlab_stand_in(**faults) as api:
        said = send(model, api.url, monkeypatch)
    assert why_not(said).startswith(why.replace("http://HOST", api.url))
    told = " ".join([*said, *capfd.readouterr()])
    assert AK not in told and SK not in told
    assert "model.safetensors" in files_in(remote)


def test_a_wrong_key_is_said_with_the_place_where_a_right_one_is_made(
    model: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The package itself goes on without a login, and the refusal of the next call hides the reason."""
    monkeypatch.setenv("OPENXLAB_SK", "not-the-secret-key")
    with openxlab_stand_in() as api:
        reason = why_not(send(model, api.url, monkeypatch))
    assert reason == (
        "it does not accept OPENXLAB_AK and OPENXLAB_SK (signature is wrong); make a pair at "
        "https://sso.openxlab.org.cn/usercenter?tab=secret"
    )
    assert [path for path, _ in api.heard] == [f"{OPEN}/auth", f"{OPEN}/getJwt"]


def test_a_host_that_is_gone_is_said_and_one_that_never_answers_is_not_waited_for(
    remote: Path,  # noqa: F811
    model: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with openxlab_stand_in() as api:
        gone = api.url
    assert why_not(send(model, gone, monkeypatch)).startswith(f"{gone} cannot be reached: ")
    monkeypatch.setattr(openxlab_sdk, "LONGEST_S", 3.0)
    over = threading.Event()
    with openxlab_stand_in(stall=lambda: over.wait(30)) as api:
        assert why_not(send(model, api.url, monkeypatch)) == "no answer within 3 seconds"
        over.set()
    assert "model.safetensors" in files_in(remote)


def test_the_package_sees_no_login_of_another_host(
    model: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Read from the process while the stand-in is asked."""
    for name in ("HF_TOKEN", "MODELSCOPE_API_TOKEN", "OPENXLAB_TOKEN"):
        monkeypatch.setenv(name, "of-another-host")
    with openxlab_stand_in(look=environment_of_the_package) as api:
        assert "ada/assistant on OpenXLab: it was made" in send(model, api.url, monkeypatch)
    assert f"OPENXLAB_AK={AK}" in api.seen and "of-another-host" not in api.seen


def environment_of_the_package() -> str:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if b"openxlab_register.py" in path.read_bytes():
                return path.with_name("environ").read_bytes().replace(b"\0", b"\n").decode()
        except OSError:
            continue
    return "the package's process was not found"
