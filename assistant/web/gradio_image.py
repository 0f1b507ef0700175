"""The tab where a person shows pictures and asks about them: widgets and one generator."""

import asyncio
import time
from collections.abc import AsyncIterator, Generator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.processing_utils import save_pil_to_cache

from assistant.images import open_image
from assistant.web.gradio_messages import drawn
from assistant.web.gradio_parts import LATEST, PRIVATE, QUICK, Parts, answers_box, heard, text_box
from assistant.web.looking import Sights, labels_of, sights_of, why_none
from assistant.web.picture_chat import Look, reply, seen_by, take_picture

THUMBNAIL = 320  # pixels, of a picture in the conversation


@dataclass(frozen=True)
class Stage:
    image: gr.Image
    pasted: gr.UploadButton
    """Where head.html puts what is pasted with Ctrl+V."""
    seen: gr.Image
    said: gr.Markdown
    who: gr.Dropdown
    chat: gr.Chatbot
    box: gr.Textbox
    new: gr.Button
    turns: gr.State
    pending: gr.State
    """The picture that goes with the next question, as a `data:` address."""


def image_tab(page: gr.Blocks, parts: Parts) -> None:
    with gr.Tab(parts.say("picture"), elem_id="picture-tab") as tab:
        sights, none = sights_of(parts.engines.own), gr.Markdown(elem_id="picture-none")
        with gr.Column(visible="hidden") as shown:
            stage = build_stage(parts)
        chosen = wire_choices(page, tab, parts, stage, (none, shown))
        wire_loading(chosen, parts, sights, stage)
        wire_picture(parts, sights, stage)
        wire_questions(parts, sights, stage)


def build_stage(parts: Parts) -> Stage:
    say = parts.say
    with gr.Row(elem_id="looking"):
        with gr.Column(scale=2, min_width=280):
            image = gr.Image(
                label=say("picture_add"),
                sources=["upload", "clipboard", "webcam"],
                type="filepath",
                height=280,
                buttons=["fullscreen"],
                elem_id="picture",
            )
            with gr.Row(elem_id="picture-pasted"):  # not to be seen
                pasted = gr.UploadButton()
            said = gr.Markdown(elem_classes="hint", elem_id="picture-said")
            seen = gr.Image(
                label=say("picture_seen"),
                interactive=False,
                visible=False,
                height=224,
                buttons=[],
                elem_id="seen",
            )
            who = gr.Dropdown([], label=say("picture_who"), visible=False, elem_id="picture-who")
        with gr.Column(scale=3, min_width=280):
            chat = build_chat(say("picture"), say("picture_hint"))
            box = text_box(parts, "picture_ask", "send", elem_id="picture-box", max_length=20000)
            new = gr.Button(say("picture_new"), size="sm", elem_id="picture-new")
    return Stage(image, pasted, seen, said, who, chat, box, new, gr.State([]), gr.State(""))


def build_chat(label: Any, placeholder: Any) -> gr.Chatbot:
    return answers_box(
        label=label,
        show_label=False,
        height="calc(100dvh - 260px)",
        min_height=260,
        elem_classes="side",
        elem_id="picture-chat",
        placeholder=placeholder,
    )


def wire_choices(page: gr.Blocks, tab: gr.Tab, parts: Parts, stage: Stage, around: tuple[Any, ...]) -> Any:
    """Who can look is looked for again each time: models are made while the page is open.

    Returns the event after which a visitor of the tab has somebody chosen.
    """
    none, shown = around

    def look(who: str | None, language: str) -> dict[Any, Any]:
        choices = [(label, id) for id, label in labels_of(sights_of(parts.engines.own).found()).items()]
        if not choices:
            why = gr.Markdown(parts.texts(language)[why_none()], visible=True)
            return {none: why, shown: gr.Column(visible="hidden")}
        chosen = who if any(who == id for _, id in choices) else choices[0][1]
        return {
            none: gr.Markdown(visible=False),
            shown: gr.Column(visible=True),
            # Not "hidden": a column that is shown shows the hidden ones in it too.
            stage.who: gr.Dropdown(choices, value=chosen, visible=len(choices) > 1),
        }

    here, changed = [stage.who, parts.language], [*around, stage.who]
    gr.on([page.load, parts.language.change], look, here, changed, **LATEST)
    return tab.select(look, here, changed, **LATEST)


def wire_loading(chosen: Any, parts: Parts, sights: Sights, stage: Stage) -> None:
    async def load(who: str, language: str) -> AsyncIterator[str]:
        """What the page says while someone gets eyes behind it."""
        texts, begin = parts.texts(language), time.monotonic()
        if not sights.found():
            return
        await asyncio.to_thread(sights.get, who, True)
        while True:
            seconds = int(time.monotonic() - begin)
            said = await asyncio.to_thread(sights.progress, who, seconds, texts)
            yield said
            if (engine := sights.known(who)) is None or engine.status != "loading":
                break
            await asyncio.sleep(0.5)

    def translate(said: str, who: str, language: str) -> str:
        return sights.progress(who, 0, parts.texts(language)) if said else ""

    parts.language.change(translate, [stage.said, stage.who, parts.language], stage.said, **LATEST)
    settings = PRIVATE | {"concurrency_limit": None, "trigger_mode": "always_last"}
    for happens in (chosen.then, stage.who.input):
        loaded = happens(load, [stage.who, parts.language], stage.said, **settings)
        # only now is known which picture waits: one may have come meanwhile
        loaded.then(partial(shown_to, sights), [stage.who, stage.pending], stage.seen, **PRIVATE)


def shown_to(sights: Sights, who: str, pending: str) -> gr.Image:
    """What the model is shown of the picture that waits, if it has loaded."""
    engine = sights.known(who)
    seen = seen_by(engine, pending) if pending and engine else None
    return gr.Image(seen, visible=seen is not None)


def wire_picture(parts: Parts, sights: Sights, stage: Stage) -> None:
    def look(image: Any, who: str, language: str) -> tuple[str, str, gr.Image]:
        """Opens what was uploaded, pasted, dropped or taken; nothing of it is trusted before."""
        path = image.get("path") if isinstance(image, dict) else getattr(image, "path", None)
        if not path:
            return "", "", gr.Image(None, visible=False)
        texts = parts.texts(language)
        pending, why = take_picture(Path(path), texts)
        return pending, why or texts["picture_next"], shown_to(sights, who, pending)

    stage.pasted.upload(lambda path: path, stage.pasted, stage.image, **PRIVATE)
    # Without preprocessing: Gradio would open the picture itself, without our limits.
    changed = stage.image.change(
        look,
        [stage.image, stage.who, parts.language],
        [stage.pending, stage.said, stage.seen],
        preprocess=False,
        trigger_mode="always_last",
        **PRIVATE,
    )
    changed.failure(
        lambda language: parts.texts(language)["picture_unknown"], parts.language, stage.said, **QUICK
    )


def wire_questions(parts: Parts, sights: Sights, stage: Stage) -> None:
    def ask(
        question: str, who: str, turns: list[Look], pending: str, request: gr.Request, *values: Any
    ) -> Generator[Any, None, None]:
        asked = heard(parts, request, values)
        if not pending and not any(turn.get("images") for turn in turns):
            yield {stage.said: asked.texts["picture_wanted"]}
            return
        if not (question.strip() or pending):
            return
        turns = [*turns, question_of(question.strip() or asked.texts["picture_what"], pending, stage)]
        busy = gr.Textbox("", submit_btn=False, stop_btn=parts.say("stop"))
        beside: dict[Any, Any] = {stage.box: busy, stage.pending: "", stage.said: ""}
        answering = reply(sights.get(who, again=True), turns, asked.sampling, asked.texts, asked.client)
        with closing(answering) as states:
            for shown in states:
                last: Look = {**turns[-1], "note": shown.note}
                growing = [*turns[:-1], last]
                seen = messages_of(growing, asked.texts, shown.meanwhile)
                yield beside | {stage.chat: seen, stage.turns: turns}
                beside = {}
        yield {stage.chat: messages_of(turns, asked.texts), stage.turns: turns, stage.box: at_rest(parts)}

    inputs = [stage.box, stage.who, stage.turns, stage.pending, *parts.asked]
    outputs = [stage.box, stage.chat, stage.said, stage.turns, stage.pending]
    running = stage.box.submit(ask, inputs, outputs, concurrency_limit=16, **PRIVATE)
    running.failure(lambda: at_rest(parts), None, stage.box, **QUICK)

    def stop(turns: list[Look], language: str) -> tuple[Any, Any]:
        return messages_of(turns, parts.texts(language)), at_rest(parts)

    stage.box.stop(stop, [stage.turns, parts.language], [stage.chat, stage.box], cancels=[running], **QUICK)

    def begin() -> dict[Any, Any]:
        empty: dict[Any, Any] = {
            stage.chat: [],
            stage.turns: [],
            stage.pending: "",
            stage.said: "",
            stage.image: None,
        }
        return empty | {stage.seen: gr.Image(None, visible=False), stage.box: at_rest(parts)}

    everything = [*outputs, stage.image, stage.seen]
    stage.new.click(begin, None, everything, cancels=[running], **QUICK)


def at_rest(parts: Parts) -> gr.Textbox:
    return gr.Textbox(submit_btn=parts.say("send"), stop_btn=False)


def question_of(question: str, pending: str, stage: Stage) -> Look:
    turn: Look = {"role": "user", "content": question}
    if pending:
        image = open_image(pending)
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        turn["images"] = [pending]
        turn["files"] = [save_pil_to_cache(image, cache_dir=stage.chat.GRADIO_CACHE, format="png")]
    return turn


def messages_of(turns: list[Look], texts: Any, meanwhile: str = "") -> list[Any]:
    """As drawn(), each picture before its question."""
    messages: list[Any] = []
    for turn in turns:
        messages += [gr.ChatMessage(gr.Image(path, buttons=[]), "user") for path in turn.get("files", ())]
        messages += drawn([turn], texts)
    return [*messages, gr.ChatMessage(meanwhile)] if meanwhile else messages
