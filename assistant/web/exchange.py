"""Conversations as files: JSON that can be read back, Markdown for people. Knows no framework."""

import json
import re
from pathlib import Path
from typing import Any, cast

from assistant.conversations import check_messages
from assistant.settings import one_line
from assistant.web import is_figure
from assistant.web.store import LONGEST_TITLE, Chat, Turn
from assistant.web.texts import Texts

FORMAT = "little-assistant/chats"
LARGEST_FILE = 5_000_000  # bytes
MOST_AT_ONCE = 100
MOST_TURNS = 2000  # of one conversation: a model reads far fewer
FIGURES = ("tokens", "prompt", "context", "first_s", "per_s")
BESIDE: dict[str, Any] = {"note": str, "model": str, "comment": str, "failed": bool, "liked": bool}


def to_json(chats: list[Chat]) -> str:
    content = {"format": FORMAT, "chats": [_plain(chat) for chat in chats]}
    return json.dumps(content, ensure_ascii=False, indent=1)


def to_markdown(chat: Chat, texts: Texts) -> str:
    speakers = {"user": texts["you"], "assistant": texts["assistant"]}
    parts = [f"# {chat.title}"]
    if chat.system_prompt:
        parts += [f"**{texts['system_prompt']}**", chat.system_prompt]
    for turn in chat.turns:
        parts += [f"**{turn.get('model') or speakers[turn['role']]}**", turn["content"]]
        parts += [f"*{turn['note']}*"] if turn.get("note") else []
    return "\n\n".join(filter(None, parts)) + "\n"


def write_files(chat: Chat, folder: Path, texts: Texts) -> list[Path]:
    """The conversation as TITLE.json and TITLE.md in `folder`."""
    name = re.sub(r"[^\w]+", "-", chat.title).strip("-_")[:40] or "chat"
    contents = {f"{name}.json": to_json([chat]), f"{name}.md": to_markdown(chat, texts)}
    for file, text in contents.items():
        (folder / file).write_text(text, encoding="utf-8")
    return [folder / file for file in contents]


def from_json(data: bytes, name: str) -> list[Chat]:
    """The conversations of a file that to_json wrote, or of {"messages": […]}; each gets a new id.

    Raises ValueError, one sentence that begins with `name`, for anything else.
    """
    if len(data) > LARGEST_FILE:
        raise ValueError(f"{name}: larger than {LARGEST_FILE // 1_000_000} MB; choose a smaller file")
    try:
        content = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name}: not JSON ({one_line(error)}); choose a file exported here") from None
    entries = content.get("chats", [content]) if isinstance(content, dict) else content
    if not isinstance(entries, list) or not 1 <= len(entries) <= MOST_AT_ONCE:
        raise ValueError(f"{name}: no list of 1 to {MOST_AT_ONCE} conversations; choose a file exported here")
    return [_chat_from(entry, f"{name}: conversation {number}") for number, entry in enumerate(entries, 1)]


def _plain(chat: Chat) -> dict[str, Any]:
    system = [{"role": "system", "content": chat.system_prompt}] if chat.system_prompt else []
    return {"title": chat.title, "messages": [*system, *chat.turns]}


def _chat_from(entry: Any, place: str) -> Chat:
    messages = entry.get("messages") if isinstance(entry, dict) else None
    if isinstance(messages, list) and len(messages) > MOST_TURNS:
        raise ValueError(f"{place}: {len(messages)} messages; at most {MOST_TURNS} are kept, so split it")
    # An answer that was stopped before its first word is kept, empty; any other message has words.
    check_messages([_filled(m) for m in messages] if isinstance(messages, list) else messages, place)
    prompt, turns = "", cast(list[dict[str, Any]], messages)
    if turns[0]["role"] == "system":
        prompt, turns = turns[0]["content"], turns[1:]
    title = entry.get("title") if isinstance(entry.get("title"), str) else ""
    return Chat(
        title=" ".join(title.split())[:LONGEST_TITLE], system_prompt=prompt, turns=[*map(_turn_from, turns)]
    )


def _filled(message: Any) -> Any:
    if isinstance(message, dict) and message.get("role") == "assistant" and message.get("content") == "":
        return message | {"content": "…"}
    return message


def _turn_from(message: dict[str, Any]) -> Turn:
    """The message with those values beside it that have the right type; others are left out."""
    turn = {"role": message["role"], "content": message["content"]}
    turn |= {key: message[key] for key, kind in BESIDE.items() if isinstance(message.get(key), kind)}
    figures = message.get("figures")
    given = figures if isinstance(figures, dict) else {}
    if figures := {key: given[key] for key in FIGURES if is_figure(given.get(key))}:
        turn["figures"] = figures
    return cast(Turn, turn)
