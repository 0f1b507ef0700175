"""Who comes in, as whom, and what no page tells of where a model lies."""

import pytest
from stand_in import stand_in
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient
from test_engine import Quick, is_over, opened

from assistant.backends import Sampling
from assistant.bundles.targets import find_target, variants
from assistant.conversations import user
from assistant.web import answer
from assistant.web.api import routes
from assistant.web.engine import Engine, for_visitors
from assistant.web.guard import Access, Guard, access_from, doors
from assistant.web.line import Busy, Line
from assistant.web.texts import load_texts

HOSTED = access_from({"FORWARDED_ALLOW_IPS": "10.0.0.0/8, 127.0.0.1"})
EN = load_texts()["en"]


def visitor_of(access: Access, peer: str = "127.0.0.1", login: str = "", path: str = "/{path:path}"):
    """A client at `peer` of a page that says who asked."""

    async def who(request) -> PlainTextResponse:
        return PlainTextResponse(request.client.host)

    app = Starlette(routes=[Route(path, who)], middleware=doors(access, only_local=False, login=login))
    return TestClient(app, client=(peer, 9))


# ---- the login


@pytest.mark.parametrize(
    "path", ["/healthy", "/health/../config", "/health.json", "/_stcore/health2", "/v1", "/"]
)
def test_a_login_is_asked_for_everywhere_but_at_the_api_and_at_is_it_up(path: str):
    visitor = visitor_of(Access(), login="ada:secret")
    assert visitor.get(path).status_code == 401
    assert visitor.get(path, auth=("ada", "secret")).status_code == 200


@pytest.mark.parametrize("path", ["/health", "/_stcore/health", "/v1/models"])
def test_these_ask_for_no_login_of_the_page(path: str):
    assert visitor_of(Access(), login="ada:secret").get(path).status_code == 200


def test_what_is_printed_of_the_settings_gives_nobody_entrance():
    access = access_from({"ASSISTANT_LOGIN": "ada:xylophone", "ASSISTANT_API_KEY": "zeppelin"})
    guard = Guard(lambda *_: None, login=access.login)  # type: ignore[arg-type, return-value]
    assert not any(word in f"{access} {guard}" for word in ("ada", "xylophone", "zeppelin", guard.token))


# ---- behind a proxy


@pytest.mark.parametrize(
    ("said", "client"),
    [
        ("198.51.100.7", "198.51.100.7"),
        ("192.0.2.66, 198.51.100.7", "198.51.100.7"),  # the first was made up by the visitor
        ("192.0.2.66, 198.51.100.7, 10.9.9.9", "198.51.100.7"),
        ("2001:db8::1", "2001:db8::1"),
    ],
)
def test_a_trusted_proxy_is_believed_whom_it_speaks_for_and_a_visitor_is_not(said: str, client: str):
    headers = {"X-Forwarded-For": said}
    assert visitor_of(HOSTED, "10.1.2.3").get("/", headers=headers).text == client
    assert visitor_of(HOSTED, "203.0.113.5").get("/", headers=headers).text == "203.0.113.5"
    assert visitor_of(Access(), "10.1.2.3").get("/", headers=headers).text == "10.1.2.3"


def test_each_visitor_behind_a_proxy_has_the_own_limit_and_a_proxy_that_says_nothing_has_none():
    line = Line(per_minute=1, proxies=HOSTED.proxies)
    for client in ("198.51.100.7", "198.51.100.8", "10.1.2.3", "10.1.2.3", "10.1.2.4"):
        with line.enter(client):
            pass
    with pytest.raises(Busy), line.enter("198.51.100.7"):
        pass
    with Line(per_minute=1).enter("10.1.2.3"):
        pass


def test_the_limit_counts_visitors_of_the_api_behind_a_proxy(monkeypatch):
    with opened(monkeypatch, Quick(), Line(per_minute=1, proxies=HOSTED.proxies)) as engine:
        app = Starlette(routes=routes(engine, HOSTED), middleware=doors(HOSTED, only_local=False))
        client = TestClient(app, client=("10.1.2.3", 9))

        def ask(visitor: str) -> int:
            asked = {"messages": [{"role": "user", "content": "hello"}]}
            return client.post(
                "/v1/chat/completions", json=asked, headers={"X-Forwarded-For": visitor}
            ).status_code

        assert [ask("198.51.100.7"), ask("198.51.100.8"), ask("198.51.100.7")] == [200, 200, 429]


def test_pages_at_a_host_count_visitors_and_not_the_hosts_proxy():
    names = [(host, name) for host in ("huggingface", "modelscope") for name in variants(host)]
    hosted = [find_target(host, name) for host, name in names]
    assert len(hosted) >= 5
    for target in hosted:
        access = access_from(target.environment or {})
        assert access.per_minute == 30 and "10.0.0.0/8" in access.proxies, target


# ---- what no visitor reads


@pytest.mark.parametrize(
    ("sentence", "shown"),
    [
        ("/home/ada/models/x is not a folder; give one", "x is not a folder; give one"),
        ("'/srv/a b/x.gguf' is damaged", "'a b/x.gguf' is damaged"),
        ("open ../../secret/x: ~/y/z.gguf", "open x: z.gguf"),
        ("http://bob:p@w@127.0.0.1:9/v1 cannot be reached", "http://127.0.0.1:9/v1 cannot be reached"),
        ("give an http…/v1 address, one/of/these, or 1/2", "give an http…/v1 address, one/of/these, or 1/2"),
    ],
)
def test_a_sentence_for_visitors_names_no_folder_and_no_login(sentence: str, shown: str):
    assert for_visitors(sentence) == shown


def test_an_endpoints_login_stands_in_no_sentence():
    engine = Engine("http://bob:hunter2@127.0.0.1:9/v1#ada")
    assert is_over(lambda: engine.status == "ready")
    *_, shown = answer(engine, [user("q")], Sampling(), EN)
    assert "127.0.0.1:9/v1 cannot be reached" in shown.note
    seen = f"{shown} {engine.backend.label} {engine.shown_model} {engine.name}"
    assert "hunter2" not in seen and "bob" not in seen


def test_the_login_of_an_address_still_opens_it():
    with stand_in() as server:
        engine = Engine(server.url.replace("://", "://bob:hunter2@") + "#ada")
        *_, shown = answer(engine, [user("q")], Sampling(), EN)
    assert shown.text and not shown.failed


def test_where_a_model_lies_is_told_to_the_terminal_and_to_no_visitor(tmp_path, capsys):
    hidden = tmp_path / "my secret" / "gone.gguf"
    engine = Engine(str(hidden))
    assert is_over(lambda: engine.status == "error", 60)
    *_, shown = answer(engine, [user("q")], Sampling(), EN)
    for said in (engine.error, shown.note, engine.shown_model):
        assert "gone" in said and "secret" not in said and str(tmp_path) not in said
    assert str(hidden) in capsys.readouterr().err


def test_an_error_in_the_middle_names_no_folder(monkeypatch, tmp_path):
    class Breaks(Quick):
        def stream(self, messages, sampling, stop=None):
            yield "half"
            raise OSError(f"{tmp_path}/weights.bin is cut")

    with opened(monkeypatch, Breaks()) as engine:
        *_, shown = answer(engine, [user("q")], Sampling(), EN)
        assert (shown.text, shown.note) == ("half", "weights.bin is cut")
        app = Starlette(routes=routes(engine, Access()))
        reply = TestClient(app).post("/v1/chat/completions", json={"messages": [user("q")]})
        assert reply.status_code == 500 and reply.json()["error"]["message"] == "weights.bin is cut"
