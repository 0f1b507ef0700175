"""The tab that puts one question to two models: their answers grow side by side, a person judges blind."""

from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr

from assistant.conversations import user
from assistant.web import Shown, answer, conversation
from assistant.web.comparison import LONGEST, VOTES, Pair, draw_pair, names, tally_line, together
from assistant.web.gradio_messages import drawn, turn_of
from assistant.web.gradio_parts import (
    PRIVATE,
    QUICK,
    Asked,
    Parts,
    answers_box,
    heard,
    model_choices,
    secret,
    text_box,
)
from assistant.web.models import base_of
from assistant.web.texts import Texts, load_texts, pick_language


@dataclass(frozen=True)
class Stage:
    one: gr.Dropdown
    other: gr.Dropdown
    blind: gr.Checkbox
    sides: list[gr.Chatbot]
    votes: dict[str, gr.Button]
    said: gr.Markdown
    box: gr.Textbox
    pair: gr.State  # on the server, so that nobody can look before the vote

    @property
    def outputs(self) -> list[Any]:
        return [*self.sides, *self.votes.values(), self.said, self.box, self.pair]


def compare_tab(page: gr.Blocks, parts: Parts) -> None:
    with gr.Tab(parts.say("compare"), elem_id="compare-tab"):
        if len(parts.engines.models()) < 2:
            gr.Markdown(parts.say("compare_none"))
            return
        stage = build_stage(parts)
        wire_questions(parts, stage)
        wire_labels(page, parts, stage)
        wire_votes(page, parts, stage)


def build_stage(parts: Parts) -> Stage:
    say, models = parts.say, parts.engines.models()
    choices = model_choices(parts.engines, load_texts()[pick_language(None)])
    second = base_of(models[0], models) or models[1]
    fixed: dict[str, Any] = {"filterable": False, "min_width": 140}
    gr.Markdown(say("compare_hint"), elem_classes="hint")
    if models[0].kind != "endpoint":
        gr.Markdown(say("compare_turns"), elem_classes="hint")
    with gr.Row(elem_id="pair"):
        one = gr.Dropdown(choices, value=models[0].id, label=say("compare_left"), **fixed)
        other = gr.Dropdown(choices, value=second.id, label=say("compare_right"), **fixed)
    blind = gr.Checkbox(True, label=say("blind"), container=False)
    with gr.Row():
        sides = [build_side(say("side_a")), build_side(say("side_b"))]
    with gr.Row(elem_id="votes"):
        votes = {key: gr.Button(say(key), size="sm", min_width=80, interactive=False) for key in VOTES}
    said = gr.Markdown(elem_classes="hint")
    return Stage(one, other, blind, sides, votes, said, build_box(parts), gr.State(None))


def build_side(label: Any) -> gr.Chatbot:
    height = "calc(100dvh - 400px)"
    return answers_box(label=label, height=height, min_height=200, min_width=260, elem_classes="side")


def build_box(parts: Parts) -> gr.Textbox:
    return text_box(parts, "compare_question", "send", elem_id="compare-box", max_length=20000)


def wire_questions(parts: Parts, stage: Stage) -> None:
    def compare(
        question: str, one: str, other: str, blind: bool, request: gr.Request, *values: Any
    ) -> Generator[Any, None, None]:
        if question.strip():
            asked = heard(parts, request, values)
            yield from run(parts, stage, draw_pair(one, other, question, blind), asked)

    inputs = [stage.box, stage.one, stage.other, stage.blind, *parts.asked]
    running = stage.box.submit(compare, inputs, stage.outputs, concurrency_limit=16, **PRIVATE)
    running.failure(lambda: at_rest(parts), None, stage.box, **QUICK)
    stage.box.stop(lambda: at_rest(parts), None, stage.box, cancels=[running], **QUICK)


def run(parts: Parts, stage: Stage, pair: Pair, asked: Asked) -> Generator[Any, None, None]:
    """Both answers growing; closing it ends both."""
    left, right = ("A", "B") if pair.blind else names(parts.engines, pair.left, pair.right)
    beside: dict[Any, Any] = {
        stage.box: gr.Textbox(submit_btn=False, stop_btn=parts.say("stop")),
        stage.said: "",
        stage.pair: None,
        **{button: gr.Button(interactive=False) for button in stage.votes.values()},
    }
    messages = conversation([user(pair.question)], asked.system_prompt)
    sampling = replace(asked.sampling, max_new_tokens=min(asked.sampling.max_new_tokens, LONGEST))
    states = [
        answer(parts.engines.get(id), messages, sampling, asked.texts, asked.client)
        for id in (pair.left, pair.right)
    ]
    for shown in together(states):
        yield beside | {
            side: gr.Chatbot(side_of(pair.question, one, asked.texts), label=label)
            for side, one, label in zip(stage.sides, shown, (left, right), strict=True)
        }
        beside = {}
    yield {
        stage.box: at_rest(parts),
        stage.pair: pair,
        **{button: gr.Button(interactive=True) for button in stage.votes.values()},
    }


def side_of(question: str, shown: Shown, texts: Texts) -> list[Any]:
    return drawn([{"role": "user", "content": question}, turn_of(shown)], texts, shown.meanwhile)


def at_rest(parts: Parts) -> gr.Textbox:
    return gr.Textbox(submit_btn=parts.say("send"), stop_btn=False)


def wire_labels(page: gr.Blocks, parts: Parts, stage: Stage) -> None:
    def label(language: str) -> list[gr.Dropdown]:
        choices = model_choices(parts.engines, parts.texts(language))
        return [gr.Dropdown(choices), gr.Dropdown(choices)]

    changes = [page.load, parts.language.change]
    gr.on(changes, label, parts.language, [stage.one, stage.other], **QUICK)


def wire_votes(page: gr.Blocks, parts: Parts, stage: Stage) -> None:
    def tally(one: str, other: str, language: str) -> str:
        return tally_line(parts.store, parts.engines, one, other, parts.texts(language))

    def vote_for(key: str) -> Any:
        def vote(pair: Pair | None, browser: Any, language: str) -> dict[Any, Any]:
            off = {button: gr.Button(interactive=False) for button in stage.votes.values()}
            if not pair:
                return off
            parts.store.vote(secret(browser), pair.question, pair.left, pair.right, VOTES[key])
            left, right = names(parts.engines, pair.left, pair.right)
            said = parts.texts(language).say("voted", a=left, b=right)
            labels = {
                side: gr.Chatbot(label=name) for side, name in zip(stage.sides, (left, right), strict=True)
            }
            return (
                off
                | labels
                | {stage.pair: None, stage.said: f"{said} {tally(pair.left, pair.right, language)}"}
            )

        return vote

    for key, button in stage.votes.items():
        button.click(vote_for(key), [stage.pair, parts.browser, parts.language], stage.outputs, **QUICK)
    here = [stage.one, stage.other, parts.language]
    gr.on(
        [page.load, parts.language.change, stage.one.change, stage.other.change],
        tally,
        here,
        stage.said,
        **QUICK,
    )
