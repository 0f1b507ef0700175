"""Objects of the OpenAI, XTuner, Alpaca and ShareGPT formats as turns, and turns as such objects.

Turns are plain {"role", "content"} objects that nobody has checked yet; assistant/conversations.py does that.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

Format = Literal["openai", "xtuner", "alpaca", "sharegpt"]
Turns = Sequence[Mapping[str, Any]]
SPEAKERS = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
}


def turns_from(entry: dict[str, Any], place: str) -> Any:
    """The turns of an object in any of the formats; an answer that is not to be learnt has `loss` False.

    Raises ValueError at `place` for an object of none of these shapes.
    """
    for key, read in (
        ("messages", lambda: _from_openai(entry["messages"], place)),
        ("conversation", lambda: _from_xtuner(entry["conversation"], place)),
        ("conversations", lambda: _from_sharegpt(entry, place)),
        ("instruction", lambda: _from_alpaca(entry, place)),
    ):
        if key in entry:
            return read()
    known = "messages (OpenAI), conversation (XTuner), conversations (ShareGPT), instruction (Alpaca)"
    raise ValueError(f"{place}: none of the keys {known}; found: {', '.join(map(str, entry)) or 'nothing'}")


def entry_of(messages: Turns, format: Format) -> dict[str, Any]:
    """The inverse of turns_from.

    Raises ValueError for an answer that is not to be learnt when the format has no word for that.
    """
    shapes: dict[Format, Callable[[Turns], dict[str, Any]]] = {
        "openai": lambda turns: {"messages": [to_parts(turn) for turn in turns]},
        "xtuner": _to_xtuner,
        "alpaca": _to_alpaca,
        "sharegpt": _to_sharegpt,
    }
    if format in ("alpaca", "sharegpt") and not all(turn.get("loss", True) for turn in messages):
        raise ValueError(
            f"{format} cannot say that an answer is not to be learnt, so it would be; write openai or xtuner"
        )
    return shapes[format](messages)


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


def to_parts(message: Mapping[str, Any], address: Callable[[str], str] = str) -> dict[str, Any]:
    """The inverse of from_parts; `address` makes a picture an address that the reader can open."""
    plain: dict[str, Any] = {key: value for key, value in message.items() if key != "images"}
    pictures = [{"type": "image_url", "image_url": {"url": address(i)}} for i in message.get("images", ())]
    text = {"type": "text", "text": message["content"]}
    return plain | {"content": [*pictures, text]} if pictures else plain


def split_turns(messages: Turns) -> tuple[str, list[tuple[str, str]]]:
    """(system text or "", [(user, assistant), …]) of a conversation that ends with the assistant."""
    has_system = messages[0]["role"] == "system"
    turns = messages[has_system:]
    pairs = [(turns[i]["content"], turns[i + 1]["content"]) for i in range(0, len(turns) - 1, 2)]
    return (messages[0]["content"] if has_system else ""), pairs


def _turn(role: str, content: Any, learnt: bool = True) -> dict[str, Any]:
    return {"role": role, "content": content} | ({} if learnt else {"loss": False})


def _is_learnt(turn: Mapping[str, Any], key: str, place: str) -> bool:
    """XTuner's flag of an answer: true, false, or the same as a text, as its 0.1.22 wanted it."""
    value = turn.get(key, True)
    known = {"true": True, "false": False}
    if isinstance(value, str) and value.lower() in known:
        return known[value.lower()]
    if not isinstance(value, bool):
        raise ValueError(f'{place}: "{key}" must be true or false, not {value!r}')
    return value


def _from_openai(messages: Any, place: str) -> Any:
    if not isinstance(messages, list):
        return messages
    return [_with_loss(from_parts(message, place), place) for message in messages]


def _with_loss(message: Any, place: str) -> Any:
    """The message with `loss` only where an answer is not to be learnt."""
    if not isinstance(message, dict) or "loss" not in message:
        return message
    learnt, role = _is_learnt(message, "loss", place), message.get("role")
    if learnt and role in ("system", "user"):
        raise ValueError(f'{place}: "loss" is true in a {role} turn; only answers are learnt')
    plain = {key: value for key, value in message.items() if key != "loss"}
    return plain if learnt or role != "assistant" else plain | {"loss": False}


def _from_xtuner(turns: Any, place: str) -> list[dict[str, Any]]:
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise ValueError(f'{place}: "conversation" must be a list of {{"input", "output"}} objects')
    messages: list[dict[str, Any]] = []
    for turn in turns:
        if turn.get("system") and not messages:
            messages.append(_turn("system", turn["system"]))
        learnt = _is_learnt(turn, "output_with_loss", place)
        messages += [_turn("user", turn.get("input")), _turn("assistant", turn.get("output"), learnt)]
    return messages


def _to_xtuner(messages: Turns) -> dict[str, Any]:
    system_text, pairs = split_turns(messages)
    turns: list[dict[str, Any]] = [{"input": question, "output": answer} for question, answer in pairs]
    answers = [message for message in messages if message["role"] == "assistant"]
    for turn, answer in zip(turns, answers, strict=True):
        if not answer.get("loss", True):
            turn["output_with_loss"] = False
    if system_text:
        turns[0] = {"system": system_text, **turns[0]}
    return {"conversation": turns}


def _from_alpaca(entry: dict[str, Any], place: str) -> list[dict[str, Any]]:
    if not all(isinstance(entry.get(key, ""), str) for key in ("instruction", "input", "output", "system")):
        raise ValueError(f"{place}: instruction, input, output and system must be texts")
    messages = [_turn("system", entry["system"])] if entry.get("system") else []
    history = entry.get("history") or []
    if not isinstance(history, list) or not all(isinstance(p, list) and len(p) == 2 for p in history):
        raise ValueError(f"{place}: history must be a list of [question, answer] pairs")
    for pair in history:
        messages += [_turn("user", pair[0]), _turn("assistant", pair[1])]
    question = "\n".join(part for part in (entry["instruction"], entry.get("input")) if part)
    return [*messages, _turn("user", question), _turn("assistant", entry.get("output", ""))]


def _to_alpaca(messages: Turns) -> dict[str, Any]:
    system_text, pairs = split_turns(messages)
    *history, (question, answer) = pairs
    entry: dict[str, Any] = {"instruction": question, "input": "", "output": answer}
    if system_text:
        entry["system"] = system_text
    if history:
        entry["history"] = [list(pair) for pair in history]
    return entry


def _from_sharegpt(entry: dict[str, Any], place: str) -> list[dict[str, Any]]:
    messages = [_turn("system", entry["system"])] if isinstance(entry.get("system"), str) else []
    for turn in entry["conversations"] if isinstance(entry["conversations"], list) else [None]:
        if not isinstance(turn, dict) or turn.get("from") not in list(SPEAKERS):
            raise ValueError(
                f'{place}: each of "conversations" needs "from" (system, human or gpt) and "value"'
            )
        messages.append(_turn(SPEAKERS[turn["from"]], turn.get("value")))
    return messages


def _to_sharegpt(messages: Turns) -> dict[str, Any]:
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    return {"conversations": [{"from": names[m["role"]], "value": m["content"]} for m in messages]}
