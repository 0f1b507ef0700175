"""What both pages share: an answer as a person sees it grow, and a conversation as a model reads it.

Knows no framework.
"""

import time
import traceback
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, field, replace

from assistant.backends import Counts, Notice, Sampling
from assistant.conversations import Message, system
from assistant.settings import one_line
from assistant.strength import MOST_STRENGTH
from assistant.web.engine import Engine, assistant_name, the_engine
from assistant.web.line import Busy
from assistant.web.texts import Texts

__all__ = [
    "Engine",
    "Shown",
    "answer",
    "assistant_name",
    "conversation",
    "figures_line",
    "sampling_from",
    "the_engine",
]

REDRAW_S = 0.05  # 20 updates a second: more only make a browser lag behind the model
MAX_NEW_TOKENS = (16, 2048)
MAX_TEMPERATURE = 1.5
MOST_FIGURE = 1e9
LEAST_TEMPERATURE = 0.01  # below it greedy: numbers divided by less overflow


def sampling_from(temperature: float, top_p: float, max_new_tokens: float, strength: float = 1.0) -> Sampling:
    """Sampling within the page's limits, whatever an API caller sends."""
    least, most = MAX_NEW_TOKENS
    return Sampling(
        max_new_tokens=int(min(max(least, max_new_tokens), most)),
        # this order of max's arguments, and of the comparison, turns NaN into a number too
        temperature=min(temperature, MAX_TEMPERATURE) if temperature >= LEAST_TEMPERATURE else 0.0,
        top_p=min(max(0.05, top_p), 1.0),
        strength=min(max(0.0, strength), MOST_STRENGTH),
    )


def conversation(turns: list[Message], system_prompt: str = "") -> list[Message]:
    """The turns as a model may read them: with the system prompt, without questions that got no answer."""
    kept: list[Message] = []
    for turn in (turn for turn in turns if turn["content"].strip()):
        if kept and kept[-1]["role"] == turn["role"] == "user":
            kept.pop()
        if kept or turn["role"] == "user":
            kept.append(turn)
    return ([system(system_prompt.strip())] if system_prompt.strip() else []) + kept


@dataclass(frozen=True)
class Shown:
    """What a person sees of an answer so far: its text, a note beside it, and what is going on meanwhile.

    `figures`, once it is whole: tokens, prompt, context (all in tokens), first_s (to the first token), per_s.
    """

    text: str = ""
    note: str = ""
    meanwhile: str = ""
    failed: bool = False
    figures: dict[str, float] = field(default_factory=dict)


def answer(
    engine: Engine, messages: list[Message], sampling: Sampling, texts: Texts, client: str = ""
) -> Generator[Shown, None, None]:
    """The answer growing, at most 20 states a second. Never raises: an error becomes a note beside the text.

    Closing it closes the engine's stream, also while the model is silent. `client` is who asks, for the line.
    """
    shown, last = Shown(meanwhile=texts["thinking"]), 0.0
    begin = first = time.monotonic()
    try:
        with closing(engine.stream(messages, sampling, client)) as chunks:
            for chunk in chunks:
                first = first if shown.text else time.monotonic()
                shown = _grown(shown, chunk, texts)
                if isinstance(chunk, Counts):
                    shown = _counted(shown, chunk, _context(engine), begin, first, texts)
                if (now := time.monotonic()) - last >= REDRAW_S:
                    yield shown
                    last = now
        if not shown.text.strip():
            raise RuntimeError(texts["no_words"])
        yield replace(shown, meanwhile="")
    except Busy as error:
        yield Shown(note=texts.say(f"busy_{error.kind}", seconds=error.retry_s), failed=True)
    except (ValueError, RuntimeError, OSError) as error:
        yield Shown(shown.text, one_line(error), failed=True)
    except Exception as error:  # a page must never freeze, whatever broke in a library
        traceback.print_exc()
        yield Shown(shown.text, texts.say("failed_inside", error=type(error).__name__), failed=True)


def _context(engine: Engine) -> int | None:
    return engine.backend.context if engine.backend else None


def _grown(shown: Shown, chunk: str, texts: Texts) -> Shown:
    if isinstance(chunk, Notice):
        said = texts.say(chunk.kind, number=chunk.number)
        return replace(shown, note=said) if chunk.kind == "shortened" else replace(shown, meanwhile=said)
    if not chunk:
        return shown
    return replace(shown, text=shown.text + chunk, meanwhile="")


def _counted(
    shown: Shown, counts: Counts, context: int | None, begin: float, first: float, texts: Texts
) -> Shown:
    figures: dict[str, float] = {"tokens": counts.answer, "prompt": counts.prompt}
    figures["first_s"] = round(first - begin, 2)
    if context:
        figures["context"] = context
    if counts.answer > 1 and (spent := time.monotonic() - first) > 0.05:  # else it came in one piece
        figures["per_s"] = round((counts.answer - 1) / spent, 1)
    cut = texts["cut"] if counts.ending == "length" else ""
    return replace(shown, figures=figures, note=" ".join(filter(None, (shown.note, cut))))


def is_figure(value: object) -> bool:
    """A number that can be shown: JSON from elsewhere may hold NaN, 1e999 or a thousand digits."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < MOST_FIGURE


def figures_line(figures: dict[str, float], texts: Texts) -> str:
    """`42 tokens · 31.0 tokens/s · first word after 0.2 s · 1 % of the context`."""
    figures = {key: value for key, value in figures.items() if is_figure(value)}
    parts = [texts.say("figure_tokens", number=int(figures["tokens"]))] if "tokens" in figures else []
    parts += [texts.say("figure_speed", number=figures["per_s"])] if "per_s" in figures else []
    parts += [texts.say("figure_first", number=figures["first_s"])] if "first_s" in figures else []
    if figures.get("context", 0) >= 1:
        share = 100 * (figures.get("prompt", 0) + figures.get("tokens", 0)) / figures["context"]
        parts.append(texts.say("figure_context", percent=max(1, round(share))))
    return " · ".join(parts)
