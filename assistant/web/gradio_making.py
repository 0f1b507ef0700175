"""The Gradio page's workshop: a form, and the job that it begins, which every visitor sees."""

import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.processing_utils import save_file_to_cache

from assistant.web import making
from assistant.web.gradio_parts import LATEST, QUICK, Parts, model_choices
from assistant.web.gradio_workbench import (
    Form,
    Result,
    View,
    as_table,
    build_form,
    build_view,
    curves,
    filled,
    seen,
)
from assistant.web.making import Job, Refused, Wish, preview, read_job, wish_from
from assistant.web.making_progress import BUSY, Progress, progress_of
from assistant.web.models import Found
from assistant.web.texts import Texts

LOOK_S = 4.0  # between two looks at a job that runs: each costs it as much time on two cores


@dataclass(frozen=True)
class Workshop:
    """`drawn`: which job was drawn, in which state, so that curves are not drawn again for nothing."""

    parts: Parts
    form: Form
    view: View
    result: Result
    timer: gr.Timer
    drawn: gr.State

    @property
    def outputs(self) -> list[Any]:
        fixed = [self.form.box, self.form.said, self.timer, self.drawn]
        return [*fixed, *vars(self.view).values(), *vars(self.result).values()]


def build_workshop(parts: Parts, tab: gr.Tab) -> None:
    gr.Markdown(parts.say("make_hint"), elem_classes="hint", elem_id="make-hint")
    view, result = build_view(parts)
    form = build_form(parts)
    wire_form(parts, form)
    wire_job(Workshop(parts, form, view, result, gr.Timer(LOOK_S, active=False), gr.State("")), tab)
    wire_chat(parts, result, tab)


def wire_form(parts: Parts, form: Form) -> None:
    def look(name: str, owner: str, facts: str, language: str) -> dict[Any, Any]:
        """The preview of what is typed so far, or why it cannot be."""
        texts, wish = parts.texts(language), wish_from(name, owner, facts)
        if not wish.name:
            return {form.rows: gr.Dataframe(visible=False), form.said: ""}
        try:
            rows = preview(wish, texts.code)
        except ValueError as error:
            return {form.rows: gr.Dataframe(visible=False), form.said: refused(error, texts)}
        heads = [texts["make_question"], texts["make_answer"]]
        table = gr.Dataframe(as_table(heads, rows), label=texts["make_preview"], visible=True)
        return {form.rows: table, form.said: ""}

    gr.on(
        [box.change for box in (*form.inputs, parts.language)],
        look,
        [*form.inputs, parts.language],
        [form.rows, form.said],
        **LATEST,
    )


def refused(error: Exception, texts: Texts) -> str:
    return texts.say_error("make_refused", error)


def show(shop: Workshop, language: str, before: str = "") -> dict[Any, Any]:
    """The job as it is now; its curves and its result only when they differ from those of `before`."""
    texts, job = shop.parts.texts(language), read_job()
    if not job:
        return {shop.view.box: gr.Column(visible=False), shop.timer: gr.Timer(active=False)}
    progress = progress_of(job)
    is_busy = progress.status in BUSY
    entries = len(progress.losses), len(progress.watched)
    now = f"{job.folder} {progress.status} {entries} {texts.code}"
    shown = seen(shop.view, job, progress, texts)
    if now != before or not is_busy:  # nothing looks again at what is over, so its whole answer counts
        shown |= curves(shop.view, progress, texts) | ended(shop.parts, shop.result, job, progress, texts)
    form, timer = gr.Column(visible=not is_busy), gr.Timer(active=is_busy)
    return {shop.form.box: form, shop.timer: timer, shop.drawn: now, **shown}


def begin(shop: Workshop, wish: Wish, language: str) -> dict[Any, Any]:
    try:
        making.start(wish)
    except Refused as error:
        gr.Info(shop.parts.texts(language).say("make_" + error.kind, name=error.name), title="")
    except (ValueError, OSError) as error:
        return {shop.form.said: refused(error, shop.parts.texts(language))}
    return show(shop, language) | {shop.form.said: ""}


def wire_job(shop: Workshop, tab: gr.Tab) -> None:
    def make(name: str, owner: str, facts: str, language: str) -> dict[Any, Any]:
        return begin(shop, wish_from(name, owner, facts), language)

    def go_on(language: str) -> dict[Any, Any]:
        job = read_job()
        return begin(shop, job.wish, language) if job else show(shop, language)

    def stop(language: str) -> dict[Any, Any]:
        making.stop()
        return show(shop, language)

    form, view, look, outputs = shop.form, shop.view, partial(show, shop), shop.outputs
    language = shop.parts.language
    settings: dict[str, Any] = QUICK | {"trigger_mode": "once"}
    # Only what goes through the queue can say something in a corner of the page.
    said: dict[str, Any] = settings | {"queue": True}
    # Not when the page loads: until its language is known, the curves would be drawn with other names.
    gr.on([language.change, tab.select], look, language, outputs, **LATEST)
    shop.timer.tick(look, [language, shop.drawn], outputs, **settings)
    gr.on([form.make.click, form.name.submit], make, [*form.inputs, language], outputs, **said)
    view.go_on.click(go_on, language, outputs, **said)
    view.stop.click(stop, language, outputs, **settings)


def ended(parts: Parts, result: Result, job: Job, progress: Progress, texts: Texts) -> dict[Any, Any]:
    """What a finished job gives; nothing before. Gradio empties its own folder, where the file lies."""
    found = made_in(parts, job) if progress.status == "done" else None
    if not found:
        return {result.box: gr.Column(visible=False)}
    with tempfile.TemporaryDirectory() as place:
        packed = making.zip_adapter(job.folder, Path(place))
        kept = save_file_to_cache(packed, result.file.GRADIO_CACHE)
    return filled(result, found, kept, texts)


def wire_chat(parts: Parts, result: Result, tab: gr.Tab) -> None:
    tabs: Any = tab.parent

    def chat(language: str) -> dict[Any, Any]:
        job = read_job()
        if not job or not (found := made_in(parts, job)):
            return {}
        choices = model_choices(parts.engines, parts.texts(language))
        return {parts.model: gr.Dropdown(choices, value=found.id), tabs: gr.Tabs(selected="chat")}

    result.chat.click(chat, parts.language, [parts.model, tabs], **QUICK)


def made_in(parts: Parts, job: Job) -> Found | None:
    path = str(job.folder / "model")
    return next((model for model in parts.engines.models() if model.path == path), None)
