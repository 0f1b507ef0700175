import base64
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some
from safetensors.torch import load_file, save_file
from serving import api_of, client_of, serving
from stand_in import ANSWER, StandIn, stand_in
from test_export import TYPED, make_byte_level, make_sentencepiece

from assistant.backends import Sampling
from assistant.conversations import Message, assistant, system, user
from assistant.loading import encode_chat, load_tokenizer
from assistant.web import api
from assistant.web.asking import Asked, Refused, read_request
from assistant.web.engine import Engine
from assistant.web.following import until_stop
from assistant.web.guard import Access, access_from, is_allowed, notes
from assistant.web.line import Line

WHOLE = "".join(ANSWER)
HELLO: list[dict] = [{"role": "user", "content": "hello"}]


def is_over(condition, seconds: float = 5) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return bool(condition())


def is_idle() -> bool:
    return is_over(lambda: not any(t.name in ("answer", "follow") for t in threading.enumerate()), 3)


def ready(model: Path | str, line: Line | None = None) -> Engine:
    engine = Engine(str(model), line)
    assert is_over(lambda: engine.status != "loading", 60)
    return engine


@pytest.fixture(scope="module")
def engine(tmp_path_factory) -> Engine:
    """A tiny random model: it never ends an answer before it must."""
    folder = make_byte_level(tmp_path_factory.mktemp("x") / "ada" / "model")
    weights = load_file(folder / "model.safetensors")
    for token in load_tokenizer(folder).all_special_ids:
        weights["lm_head.weight"][token] = 0  # among hundreds of random logits 0 is never the largest
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return ready(folder)


def post(url: str, body: bytes, **headers: str) -> tuple[int, dict]:
    sent = {"Content-Type": "application/json"} | {k.replace("_", "-"): v for k, v in headers.items()}
    request = urllib.request.Request(url + "/v1/chat/completions", body, sent)
    try:
        with urllib.request.urlopen(request, timeout=30) as reply:
            return reply.status, json.loads(reply.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def get(url: str, **headers: str) -> tuple[int, dict]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30) as reply:
            return reply.status, json.loads(reply.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read() or b"{}")


# ---- the real client, a real model


def test_a_client_gets_what_the_backend_says_and_what_it_cost(client, engine: Engine):
    talk: list[Message] = [system("be kind"), user("hello"), assistant("hi"), user("and you?")]
    reply = client.chat.completions.create(model="ada", messages=talk, max_tokens=20)
    assert engine.backend
    said = "".join(engine.backend.stream(talk, Sampling(20)))
    assert reply.choices[0].message.content == said and reply.choices[0].message.role == "assistant"
    assert reply.choices[0].finish_reason == "length" and reply.model == "ada"
    assert reply.usage.prompt_tokens == engine.backend.count_prompt(talk)
    assert reply.usage.completion_tokens == 20 and reply.usage.total_tokens == reply.usage.prompt_tokens + 20


def test_a_streamed_answer_is_the_whole_one_in_pieces(client):
    asked = {"model": "ada", "messages": HELLO, "temperature": 0.8, "top_p": 0.9, "seed": 5, "max_tokens": 25}
    whole = client.chat.completions.create(**asked)
    options = {"include_usage": True}
    first, *middle, last = client.chat.completions.create(**asked, stream=True, stream_options=options)
    assert first.choices[0].delta.role == "assistant"
    assert len({chunk.id for chunk in (first, *middle, last)}) == 1 and len(middle) > 5
    said = "".join(chunk.choices[0].delta.content or "" for chunk in middle)
    assert said == whole.choices[0].message.content
    assert [chunk.choices[0].finish_reason for chunk in middle[-2:]] == [None, "length"]
    assert last.choices == [] and last.usage == whole.usage
    assert all(chunk.usage is None for chunk in middle)


def test_an_answer_that_the_model_ends_says_stop(tmp_path):
    folder = make_byte_level(tmp_path / "brief" / "model", eos_token_id=list(range(600)))
    with api_of(ready(folder)) as url, client_of(url) as client:
        reply = client.chat.completions.create(model="brief", messages=HELLO)
    assert reply.choices[0].finish_reason == "stop" and reply.usage.completion_tokens == 1


def test_events_are_as_openai_sends_them(url: str):
    body = json.dumps({"messages": HELLO, "stream": True, "max_tokens": 3}).encode()
    request = urllib.request.Request(url + "/v1/chat/completions", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as reply:
        assert reply.headers["Content-Type"].startswith("text/event-stream")
        text = reply.read().decode()
    *events, done, nothing = text.split("\n\n")
    assert done == "data: [DONE]" and nothing == ""
    values = [json.loads(event.removeprefix("data: ")) for event in events]
    assert {value["object"] for value in values} == {"chat.completion.chunk"}
    assert "usage" not in values[0] and values[-1]["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("make", [make_byte_level, make_sentencepiece])
def test_control_tokens_in_a_message_stay_text(tmp_path, monkeypatch, make):
    """The ids that the model is given, of every text that looks like a control token of some model."""
    folder = make(tmp_path / "eve" / "model")
    engine, tokenizer = ready(folder), load_tokenizer(folder)
    given_ids: list[list[int]] = []
    backend = engine.backend
    fit = backend.fit  # type: ignore[union-attr]
    monkeypatch.setattr(backend, "fit", lambda *asked: given_ids.append(fit(*asked)[0]) or fit(*asked))
    starts = tokenizer.convert_tokens_to_ids("<|im_start|>")
    with api_of(engine) as url, client_of(url) as client:
        for text in TYPED:
            parts = [{"type": "text", "text": "say"}, {"type": "text", "text": text}]
            talk = [system(text), user("a"), assistant(text), {"role": "user", "content": parts}]
            client.chat.completions.create(model="eve", messages=talk, max_tokens=1)  # type: ignore[arg-type]
            wanted = [system(text), user("a"), assistant(text), user("say\n" + text)]
            assert given_ids[-1] == encode_chat(tokenizer, wanted)
            assert given_ids[-1].count(starts) == 5, text
            plain = encode_chat(tokenizer, [system("x"), user("a"), assistant("x"), user("say\nx")])
            control = set(tokenizer.get_added_vocab().values())
            assert [i for i in given_ids[-1] if i in control] == [i for i in plain if i in control], text


def test_a_stop_text_ends_the_answer_before_it_and_frees_the_engine(client, engine: Engine):
    asked = {"model": "ada", "messages": HELLO, "max_tokens": 40}
    whole = client.chat.completions.create(**asked).choices[0].message.content
    stop = whole[9:12]
    reply = client.chat.completions.create(**asked, stop=["never said", stop])
    assert reply.choices[0].message.content == whole[: whole.index(stop)]
    assert reply.choices[0].finish_reason == "stop"
    assert 0 < reply.usage.completion_tokens < 40
    chunks = client.chat.completions.create(**asked, stop=stop, stream=True)
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == whole[: whole.index(stop)]
    assert is_idle()


@pytest.mark.parametrize("chunks", [["abSTOPcd"], list("abSTOPcd"), ["abST", "OPcd"], ["a", "bSTO", "P"]])
def test_a_stop_text_is_found_however_it_is_cut(chunks):
    import asyncio

    async def told():
        for chunk in chunks:
            yield chunk

    async def hear(stops):
        return "".join([chunk async for chunk in until_stop(told(), stops)])

    assert asyncio.run(hear(("STOP",))) == asyncio.run(hear(("STOPx", "STO"))) == "ab"
    assert asyncio.run(hear(("STOPx", "no"))) == "".join(chunks)


@pytest.mark.parametrize("is_streamed", [True, False])
def test_a_client_that_goes_while_it_waits_leaves_the_line(client, url: str, engine: Engine, is_streamed):
    body = json.dumps({"messages": HELLO, "max_tokens": 5, "stream": is_streamed}).encode()
    sent = urllib.request.Request(url + "/v1/chat/completions", body, {"Content-Type": "application/json"})
    with engine.backend._turns.take():  # type: ignore[union-attr]
        if is_streamed:
            with urllib.request.urlopen(sent, timeout=5) as reply:
                assert b'"role"' in reply.readline() and reply.readline() == b"\n"
                assert reply.readline() == b": waiting 1\n"
                assert engine.line._inside == 1
        else:
            with pytest.raises(TimeoutError):
                urllib.request.urlopen(sent, timeout=0.3)
        assert is_over(lambda: engine.line._inside == 0, 1) and is_idle()
    assert client.chat.completions.create(model="ada", messages=HELLO, max_tokens=1).usage


def test_models_are_listed(client, url: str):
    [model] = client.models.list().data
    assert model.id == "ada" and client.models.retrieve("ada").id == "ada"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("bob")
    assert get(url + "/health") == (200, {"status": "ready", "model": "ada"})


def test_what_is_refused_is_refused_in_openai_s_shape(client, url: str):
    def error_of(**changes) -> openai.APIStatusError:
        with pytest.raises(openai.APIStatusError) as raised:
            client.chat.completions.create(**({"model": "ada", "messages": HELLO} | changes))
        body = raised.value.body
        assert isinstance(body, dict) and set(body) == {"message", "type", "param", "code"}
        assert "\n" not in body["message"] and body["type"] == "invalid_request_error"
        return raised.value

    assert error_of(model="adam").code == "model_not_found"
    assert error_of(messages=[user("long " * 600)]).code == "context_length_exceeded"
    image = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]
    refused = error_of(messages=[{"role": "user", "content": image}])
    assert refused.status_code == 400 and "text alone" in refused.message
    for changes, param in [
        ({"n": 2}, "n"),
        ({"temperature": 2.5}, "temperature"),
        ({"top_p": -1}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": "9"}, "max_completion_tokens"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop": ""}, "stop"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"messages": []}, "messages"),
        ({"messages": [assistant("a")]}, "messages"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages[0]"),
        ({"messages": [user("a"), {"role": "user", "content": 3}]}, "messages[1].content"),
    ]:
        assert error_of(**changes).param == param, changes
    assert post(url, b"x" * 1_000_001)[0] == 413
    assert post(url, b"{}", Content_Type="text/plain")[0] == 415
    assert get(url + "/v1/chat/completions")[0] == 405
    assert get(url + "/v1/embeddings")[1]["error"]["code"] == "unknown_url"


def test_what_changes_nothing_is_not_refused(client):
    reply = client.chat.completions.create(
        model="ada",
        messages=[{"role": "developer", "content": "x"}, *HELLO],
        max_completion_tokens=1,
        max_tokens=30,
        n=1,
        presence_penalty=0,
        tools=[],
        user="me",
        metadata={"a": "b"},
        extra_body={"top_k": 4, "repetition_penalty": 1.0},
    )
    assert reply.usage.completion_tokens == 1


def test_turns_of_one_role_are_joined_and_the_system_comes_first():
    def read(*messages: Message) -> Asked:
        return read_request(json.dumps({"messages": messages}).encode())

    talk = read(user("a"), user("b"), system("s"), assistant("c"), user("d"), system("t"))
    assert talk.messages == [system("s\n\nt"), user("a\n\nb"), assistant("c"), user("d")]
    assert talk.sampling == Sampling(2048) and talk.model is None


def test_numbers_that_would_overflow_are_none():
    def read(**changes) -> Asked:
        return read_request(json.dumps({"messages": HELLO} | changes).encode())

    assert read(temperature=1e-9).sampling.temperature == 0 and read(top_p=0).sampling.top_p > 0
    assert read(max_tokens=10**300, seed=-1).sampling == Sampling(2048, seed=2**32 - 1)
    with pytest.raises(Refused, match="not JSON"):
        read_request(b'{"messages": [], "temperature": NaN}')
    with pytest.raises(Refused, match="temperature"):
        read_request(json.dumps({"messages": HELLO}).encode()[:-1] + b', "temperature": 1e999}')


# ---- whatever is sent

JSON = some.recursive(
    some.none() | some.booleans() | some.integers() | some.floats() | some.text(max_size=20),
    lambda inner: some.lists(inner, max_size=4) | some.dictionaries(some.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
KEYS = ["model", "n", "temperature", "top_p", "stream", "stream_options", "stop", "seed", "tools"]
MESSAGE = some.fixed_dictionaries(
    {}, optional={"role": some.sampled_from(["user", "system", "assistant", "tool"]) | JSON, "content": JSON}
)
BODY = some.fixed_dictionaries(
    {"messages": some.lists(MESSAGE | JSON, max_size=4) | JSON},
    optional={key: JSON for key in KEYS} | {"max_tokens": some.just(1) | JSON},
)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    BODY.map(lambda body: json.dumps(body).encode())
    | some.binary(max_size=60)
    | JSON.map(repr).map(str.encode)
)
def test_a_malformed_request_gets_one_sentence(url: str, body: bytes):
    sent = urllib.request.Request(url + "/v1/chat/completions", body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(sent, timeout=30) as reply:
            assert reply.status == 200
            reply.read(200)
    except urllib.error.HTTPError as error:
        told = json.loads(error.read())["error"]
        assert 400 <= error.code < 500 and "Traceback" not in told["message"], told
        assert told["message"] and "\n" not in told["message"] and len(told["message"]) < 400


@pytest.mark.parametrize(
    "content", ["\\ud800", "\\u0000", "\\ue0000\\ue001", "[" * 100_000, "1" * 5000, "\ufffd{{ 7*7 }}"]
)
def test_odd_texts_are_read_or_refused_but_break_nothing(url: str, content: str):
    for body in (f'{{"max_tokens": 1, "messages": [{{"role": "user", "content": "{content}"}}]}}', content):
        status, reply = post(url, body.encode())
        assert status == 200 or (status == 400 and "\n" not in reply["error"]["message"])


# ---- who may ask, and how much


def test_the_key_and_the_login_open_the_api_and_nothing_else_does(engine: Engine):
    def basic(login: str) -> str:
        return "Basic " + base64.b64encode(login.encode()).decode()

    access = Access(login="ada:höhle", api_key="secret")
    with api_of(engine, access) as url:
        assert client_of(url, "secret").models.list().data
        assert get(url + "/v1/models", Authorization=basic("ada:höhle"))[0] == 200
        with pytest.raises(openai.AuthenticationError, match="missing or wrong"):
            client_of(url, "wrong").models.list()
        for header in ("", "Bearer", "Bearer ", basic("ada:x"), basic(""), "Basic ?", "secret", "Bearer é"):
            assert get(url + "/v1/models", Authorization=header)[0] == 401, header
        assert get(url + "/health")[0] == 200
    assert "secret" not in repr(access)
    assert is_allowed("", Access()) and not is_allowed("Bearer ", Access(login="a:b"))


def test_a_client_that_asks_too_often_hears_when_to_come_back(engine: Engine):
    line, engine.line = engine.line, Line(per_minute=1)
    engine.line._note = lambda client: Line._note(engine.line, "192.0.2.1")  # type: ignore[method-assign]
    try:
        with api_of(engine) as url, client_of(url) as client:
            ask = {"model": "ada", "messages": HELLO, "max_tokens": 1}
            client.chat.completions.create(**ask)
            for is_streamed in (True, False):
                with pytest.raises(openai.RateLimitError) as raised:
                    client.chat.completions.create(**ask, stream=is_streamed)
                assert 50 < int(raised.value.response.headers["Retry-After"]) <= 61
    finally:
        engine.line = line


def test_a_model_that_is_loading_or_broken_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(api, "LOADING_WAIT_S", 0.2)
    broken = Engine(str(tmp_path / "gone"))
    assert is_over(lambda: broken.status == "error")
    with api_of(broken) as url:
        assert get(url + "/health")[1]["status"] == "error"
        with pytest.raises(openai.InternalServerError, match="not a folder") as raised:
            client_of(url).chat.completions.create(model="gone", messages=HELLO)
        assert raised.value.status_code == 503
        broken.error = ""
        assert get(url + "/health")[1]["status"] == "loading"
        with pytest.raises(openai.InternalServerError, match="loading") as raised:
            client_of(url).chat.completions.create(model="gone", messages=HELLO)
        assert raised.value.status_code == 503 and raised.value.response.headers["Retry-After"] == "3"


def test_settings_of_the_environment_are_checked():
    named = access_from({"ASSISTANT_LOGIN": "a:b:c", "ASSISTANT_API_KEY": " k ", "ASSISTANT_PER_MINUTE": "0"})
    assert named == Access("a:b:c", "k", 0)
    for wrong in ({"ASSISTANT_LOGIN": "ada"}, {"ASSISTANT_LOGIN": ":x"}, {"ASSISTANT_PER_MINUTE": "-1"}):
        with pytest.raises(ValueError, match="must be"):
            access_from(wrong)
    assert notes(Access(), "127.0.0.1") == [] and "whoever reaches" in notes(Access(), "0.0.0.0")[0]
    assert "HTTP Basic" in notes(Access(login="a:b"), "0.0.0.0")[0]


# ---- on both pages


@pytest.fixture(scope="module")
def behind() -> Iterator[StandIn]:
    with stand_in() as standing:
        yield standing


@pytest.fixture(scope="module", params=["gradio", "streamlit"])
def page(request, behind: StandIn, tmp_path_factory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp(request.param)
    with serving(request.param, folder, ASSISTANT_MODEL=behind.url + "#ada") as url:
        # nobody opens the page, so the model waits FIRST_VISIT_S before it loads
        assert is_over(lambda: get(url + "/health")[1]["status"] == "ready", 30)
        yield url
        assert "Traceback" not in (folder / f"{request.param}.log").read_text(encoding="utf-8")


def test_either_page_speaks_the_api(page: str, behind: StandIn):
    with client_of(page) as client:
        assert [model.id for model in client.models.list().data] == ["ada"]
        reply = client.chat.completions.create(model="ada", messages=HELLO)
        assert reply.choices[0].message.content == WHOLE
        assert reply.usage.prompt_tokens == 9 and reply.usage.completion_tokens == len(ANSWER)
        behind.go_on.clear()  # the rest waits until the first piece has been read
        pieces = []
        for chunk in client.chat.completions.create(model="ada", messages=[user("held")], stream=True):
            if piece := chunk.choices[0].delta.content:
                pieces.append(piece)
                behind.go_on.set()
        assert pieces == ANSWER and not behind.held_too_long, "the pieces came at once"
        assert behind.heard == ["held"]
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model="bob", messages=HELLO)


@pytest.mark.parametrize("is_streamed", [True, False])
def test_a_client_that_goes_stops_the_engine_behind_either_page(
    page: str, behind: StandIn, is_streamed: bool
):
    behind.closed.clear()
    with client_of(page) as client:
        asked = {"model": "ada", "messages": [user("endless")], "stream": is_streamed}
        if is_streamed:
            chunks = client.chat.completions.create(**asked)
            next(chunk for chunk in chunks if "word5" in (chunk.choices[0].delta.content or ""))
            chunks.close()
        else:
            with pytest.raises(openai.APITimeoutError):
                client.chat.completions.create(**asked, timeout=0.3)
        assert behind.closed.wait(2)


def test_an_answer_that_breaks_off_is_an_error_event(page: str):
    heard = ""
    with client_of(page) as client, pytest.raises(openai.APIError, match="broke off"):
        for chunk in client.chat.completions.create(model="ada", messages=[user("break")], stream=True):
            heard += chunk.choices[0].delta.content or ""
    assert heard == "Half an ans"


def test_a_foreign_page_cannot_use_the_api(page: str):
    request = urllib.request.Request(page + "/v1/models", headers={"Host": "evil.example"})
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(request)
    asked = json.dumps({"messages": HELLO}).encode()
    assert post(page, asked, Content_Type="text/plain", Origin="http://evil.example")[0] == 415
    ask_first = urllib.request.Request(
        page + "/v1/chat/completions",
        headers={"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"},
        method="OPTIONS",
    )
    try:
        with urllib.request.urlopen(ask_first) as reply:
            allowed = reply.headers.get("Access-Control-Allow-Origin")
    except urllib.error.HTTPError as error:
        allowed = error.headers.get("Access-Control-Allow-Origin")
    assert allowed is None


def test_streamlit_asks_for_the_login(behind: StandIn, tmp_path):
    with serving(
        "streamlit", tmp_path, ASSISTANT_MODEL=behind.url + "#ada", ASSISTANT_LOGIN="ada:secret"
    ) as url:
        with pytest.raises(urllib.error.HTTPError) as raised:
            urllib.request.urlopen(url)
        assert raised.value.code == 401 and raised.value.headers["WWW-Authenticate"].startswith("Basic ")
        login = "Basic " + base64.b64encode(b"ada:secret").decode()
        with urllib.request.urlopen(urllib.request.Request(url, headers={"Authorization": login})) as reply:
            cookie = reply.headers["Set-Cookie"].partition(";")[0]
        with urllib.request.urlopen(urllib.request.Request(url, headers={"Cookie": cookie})) as reply:
            assert reply.status == 200 and b"<title>" in reply.read()
        for header in ({"Cookie": "assistant-login=x"}, {"Authorization": "Basic eDp5"}):
            with pytest.raises(urllib.error.HTTPError, match="401"):
                urllib.request.urlopen(urllib.request.Request(url, headers=header))
        assert get(url + "/v1/models")[0] == 401
        assert get(url + "/v1/models", Authorization=login)[0] == 200


@pytest.mark.parametrize("face", ["gradio", "streamlit"])
def test_a_wrong_setting_ends_the_start_with_a_sentence(face, tmp_path):
    wanted = "error: ASSISTANT_PER_MINUTE=many must be a whole number"
    with (
        pytest.raises(AssertionError, match=wanted) as raised,
        serving(face, tmp_path, ASSISTANT_PER_MINUTE="many", ASSISTANT_MODEL="http://127.0.0.1:9/v1"),
    ):
        pass
    assert "Traceback" not in str(raised.value)
