"""Rows of messages: what is a right one, how files of them are read and written, what a template is given.

Knows nothing of models or identities; the formats' shapes are in assistant/formats.py.
"""

import json
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict, cast

from assistant.formats import Format, entry_of, turns_from
from assistant.settings import near_names, write_text

Role = Literal["system", "user", "assistant"]


class Message(TypedDict):
    """`images`: pictures that a user shows before the text, as files or `data:` addresses.

    `loss`: False for an answer that is read and not learnt.
    """

    role: Role
    content: str
    images: NotRequired[list[str]]
    loss: NotRequired[bool]


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


def is_learnt(message: Message) -> bool:
    """Whether training learns this turn: an answer that no flag takes out."""
    return message["role"] == "assistant" and message.get("loss", True)


def images_of(messages: Iterable[Message]) -> list[str]:
    return [image for message in messages for image in message.get("images", ())]


def refuse_images(messages: Iterable[Message], reader: str) -> None:
    """Raises ValueError for pictures shown to a `reader` of text alone."""
    if images_of(messages):
        raise ValueError(
            f"{reader} reads text alone; a LLaVA folder from scripts/make_llava.py sees pictures"
        )


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
    messages = check_messages(turns_from(entry, place), place, must_end_with="assistant")
    row: dict[str, Any] = {"messages": messages}
    return cast(Row, row | {key: entry[key] for key in ("kind", "lang") if isinstance(entry.get(key), str)})


def write_rows(path: Path, rows: Iterable[Row], format: Format = "openai") -> None:
    """Write rows as JSON lines, whole or not at all; only the house's own, openai, keeps kind and language.

    Raises ValueError, with the number of the row, for one that the format cannot hold.
    """
    lines = []
    for number, row in enumerate(rows, 1):
        try:
            entry = entry_of(row["messages"], format)
        except ValueError as error:
            raise ValueError(f"{path}: row {number}: {error}") from None
        lines.append(json.dumps({**row, **entry} if format == "openai" else entry, ensure_ascii=False))
    write_text(path, "\n".join(lines) + "\n")


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
