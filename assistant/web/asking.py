"""What an OpenAI client asks for: the JSON of POST /v1/chat/completions, checked. Knows no engine."""

import json
from dataclasses import dataclass
from typing import Any, Literal

from assistant.backends import Sampling
from assistant.conversations import Message, Role, check_messages, images_of, user
from assistant.settings import near_names, one_line
from assistant.web import LEAST_TEMPERATURE

MOST_TOKENS = 2048  # of one answer, whatever is asked for: one answer is written at a time
ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
}
# What would change the answer and is not to be had; the values that mean "no".
WITHOUT: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "tools": ([],),
    "functions": ([],),
    "logprobs": (False,),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
}


class Refused(ValueError):
    """A request that is not answered: one sentence, the HTTP status, the parameter and a code of OpenAI's."""

    def __init__(
        self,
        sentence: str,
        status: int = 400,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_s: int = 0,
    ) -> None:
        super().__init__(sentence)
        self.status, self.param, self.code, self.retry_s = status, param, code, retry_s


@dataclass(frozen=True)
class Asked:
    messages: list[Message]
    sampling: Sampling
    model: str | None
    """None: whichever there is."""
    stops: tuple[str, ...]
    is_streamed: bool
    with_usage: bool


def read_request(body: bytes) -> Asked:
    """Raises Refused, whatever the bytes are."""
    asked = _object(body)
    for key, meaning_no in WITHOUT.items():
        if asked.get(key) is not None and not any(_is(asked[key], value) for value in meaning_no):
            raise Refused(f"{key} is not supported here; leave it out", param=key)
    is_streamed = _flag(asked, "stream")
    options = asked.get("stream_options")
    if options is not None and not isinstance(options, dict):
        raise Refused("stream_options must be an object", param="stream_options")
    if options is not None and not is_streamed:
        raise Refused("stream_options is allowed only with stream: true", param="stream_options")
    return Asked(
        _messages(asked.get("messages")),
        _sampling(asked),
        _model(asked.get("model")),
        _stops(asked.get("stop")),
        is_streamed,
        _flag(options or {}, "include_usage"),
    )


def _object(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise Refused(f"the body is not JSON ({one_line(error)}); send one JSON object in UTF-8") from None
    if not isinstance(value, dict):
        raise Refused("the body must be one JSON object")
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _is(value: Any, wanted: Any) -> bool:
    """Equal, and True is not 1."""
    return bool(value == wanted) and isinstance(value, bool) == isinstance(wanted, bool)


def _flag(asked: dict[str, Any], key: str) -> bool:
    value = asked.get(key)
    if value is not None and not isinstance(value, bool):
        raise Refused(f"{key} must be true or false", param=key)
    return bool(value)


def _model(name: Any) -> str | None:
    if name is not None and not isinstance(name, str):
        raise Refused("model must be a text; GET /v1/models names it", param="model")
    return name


def _sampling(asked: dict[str, Any]) -> Sampling:
    longest = "max_tokens" if asked.get("max_completion_tokens") is None else "max_completion_tokens"
    temperature = _number(asked, "temperature", 0.0, 0, 2)
    seed = _number(asked, "seed", None, -(2**63), 2**63 - 1, whole=True)
    return Sampling(
        min(_number(asked, longest, MOST_TOKENS, 1, float("inf"), whole=True), MOST_TOKENS),
        float(temperature) if temperature >= LEAST_TEMPERATURE else 0.0,
        max(float(_number(asked, "top_p", 0.9, 0, 1)), 0.01),
        None if seed is None else seed % 2**32,
    )


def _number(
    asked: dict[str, Any], key: str, default: Any, least: float, most: float, *, whole: bool = False
) -> Any:
    value = asked.get(key)
    if value is None:
        return default
    is_number = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
    if not is_number or not least <= value <= most:
        kind = "a whole number" if whole else "a number"
        limits = f"of at least {least}" if most == float("inf") else f"from {least} to {most}"
        raise Refused(f"{key} must be {kind} {limits}", param=key)
    return value


def _stops(value: Any) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(texts, list) or len(texts) > 4 or not all(isinstance(t, str) and t for t in texts):
        raise Refused("stop must be a text, or a list of at most 4 texts, none of them empty", param="stop")
    return tuple(texts)


def _messages(value: Any) -> list[Message]:
    """System messages joined at the front, and turns of one role in a row joined; the user speaks last."""
    if not isinstance(value, list) or not value:
        raise Refused("messages must be a list of at least one message", param="messages")
    turns = [read_message(message, f"messages[{index}]") for index, message in enumerate(value)]
    merged: list[Message] = []
    for turn in sorted(turns, key=lambda turn: turn["role"] != "system"):
        if merged and merged[-1]["role"] == turn["role"]:
            merged[-1] = _joined(merged[-1], turn)
        else:
            merged.append(turn)
    try:
        return check_messages(merged, "messages", must_end_with="user")
    except ValueError as error:
        raise Refused(one_line(error), param="messages") from None


def _joined(first: Message, second: Message) -> Message:
    """Two turns of one role as one, with the pictures of both."""
    text = "\n\n".join(filter(None, (first["content"], second["content"])))
    images = images_of([first, second])
    return user(text, images) if images else {"role": first["role"], "content": text}


def read_message(message: Any, place: str) -> Message:
    if not isinstance(message, dict):
        raise Refused(f"{place} must be an object with role and content", param=place)
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise Refused(f"{place}: unknown role {role!r:.40}{near_names(str(role)[:40], ROLES)}", param=place)
    text, images = _content(message.get("content"), f"{place}.content")
    if images and role != "user":
        raise Refused(f"{place}: a picture in a {role} message; only users show pictures", param=place)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise Refused(f"{place}.content holds half a character (a lone surrogate)", param=place) from None
    return user(text, images) if images else {"role": ROLES[role], "content": text}


def _content(content: Any, place: str) -> tuple[str, list[str]]:
    """The text, and the pictures as `data:` addresses that nobody has opened yet."""
    if isinstance(content, str):
        return content, []
    if not isinstance(content, list):
        raise Refused(f"{place} must be a text or a list of text and image_url parts", param=place)
    parts = [_part(part, f"{place}[{index}]") for index, part in enumerate(content)]
    kinds: dict[str, list[str]] = {"text": [], "image_url": []}
    for kind, value in parts:
        kinds[kind].append(value)
    return "\n".join(kinds["text"]), kinds["image_url"]


def _part(part: Any, place: str) -> tuple[Literal["text", "image_url"], str]:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return "text", part["text"]
    if kind == "image_url":
        return "image_url", _address(part.get("image_url"), place)
    if kind in ("input_image", "input_audio", "file"):
        raise Refused(f"{place}: {kind} parts are not read; a picture is an image_url part", param=place)
    raise Refused(f'{place} must be {{"type": "text", "text": ...}} or an image_url part', param=place)


def _address(value: Any, place: str) -> str:
    """Only what the request itself holds: this server asks no other one for a picture."""
    address = value.get("url") if isinstance(value, dict) else None
    if not isinstance(address, str) or not address:
        form = '{"type": "image_url", "image_url": {"url": "data:image/png;base64,..."}}'
        raise Refused(f"{place} must be {form}", param=place)
    if not address.startswith("data:"):
        raise Refused(
            f"{place}: pictures are not fetched from the web; send the file as data:image/png;base64,...",
            param=place,
        )
    return address
