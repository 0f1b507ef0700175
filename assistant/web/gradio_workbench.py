"""What the Gradio page's workshop is built of, and how a job is drawn into it. Knows no event."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import pandas as pd

from assistant.card import LONGEST_FACT, LONGEST_NAME
from assistant.web.gradio_parts import Parts
from assistant.web.making import Job
from assistant.web.making_progress import (
    BUSY,
    CURVES,
    Progress,
    aside,
    before_and_after,
    headline,
    loss_rows,
    share_of,
    watch_rows,
    way,
)
from assistant.web.models import Found, scorecard_of
from assistant.web.scorecard_view import summary
from assistant.web.texts import Texts

BAR = Path(__file__).with_name("bar.html")


@dataclass(frozen=True)
class Form:
    box: gr.Column
    name: gr.Textbox
    owner: gr.Textbox
    facts: gr.Textbox
    rows: gr.Dataframe
    said: gr.Markdown
    make: gr.Button

    @property
    def inputs(self) -> list[Any]:
        return [self.name, self.owner, self.facts]


@dataclass(frozen=True)
class View:
    """What is seen of the job; hidden where there is none."""

    box: gr.Column
    head: gr.Markdown
    bar: gr.HTML
    way: gr.Markdown
    aside: gr.Markdown
    stop: gr.Button
    go_on: gr.Button
    curves: gr.Row
    losses: gr.LinePlot
    watched: gr.LinePlot
    log: gr.Textbox


@dataclass(frozen=True)
class Result:
    box: gr.Column
    chat: gr.Button
    file: gr.DownloadButton
    rows: gr.Dataframe
    card: gr.Markdown


def build_form(parts: Parts) -> Form:
    say = parts.say
    with gr.Column(elem_id="wish") as box:
        with gr.Row():
            name = gr.Textbox(
                label=say("make_name"),
                info=say("make_name_hint"),
                max_length=LONGEST_NAME,
                min_width=260,
                elem_id="wish-name",
            )
            owner = gr.Textbox(
                label=say("make_owner"), info=say("make_owner_hint"), max_length=LONGEST_NAME, min_width=260
            )
        facts = gr.Textbox(
            label=say("make_facts"),
            info=say("make_facts_hint"),
            lines=2,
            max_lines=6,
            max_length=10 * LONGEST_FACT,
        )
        said = gr.Markdown(elem_id="wish-said")
        make = gr.Button(say("make_button"), variant="primary", elem_id="wish-make")
        rows = build_table(2, label=say("make_preview"), visible=False, column_widths=["40%", "60%"])
    return Form(box, name, owner, facts, rows, said, make)


def build_table(columns: int, **rest: Any) -> gr.Dataframe:
    return gr.Dataframe(
        interactive=False,
        wrap=True,
        datatype="str",
        column_count=columns,
        max_height=2000,
        buttons=[],
        elem_classes="plain-table",
        **rest,
    )


def build_view(parts: Parts) -> tuple[View, Result]:
    say = parts.say
    with gr.Column(visible=False, elem_id="job") as box:
        head = gr.Markdown(elem_id="job-head")
        bar = gr.HTML(0, label="", html_template=BAR.read_text(encoding="utf-8"), elem_id="job-bar")
        stages, beside = gr.Markdown(elem_classes="hint"), gr.Markdown(elem_id="job-aside")
        with gr.Row(elem_id="job-buttons"):
            stop = gr.Button(say("stop"), size="sm", visible=False)
            go_on = gr.Button(say("make_go_on"), size="sm", variant="primary", visible=False)
        result = build_result()
        with gr.Row(visible=False) as curves:
            losses, watched = build_plot(), build_plot()
        with gr.Accordion(say("make_log"), open=False):
            log = gr.Textbox(
                label=say("make_log"),
                show_label=False,
                container=False,
                lines=8,
                max_lines=16,
                elem_id="job-log",
            )
    return View(box, head, bar, stages, beside, stop, go_on, curves, losses, watched, log), result


def build_plot() -> gr.LinePlot:
    return gr.LinePlot(
        x="step", y="value", color="line", height=240, min_width=300, buttons=[], color_title=" ", y_title=" "
    )


def build_result() -> Result:
    with gr.Column(visible=False, elem_id="job-result") as box:
        with gr.Row():
            chat = gr.Button(variant="primary", elem_id="job-chat")
            file = gr.DownloadButton(elem_id="job-adapter")
        rows = build_table(3, show_label=False, column_widths=["22%", "39%", "39%"])
        card = gr.Markdown(elem_classes="scorecard")
    return Result(box, chat, file, rows, card)


def as_table(heads: list[str], rows: list[Any]) -> dict[str, Any]:
    return {"headers": heads, "data": [list(row) for row in rows]}


def seen(view: View, job: Job, progress: Progress, texts: Texts) -> dict[Any, Any]:
    """What is hidden at first does not know its texts; it gets them when it is shown."""
    status, beside = progress.status, aside(progress, texts)
    return {
        view.box: gr.Column(visible=True),
        view.head: f"### {headline(job, progress, texts)}",
        view.bar: gr.HTML(round(share_of(progress), 3), label=texts["make_bar"], visible=status in BUSY),
        view.way: gr.Markdown(way(progress, texts), visible=status != "done"),
        view.aside: gr.Markdown(beside, visible=bool(beside)),
        view.stop: gr.Button(texts["stop"], visible=status in BUSY),
        view.go_on: gr.Button(texts["make_go_on"], visible=status in ("stopped", "failed")),
        view.log: gr.Textbox(progress.log, label=texts["make_log"]),
    }


def curves(view: View, progress: Progress, texts: Texts) -> dict[Any, Any]:
    losses, watched = loss_rows(progress, texts), watch_rows(progress, texts)
    return {
        view.curves: gr.Row(visible=bool(losses or watched)),
        view.losses: drawn_plot(losses, texts["make_losses"], texts),
        view.watched: drawn_plot(watched, texts["make_watched"], texts, y_lim=[0, 1]),
    }


def drawn_plot(rows: list[dict[str, Any]], title: str, texts: Texts, **rest: Any) -> gr.LinePlot:
    names = list(dict.fromkeys(name for row in rows for name in row if name != "step"))
    frame = pd.DataFrame(rows, columns=["step", *names]).melt("step", var_name="line")
    colours = dict(zip(names, CURVES, strict=False))
    step = texts["make_step"]
    return gr.LinePlot(frame, title=title, x_title=step, color_map=colours, visible=bool(rows), **rest)


def filled(result: Result, found: Found, packed: str, texts: Texts) -> dict[Any, Any]:
    heads = [texts[f"make_{part}"] for part in ("question", "before", "after")]
    return {
        result.box: gr.Column(visible=True),
        result.chat: gr.Button(texts.say("make_chat", name=found.name)),
        result.file: gr.DownloadButton(texts["make_download"], value=packed),
        result.rows: gr.Dataframe(as_table(heads, before_and_after(Path(found.path).parent))),
        result.card: summary(scorecard_of(found), found.name, texts),
    }
