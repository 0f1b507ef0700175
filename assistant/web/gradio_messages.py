"""A conversation as Gradio's chat draws it, and back: which turn a drawn message belongs to."""

from typing import Any

import gradio as gr

from assistant.web import Shown, figures_line
from assistant.web.store import Turn
from assistant.web.texts import Texts, in_language

BESIDE = "\u2063"  # invisible, around what stands beside an answer: head.html leaves that out of a copy


def drawn(turns: list[Turn], texts: Texts, meanwhile: str = "") -> list[Any]:
    """Below an answer stand its note and its figures, as messages of their own; no model reads them."""
    messages = [message for turn in turns for message in _messages(turn, texts)]
    return [*messages, gr.ChatMessage(meanwhile)] if meanwhile else messages


def _messages(turn: Turn, texts: Texts) -> list[gr.ChatMessage]:
    messages = [gr.ChatMessage(turn["content"], turn["role"])] if turn["content"] else []
    if note := turn.get("note"):
        failed = f"**{texts['failed']}.** " if turn.get("failed") else ""
        messages.append(_beside(failed + in_language(note, texts)))
    if figures := turn.get("figures"):
        messages.append(_beside(figures_line(figures, texts)))
    return messages


def _beside(text: str) -> gr.ChatMessage:
    return gr.ChatMessage(BESIDE + text.replace(BESIDE, "") + BESIDE)


def turn_at(turns: list[Turn], texts: Texts, index: Any) -> int:
    """Which turn the message at `index` of drawn() belongs to; the last one when it is none."""
    places = [place for place, turn in enumerate(turns) for _ in _messages(turn, texts)]
    at = index[0] if isinstance(index, list | tuple) and index else index
    return places[at] if isinstance(at, int) and 0 <= at < len(places) else len(turns) - 1


def turn_of(shown: Shown) -> Turn:
    """An answer as it stands, to be drawn."""
    return {
        "role": "assistant",
        "content": shown.text,
        "note": shown.note,
        "failed": shown.failed,
        "figures": shown.figures,
    }


def plain_text(content: Any) -> str:
    """The words of an edited message, which Gradio hands back as text or as blocks."""
    blocks = content if isinstance(content, list) else [content]
    return "".join(block if isinstance(block, str) else str(block.get("text", "")) for block in blocks)
