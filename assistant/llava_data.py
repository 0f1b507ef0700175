"""Rows with pictures: LLaVA's json and jsonl, and rows of this house with images. Knows no model.

Source: LLaVA's llava_v1_5_mix665k.json and XTuner's dataset/llava.py, whose checks are made friendly here.
"""

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from assistant.conversations import Message, Row, images_of, read_jsonl, row_from
from assistant.images import open_image

MARK = "<image>"
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
READERS = 8
NAMED = 3  # bad pictures that one sentence names


def load_picture_rows(path: Path, folder: Path | None = None) -> list[Row]:
    """Rows of a .json list or .jsonl file; their pictures lie in `folder`, else beside the file.

    A row without a picture is one of text alone, wherever it stands; `id` may be missing. Raises ValueError
    with file and record for anything that would be lost or learnt wrongly.
    """
    folder = folder or path.parent
    rows = [row for place, entry in _entries(path) if (row := _row_from(entry, place, folder))]
    if not rows:
        raise ValueError(f"{path} holds no rows with an answer")
    return rows


def check_pictures(rows: list[Row], source: Path) -> None:
    """Open every picture once. Raises ValueError naming the first ones that are missing or damaged."""
    images = dict.fromkeys(image for row in rows for image in images_of(row["messages"]))
    with ThreadPoolExecutor(READERS) as pool:
        bad = [problem for problem in pool.map(_problem, images) if problem]
    if bad:
        more = f"; and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
        raise ValueError(f"{source}: {'; '.join(bad[:NAMED])}{more}")


def _problem(image: str) -> str:
    try:
        open_image(image)
        return ""
    except ValueError as error:
        return str(error)


def _entries(path: Path) -> Iterator[tuple[str, Any]]:
    if path.suffix == ".jsonl":
        yield from read_jsonl(path)
        return
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist; give LLaVA's .json or a .jsonl file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON in UTF-8 ({error})") from None
    if not isinstance(content, list):
        raise ValueError(f"{path} holds a {type(content).__name__}, and LLaVA's json is a list of records")
    for number, entry in enumerate(content, 1):
        named = f" (id {entry['id']})" if isinstance(entry, dict) and "id" in entry else ""
        yield f"{path}: record {number}{named}", entry


def _row_from(entry: Any, place: str, folder: Path) -> Row | None:
    """None for a record that has no answer, as XTuner drops it."""
    if not isinstance(entry, dict):
        raise ValueError(f"{place}: must be a JSON object, not {type(entry).__name__}")
    turns = entry.get("conversations", entry.get("conversation"))
    if not isinstance(turns, list) or not all(isinstance(turn, dict) and "from" in turn for turn in turns):
        if "conversations" in entry or "image" in entry:
            shape = '"conversations": [{"from": "human", "value": …}, {"from": "gpt", "value": …}]'
            raise ValueError(f"{place}: needs {shape}; found the keys {', '.join(map(str, entry))}")
        return _with_folder(row_from(entry, place), folder)
    messages = _messages(turns, place)
    if not messages:
        return None
    _place_images(messages, _images(entry, place), place)
    row = {key: entry[key] for key in ("kind", "lang") if isinstance(entry.get(key), str)}
    row = {"kind": "picture" if images_of(messages) else "text"} | row
    return _with_folder(row_from({**row, "messages": messages}, place), folder)


def _messages(turns: list[dict[str, Any]], place: str) -> list[Message]:
    """Leading answers are dropped, questions in a row joined, and a last one without an answer dropped."""
    messages: list[Any] = []
    for turn in turns:
        role, text = ROLES.get(str(turn["from"])), turn.get("value")
        if role is None or not isinstance(text, str):
            raise ValueError(
                f'{place}: a turn needs "from" (human, gpt or system) and a text "value": {turn}'
            )
        if role == "assistant" and (not messages or messages[-1]["role"] == "system"):
            continue
        if role == "user" and messages and messages[-1]["role"] == "user":
            messages[-1]["content"] += "\n" + text
        else:
            messages.append({"role": role, "content": text})
    while messages and messages[-1]["role"] != "assistant":
        messages.pop()
    return messages


def _images(entry: dict[str, Any], place: str) -> list[str]:
    images = entry.get("image") or entry.get("images") or []
    images = [images] if isinstance(images, str) else images
    if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
        raise ValueError(f'{place}: "image" must be a file name or a list of them, not {images!r}')
    return images


def _place_images(messages: list[Message], images: list[str], place: str) -> None:
    """Each picture to the question that has its `<image>`, in order; without any mark to the first one."""
    asked = [message for message in messages if message["role"] == "user"]
    marks = [message["content"].count(MARK) for message in asked]
    if images and not any(marks):
        marks[0] = len(images)
    if sum(marks) != len(images):
        raise ValueError(f"{place}: {sum(marks)} {MARK} in its questions and {len(images)} pictures")
    left = list(images)
    for message, count in zip(asked, marks, strict=True):
        message["content"] = re.sub(rf"\s*{MARK}\s*", "\n", message["content"]).strip()
        if count:
            message["images"], left = left[:count], left[count:]


def _with_folder(row: Row, folder: Path) -> Row:
    """Pictures by their whole path."""
    for message in row["messages"]:
        if images := message.get("images"):
            # an absolute path stays as it is
            message["images"] = [image if ":" in image[:6] else str(folder / image) for image in images]
    return row
