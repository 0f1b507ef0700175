import base64
import json
from io import BytesIO
from pathlib import Path
from typing import Any

import openai
import pytest
from PIL import Image
from serving import api_of, client_of
from stand_in import ANSWER, stand_in
from test_api import post, ready
from test_export import make_byte_level
from test_llava import published, spacious_model, tower  # noqa: F401 (fixtures)

from assistant.backends import Sampling
from assistant.conversations import user
from assistant.images import data_address
from assistant.llava import Parts, make_llava
from assistant.web.api import MOST_BYTES, MOST_PICTURES
from assistant.web.asking import Refused, read_request
from assistant.web.engine import Engine


@pytest.fixture(scope="module")
def engine(tower, tmp_path_factory) -> Engine:  # noqa: F811
    folder = tmp_path_factory.mktemp("api") / "seeing"
    make_llava(spacious_model(folder.parent / "llm"), tower, folder, Parts(), {})
    return ready(folder)


def address(color: str = "red", size: tuple[int, int] = (40, 30)) -> str:
    content = BytesIO()
    Image.new("RGB", size, color).save(content, "PNG")
    return data_address(content.getvalue())


def asked(*urls: str, text: str = "what is this?") -> list[Any]:
    pictures = [{"type": "image_url", "image_url": {"url": url, "detail": "low"}} for url in urls]
    return [{"role": "user", "content": [*pictures, {"type": "text", "text": text}]}]


def said(client: openai.OpenAI, messages: list[Any]) -> str:
    reply = client.chat.completions.create(model="seeing", messages=messages, max_tokens=12)
    return str(reply.choices[0].message.content)


def test_a_picture_is_looked_at_as_the_backend_looks_at_it(client, engine: Engine):
    assert engine.backend
    talk = [user("what is this?", [address("red")])]
    whole = "".join(engine.backend.stream(talk, Sampling(12)))
    reply = client.chat.completions.create(model="seeing", messages=asked(address("red")), max_tokens=12)
    assert reply.choices[0].message.content == whole
    assert reply.usage.prompt_tokens == engine.backend.count_prompt(talk)
    assert said(client, asked(address("blue"))) != whole


def test_several_pictures_and_turns_of_one_role_keep_every_picture(client):
    red, blue = address("red"), address("blue")
    together = said(client, asked(red, blue, text="a\n\nb"))
    apart = said(client, [*asked(red, text="a"), *asked(blue, text="b")])
    assert together == apart != said(client, asked(blue, red, text="a\n\nb"))


def test_an_answer_about_a_picture_is_streamed(client):
    messages = asked(address())
    chunks = client.chat.completions.create(model="seeing", messages=messages, max_tokens=12, stream=True)
    words = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert len(words) > 4 and "".join(words) == said(client, messages)


@pytest.mark.parametrize(
    ("picture", "sentence"),
    [
        ("https://example.org/cat.png", "not fetched from the web"),
        ("http://127.0.0.1/cat.png", "not fetched from the web"),
        ("/etc/passwd", "not fetched from the web"),
        ("data:image/png;base64,AAAA", "no picture"),
        ("data:image/png;base64,%%%", "must be data:image/png;base64"),
        ("data:image/svg+xml;base64," + base64.b64encode(b"<svg></svg>").decode(), "SVG"),
        (address(size=(200, 200))[:302], "damaged"),
        ("", "must be"),
    ],
)
def test_what_is_no_picture_is_refused_as_openai_does(client, picture: str, sentence: str):
    with pytest.raises(openai.BadRequestError) as raised:
        said(client, asked(picture))
    body: Any = raised.value.body
    assert sentence in body["message"] and "\n" not in body["message"]
    assert body["type"] == "invalid_request_error" and body["param"].startswith("messages")


def test_a_picture_of_too_many_pixels_is_refused_unread(client):
    content = BytesIO()
    Image.new("1", (12_000, 6_000)).save(content, "PNG")
    bomb = "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()
    assert len(bomb) < 50_000
    with pytest.raises(openai.BadRequestError, match="million"):
        said(client, asked(bomb))


def test_a_model_of_text_alone_says_so_and_only_a_person_shows_pictures(client, tmp_path):
    ada = ready(make_byte_level(tmp_path / "ada" / "model"))
    refusal = pytest.raises(openai.BadRequestError, match="text alone")
    with api_of(ada) as url, client_of(url) as blind, refusal as raised:
        blind.chat.completions.create(model="ada", messages=asked(address()))
    assert raised.value.code == "image_not_supported"
    picture = asked(address())[0]["content"]
    with pytest.raises(openai.BadRequestError, match="only users"):
        said(client, [{"role": "system", "content": picture}, *asked(text="hello")])


def test_a_photo_may_be_larger_than_any_text_may(client, url: str):
    noise = Image.effect_noise((1500, 1000), 90)
    photo = BytesIO()
    noise.save(photo, "PNG")
    large = "data:image/png;base64," + base64.b64encode(photo.getvalue()).decode()
    assert len(large) > MOST_BYTES and said(client, asked(large))
    long = json.dumps({"messages": asked(address(), text="a" * MOST_BYTES)}).encode()
    assert post(url, long)[0] == 413
    hidden = json.dumps({"messages": asked(), "x": "data:" + "a" * MOST_BYTES}).encode()
    assert post(url, hidden)[0] == 413
    with pytest.raises(openai.BadRequestError, match=f"at most {MOST_PICTURES}"):
        said(client, asked(*[address()] * (MOST_PICTURES + 1)))


def test_an_endpoint_gets_the_picture_itself():
    with stand_in() as server, api_of(ready(server.url + "#ada")) as url, client_of(url) as client:
        reply = client.chat.completions.create(model="ada", messages=asked(address("red")))
        heard: Any = server.heard[-1]
    assert reply.choices[0].message.content == "".join(ANSWER)
    assert heard[0]["image_url"]["url"] == address("red") and heard[1]["text"] == "what is this?"


def test_a_file_of_this_machine_cannot_be_named(tmp_path: Path):
    for url in ("file:///etc/passwd", str(tmp_path / "a.png")):
        with pytest.raises(Refused, match="not fetched"):
            read_request(json.dumps({"messages": asked(url)}).encode())
