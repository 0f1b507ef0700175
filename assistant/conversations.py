"""Rows of messages and the file formats they travel in. Knows nothing of models or identities.

Long, for what is read in one format must come back in every other.
"""

import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict, cast

from assistant.settings import near_names, write_text

Role = Literal["system", "user", "assistant"]
Format = Literal["openai", "xtuner", "alpaca", "sharegpt"]


class Message(TypedDict):
    """`images`: pictures that a user shows before the text, as files or `data:` addresses."""

    role: Role
    content: str
    images: NotRequired[list[str]]


class Row(TypedDict):
    """One conversation. `kind` tells the trainer what the row is for; `lang` is a BCP-47 tag."""

    messages: list[Message]
    kind: NotRequired[str]
    lang: NotRequired[str]


def user(text: str, images: Sequence[str] = ()) -> Message:
    return {"role": "user", "content": text, **({"images": list(images)} if images else {})}  # type: ignore[typeddict-item]


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def system(text: str) -> Message:
    return {"role": "system", "content": text}


def images_of(messages: Iterable[Message]) -> list[str]:
    return [image for message in messages for image in message.get("images", ())]


def refuse_images(messages: Iterable[Message], reader: str) -> None:
    """Raises ValueError for pictures shown to a `reader` of text alone."""
    if images_of(messages):
        raise ValueError(
            f"{reader} reads text alone; a LLaVA folder from scripts/make_llava.py sees pictures"
        )


def from_parts(message: Any, place: str) -> Any:
    """A message whose content is a list of OpenAI's parts, as text and images; any other as it is.

    Raises ValueError at `place` for a part that is neither text nor a picture.
    """
    if not isinstance(message, dict) or not isinstance(message.get("content"), list):
        return message
    texts: list[str] = []
    images: list[str] = []
    for part in message["content"]:
        kind = part.get("type") if isinstance(part, dict) else None
        value = part.get(kind) if kind in ("text", "image_url", "image") else None
        value = value.get("url") if isinstance(value, dict) else value
        if not isinstance(value, str):
            raise ValueError(
                f'{place}: a part of a content must be {{"type": "text", "text": …}} or '
                '{"type": "image_url", "image_url": {"url": …}}'
            )
        (texts if kind == "text" else images).append(value)
    plain = {**message, "content": "\n".join(texts)}
    return plain | {"images": images} if images else plain


def to_parts(message: Message, address: Callable[[str], str] = str) -> dict[str, Any]:
    """The inverse of from_parts; `address` makes a picture an address that the reader can open."""
    plain: dict[str, Any] = {key: value for key, value in message.items() if key != "images"}
    pictures = [{"type": "image_url", "image_url": {"url": address(i)}} for i in message.get("images", ())]
    text = {"type": "text", "text": message["content"]}
    return plain | {"content": [*pictures, text]} if pictures else plain


def check_messages(messages: Any, place: str, *, must_end_with: str | None = None) -> list[Message]:
    """Validate one conversation: optional system first, then user and assistant in turn.

    Raises ValueError that begins with `place` (a file and line) and says what would be right.
    """
    if not isinstance(messages, list) or not messages:
        raise ValueError(f'{place}: "messages" must be a list of at least one {{"role", "content"}} object')
    previous = ""
    for message in messages:
        previous = _check_turn(message, previous, place)
    if previous == "system":
        raise ValueError(f"{place}: only a system message; a user turn must follow it")
    if must_end_with and previous != must_end_with:
        raise ValueError(f"{place}: the last turn is {previous}; it must be {must_end_with}")
    return cast(list[Message], messages)


def _check_turn(message: Any, previous: str, place: str) -> str:
    if not isinstance(message, dict) or not isinstance(message.get("content"), str):
        raise ValueError(f'{place}: each message must be an object with "role" and a text "content"')
    role = message.get("role")
    if role not in ("system", "user", "assistant"):
        raise ValueError(f"{place}: role {role!r}{near_names(str(role), ('system', 'user', 'assistant'))}")
    images = message.get("images", [])
    if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
        raise ValueError(f'{place}: "images" must be a list of files or data: addresses')
    if images and role != "user":
        raise ValueError(f"{place}: a picture in a {role} turn; only users show pictures")
    if role == "system" and previous:
        raise ValueError(f"{place}: a system message in the middle; it must come first")
    if role == "assistant" and previous in ("", "system"):
        raise ValueError(f"{place}: an assistant turn before any user turn; turns must begin with user")
    if role == previous:
        raise ValueError(f"{place}: two {role} turns in a row; turns must alternate")
    if role != "system" and not message["content"].strip() and not images:
        raise ValueError(f"{place}: an empty {role} turn")
    return role


def read_jsonl(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield (place, object) for each line that is not blank; `place` is `file:line`.

    Raises ValueError naming file and line for a line that is not JSON.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 at byte {error.start}; save it as UTF-8") from None
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist") from None
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield f"{path}:{number}", _parse(line, f"{path}:{number}")


def _parse(line: str, place: str) -> Any:
    try:
        return json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deep"
        raise ValueError(f"{place}: not JSON ({reason}); each line must be one JSON object") from None


def load_rows(path: Path) -> list[Row]:
    """Read rows in any of the formats; the format is recognised line by line.

    Raises ValueError with file and line; an empty file is an error too.
    """
    rows = [row_from(entry, place) for place, entry in read_jsonl(path)]
    if not rows:
        raise ValueError(f"{path} holds no rows")
    return rows


def row_from(entry: Any, place: str) -> Row:
    """One row from an OpenAI, XTuner, Alpaca or ShareGPT object.

    Raises ValueError at `place` for an object of none of these shapes, or whose turns are out of order.
    """
    if not isinstance(entry, dict):
        raise ValueError(f"{place}: must be a JSON object, not {type(entry).__name__}")
    for key, read in (
        ("messages", lambda: _from_openai(entry["messages"], place)),
        ("conversation", lambda: _from_xtuner(entry["conversation"], place)),
        ("conversations", lambda: _from_sharegpt(entry, place)),
        ("instruction", lambda: _from_alpaca(entry, place)),
    ):
        if key in entry:
            row: dict[str, Any] = {"messages": check_messages(read(), place, must_end_with="assistant")}
            row |= {key: entry[key] for key in ("kind", "lang") if isinstance(entry.get(key), str)}
            return cast(Row, row)
    known = "messages (OpenAI), conversation (XTuner), conversations (ShareGPT), instruction (Alpaca)"
    raise ValueError(f"{place}: none of the keys {known}; found: {', '.join(map(str, entry)) or 'nothing'}")


def write_rows(path: Path, rows: Iterable[Row], format: Format = "openai") -> None:
    """Write rows as JSON lines, whole or not at all."""
    shapes: dict[Format, Callable[[Row], dict[str, Any]]] = {
        "openai": _to_openai,
        "xtuner": _to_xtuner,
        "alpaca": _to_alpaca,
        "sharegpt": _to_sharegpt,
    }
    lines = [json.dumps(shapes[format](row), ensure_ascii=False) for row in rows]
    write_text(path, "\n".join(lines) + "\n")


def split_turns(messages: list[Message]) -> tuple[str, list[tuple[str, str]]]:
    """(system text or "", [(user, assistant), …]) of a conversation that ends with the assistant."""
    has_system = messages[0]["role"] == "system"
    turns = messages[has_system:]
    pairs = [(turns[i]["content"], turns[i + 1]["content"]) for i in range(0, len(turns) - 1, 2)]
    return (messages[0]["content"] if has_system else ""), pairs


def _to_openai(row: Row) -> dict[str, Any]:
    return {**row, "messages": [to_parts(message) for message in row["messages"]]}


def _to_xtuner(row: Row) -> dict[str, Any]:
    system_text, pairs = split_turns(row["messages"])
    turns: list[dict[str, str]] = [{"input": question, "output": answer} for question, answer in pairs]
    if system_text:
        turns[0] = {"system": system_text, **turns[0]}
    return {"conversation": turns}


def _to_alpaca(row: Row) -> dict[str, Any]:
    system_text, pairs = split_turns(row["messages"])
    *history, (question, answer) = pairs
    entry: dict[str, Any] = {"instruction": question, "input": "", "output": answer}
    if system_text:
        entry["system"] = system_text
    if history:
        entry["history"] = [list(pair) for pair in history]
    return entry


def _to_sharegpt(row: Row) -> dict[str, Any]:
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    return {"conversations": [{"from": names[m["role"]], "value": m["content"]} for m in row["messages"]]}


def _from_openai(messages: Any, place: str) -> Any:
    return [from_parts(message, place) for message in messages] if isinstance(messages, list) else messages


def _from_xtuner(turns: Any, place: str) -> list[Message]:
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise ValueError(f'{place}: "conversation" must be a list of {{"input", "output"}} objects')
    messages: list[Message] = []
    for turn in turns:
        if turn.get("system") and not messages:
            messages.append(system(turn["system"]))
        messages += [user(turn.get("input")), assistant(turn.get("output"))]
    return messages


def _from_alpaca(entry: dict[str, Any], place: str) -> list[Message]:
    if not all(isinstance(entry.get(key, ""), str) for key in ("instruction", "input", "output", "system")):
        raise ValueError(f"{place}: instruction, input, output and system must be texts")
    messages = [system(entry["system"])] if entry.get("system") else []
    history = entry.get("history") or []
    if not isinstance(history, list) or not all(isinstance(p, list) and len(p) == 2 for p in history):
        raise ValueError(f"{place}: history must be a list of [question, answer] pairs")
    for pair in history:
        messages += [user(pair[0]), assistant(pair[1])]
    question = "\n".join(part for part in (entry["instruction"], entry.get("input")) if part)
    return [*messages, user(question), assistant(entry.get("output", ""))]


def _from_sharegpt(entry: dict[str, Any], place: str) -> list[Message]:
    roles = {
        "system": "system",
        "human": "user",
        "user": "user",
        "gpt": "assistant",
        "assistant": "assistant",
    }
    messages: list[Any] = [system(entry["system"])] if isinstance(entry.get("system"), str) else []
    for turn in entry["conversations"] if isinstance(entry["conversations"], list) else [None]:
        if not isinstance(turn, dict) or turn.get("from") not in list(roles):
            raise ValueError(
                f'{place}: each of "conversations" needs "from" (system, human or gpt) and "value"'
            )
        messages.append({"role": roles[turn["from"]], "content": turn.get("value")})
    return messages


SENTINEL = "\ue000{}\ue001"


def hide_contents(messages: list[Message]) -> list[Message]:
    """The messages with a placeholder for each content: what a chat template is rendered with.

    A message with pictures gets the parts that a LLaVA's template asks for.
    """
    return [_hidden(message, SENTINEL.format(index)) for index, message in enumerate(messages)]


def _hidden(message: Message, text: str) -> Any:
    pictures = [{"type": "image"} for _ in message.get("images", ())]
    content = [*pictures, {"type": "text", "text": text}] if pictures else text
    return {key: value for key, value in message.items() if key != "images"} | {"content": content}


def template_pieces(
    text: str, messages: list[Message], control: Collection[str]
) -> Iterator[tuple[str, bool]]:
    """A template rendered with hide_contents → pieces to tokenize, each with whether it is a control token.

    Only the template's own control tokens are any: `<|im_end|>` that a person typed stays text. An answer is
    a piece of its own, as it was when the model wrote it; XTuner trains it so too.
    """
    tokens = "|".join(re.escape(token) for token in sorted(control, key=len, reverse=True)) or "(?!)"
    answers = "|".join(SENTINEL.format(i) for i, m in enumerate(messages) if m["role"] == "assistant")
    for piece in re.split(f"({tokens})", text):
        if piece in control:
            yield piece, True
            continue
        for part in re.split(f"({answers or '(?!)'})", piece):
            if filled := re.sub("\ue000(\\d+)\ue001", lambda at: messages[int(at[1])]["content"], part):
                yield filled, False
