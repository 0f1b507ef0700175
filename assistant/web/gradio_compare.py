"""The tab that puts one question to two models: their answers grow side by side, a person judges blind."""

from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from assistant.conversations import user
from assistant.web import Shown, answer, conversation
from assistant.web.chats import Running
from assistant.web.comparison import (
    VOTES,
    Pair,
    can_judge,
    draw_pair,
    names,
    sampling_of_pair,
    tally_line,
    together,
    two_of,
    without_figures,
)
from assistant.web.gradio_messages import drawn, turn_of
from assistant.web.gradio_parts import (
    LATEST,
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
from assistant.web.texts import Texts

COMPARING = Running()


@dataclass
class Compared:
    """A question put to two models, and what they have answered so far."""

    pair: Pair
    shown: list[Shown] = field(default_factory=lambda: [Shown(), Shown()])


@dataclass(frozen=True)
class Stage:
    turns: gr.Markdown
    """How two models share one machine, where they do."""
    one: gr.Dropdown
    other: gr.Dropdown
    blind: gr.Checkbox
    sides: list[gr.Chatbot]
    votes: dict[str, gr.Button]
    said: gr.Markdown
    box: gr.Textbox
    compared: gr.State  # on the server, so that nobody can look before the vote

    @property
    def outputs(self) -> list[Any]:
        return [*self.sides, *self.votes.values(), self.said, self.box, self.compared]


def compare_tab(page: gr.Blocks, parts: Parts) -> None:
    with gr.Tab(parts.say("compare"), elem_id="compare-tab") as tab:
        none = gr.Markdown(elem_id="compare-none")
        with gr.Column(visible="hidden") as shown:  # hidden, not absent: so it is put into each language
            stage = build_stage(parts)
        wire_choices(page, tab, parts, stage, (none, shown))
        wire_questions(parts, stage)
        wire_votes(page, parts, stage)


def build_stage(parts: Parts) -> Stage:
    say = parts.say
    fixed: dict[str, Any] = {"filterable": False, "min_width": 140}
    gr.Markdown(say("compare_hint"), elem_classes="hint")
    turns = gr.Markdown(elem_classes="hint")
    with gr.Row(elem_id="pair"):
        one = gr.Dropdown([], label=say("compare_left"), **fixed)
        other = gr.Dropdown([], label=say("compare_right"), **fixed)
    blind = gr.Checkbox(True, label=say("blind"), container=False)
    box = text_box(parts, "compare_question", "send", elem_id="compare-box", max_length=20000)
    with gr.Row():
        sides = [build_side(say("side_a")), build_side(say("side_b"))]
    with gr.Row(elem_id="votes"):
        votes = {key: gr.Button(say(key), size="sm", min_width=80, interactive=False) for key in VOTES}
    said = gr.Markdown(elem_classes="hint", elem_id="compare-said")
    return Stage(turns, one, other, blind, sides, votes, said, box, gr.State(None))


def build_side(label: Any) -> gr.Chatbot:
    height = "calc(100dvh - 510px)"
    return answers_box(label=label, height=height, min_height=200, min_width=260, elem_classes="side")


def wire_choices(page: gr.Blocks, tab: gr.Tab, parts: Parts, stage: Stage, around: tuple[Any, ...]) -> None:
    """What there is to compare is looked for again each time: models are made while the page is open."""
    none, shown = around

    def look(one: str | None, other: str | None, language: str) -> dict[Any, Any]:
        texts, models = parts.texts(language), parts.engines.models()
        if len(models) < 2:
            said = gr.Markdown(texts["compare_none"], visible=True)
            return {none: said, shown: gr.Column(visible="hidden")}
        choices = model_choices(parts.engines, texts)
        one, other = two_of(models, one, other)
        return {
            none: gr.Markdown(visible=False),
            shown: gr.Column(visible=True),
            stage.turns: "" if models[0].kind == "endpoint" else texts["compare_turns"],
            stage.one: gr.Dropdown(choices, value=one),
            stage.other: gr.Dropdown(choices, value=other),
        }

    here, changed = [stage.one, stage.other, parts.language], [*around, stage.turns, stage.one, stage.other]
    gr.on([page.load, tab.select, parts.language.change], look, here, changed, **LATEST)


def wire_questions(parts: Parts, stage: Stage) -> None:
    def compare(
        question: str, one: str | None, other: str | None, blind: bool, request: gr.Request, *values: Any
    ) -> Generator[Any, None, None]:
        asked, models = heard(parts, request, values), parts.engines.models()
        if len(models) < 2:
            return
        one, other = two_of(models, one, other)
        if one == other:
            yield {stage.said: asked.texts["compare_same"]}
        elif question.strip():
            session = str(request.session_hash)
            yield from run(parts, stage, Compared(draw_pair(one, other, question, blind)), asked, session)

    inputs = [stage.box, stage.one, stage.other, stage.blind, *parts.asked]
    running = stage.box.submit(compare, inputs, stage.outputs, concurrency_limit=16, **PRIVATE)
    running.failure(lambda: at_rest(parts), None, stage.box, **QUICK)

    def stop(request: gr.Request) -> None:
        COMPARING.stop(str(request.session_hash))

    stage.box.stop(stop, None, None, **QUICK)


def run(
    parts: Parts, stage: Stage, compared: Compared, asked: Asked, session: str
) -> Generator[Any, None, None]:
    """Both answers growing; stopping or closing it ends both."""
    pair, shown = compared.pair, compared.shown
    yield {
        stage.box: gr.Textbox(submit_btn=False, stop_btn=parts.say("stop")),
        stage.said: "",
        stage.compared: None,
        **buttons(stage, False),
        **sides_of(parts, stage, compared, asked.texts, pair.blind),
    }
    with COMPARING.begin(session) as stop, closing(both(parts, compared, asked)) as growing:
        for _ in growing:
            if not stop or stop.is_set():
                break
            yield sides_of(parts, stage, compared, asked.texts, pair.blind)
    is_open = can_judge(shown)
    yield {
        stage.box: at_rest(parts),
        stage.compared: compared if is_open else None,
        **buttons(stage, is_open),
        **sides_of(parts, stage, compared, asked.texts, pair.blind and is_open),
    }


def both(parts: Parts, compared: Compared, asked: Asked) -> Generator[None, None, None]:
    pair = compared.pair
    messages = conversation([user(pair.question)], asked.system_prompt)
    sampling = sampling_of_pair(asked.sampling)
    states = [
        answer(parts.engines.get(id), messages, sampling, asked.texts, asked.client)
        for id in (pair.left, pair.right)
    ]
    return together(states, compared.shown, asked.texts)


def sides_of(
    parts: Parts, stage: Stage, compared: Compared, texts: Texts, is_hidden: bool
) -> dict[Any, gr.Chatbot]:
    """Both answers, each with its model's name and figures unless who is who `is_hidden`."""
    pair, shown = compared.pair, compared.shown
    labels = ("A", "B") if is_hidden else names(parts.engines, pair.left, pair.right)
    answers = [without_figures(one) if is_hidden else one for one in shown]
    return {
        side: gr.Chatbot(side_of(pair.question, one, texts), label=label)
        for side, one, label in zip(stage.sides, answers, labels, strict=True)
    }


def side_of(question: str, shown: Shown, texts: Texts) -> list[Any]:
    return drawn([{"role": "user", "content": question}, turn_of(shown)], texts, shown.meanwhile)


def buttons(stage: Stage, are_on: bool) -> dict[Any, gr.Button]:
    return {button: gr.Button(interactive=are_on) for button in stage.votes.values()}


def at_rest(parts: Parts) -> gr.Textbox:
    return gr.Textbox(submit_btn=parts.say("send"), stop_btn=False)


def wire_votes(page: gr.Blocks, parts: Parts, stage: Stage) -> None:
    def tally(one: str, other: str, language: str) -> str:
        return tally_line(parts.store, parts.engines, one, other, parts.texts(language))

    def vote_for(key: str) -> Any:
        def vote(compared: Compared | None, browser: Any, language: str) -> dict[Any, Any]:
            off: dict[Any, Any] = {**buttons(stage, False), stage.compared: None}
            if not compared:
                return off
            pair, texts = compared.pair, parts.texts(language)
            parts.store.vote(secret(browser), pair.question, pair.left, pair.right, VOTES[key])
            left, right = names(parts.engines, pair.left, pair.right)
            said = f"{texts.say('voted', a=left, b=right)} {tally(pair.left, pair.right, language)}"
            return off | sides_of(parts, stage, compared, texts, False) | {stage.said: said}

        return vote

    for key, button in stage.votes.items():
        button.click(vote_for(key), [stage.compared, parts.browser, parts.language], stage.outputs, **QUICK)
    here = [stage.one, stage.other, parts.language]
    changes = [page.load, parts.language.change, stage.one.change, stage.other.change]
    gr.on(changes, tally, here, stage.said, **LATEST)
