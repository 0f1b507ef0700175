"""The Streamlit page's other tabs: one question to two models, judged blind; and the scorecard."""

from contextlib import closing
from typing import Any

import streamlit as st

from assistant.conversations import user
from assistant.web import Shown, answer, conversation
from assistant.web.comparison import (
    VOTES,
    Pair,
    can_judge,
    draw_pair,
    names,
    sampling_of_pair,
    tally_line,
    together,
    without_figures,
)
from assistant.web.models import base_of, scorecard_of
from assistant.web.scorecard_view import summary
from assistant.web.streamlit_parts import (
    browser,
    choose_model,
    client,
    draw,
    draw_again_after_stop,
    engines,
    plain_label,
    sampling_now,
    store,
    texts_now,
)
from assistant.web.texts import Texts

state = st.session_state


def compare_tab() -> None:
    texts, models = texts_now(), engines().models()
    st.caption(texts["compare_hint"])
    if len(models) < 2:
        st.info(texts["compare_none"])
        return
    if models[0].kind != "endpoint":
        st.caption(texts["compare_turns"])
    base = base_of(models[0], models) or models[1]
    with st.container(horizontal=True, vertical_alignment="bottom"):
        one = choose_model(texts["compare_left"], texts, "one")
        other = choose_model(texts["compare_right"], texts, "other", models.index(base))
        blind = st.checkbox(texts["blind"], True, key="blind")
    sides = st.columns(2, border=True)
    votes = st.empty()
    question = st.chat_input(texts["compare_question"], max_chars=20000, submit_mode="stop", key="both")
    if question and one == other:
        st.info(texts["compare_same"])
        question = None
    if question:
        state["voted"], state["pair"] = False, draw_pair(one, other, question, blind)
        ask_both(state["pair"], sides, texts)
    elif state.get("pair"):
        is_hidden = state["pair"].blind and is_open()
        show_sides(state["pair"], state["compared"], sides, texts, is_hidden)
    else:
        labels = ("A", "B") if blind else names(engines(), one, other)
        for side, label in zip(sides, labels, strict=True):
            side.markdown(f"**{plain_label(label)}**")
    with votes.container():
        show_votes(one, other, texts)


def ask_both(pair: Pair, sides: Any, texts: Texts) -> None:
    """Both answers growing side by side; a stop ends both, and what was said stays."""
    messages = conversation([user(pair.question)], state.get("system_prompt", ""))
    sampling = sampling_of_pair(sampling_now())
    states = [
        answer(engines().get(id), messages, sampling, texts, client()) for id in (pair.left, pair.right)
    ]
    places, state["compared"] = [side.empty() for side in sides], [Shown(), Shown()]
    draw_again_after_stop()
    with closing(together(states, state["compared"], texts)) as growing:
        for _ in growing:
            show_sides(pair, state["compared"], [place.container() for place in places], texts, pair.blind)


def show_sides(pair: Pair, shown: list[Shown], sides: Any, texts: Texts, is_hidden: bool) -> None:
    """Both answers, each with its model's name and figures unless who is who `is_hidden`."""
    labels = ("A", "B") if is_hidden else names(engines(), pair.left, pair.right)
    for side, label, one in zip(sides, labels, shown, strict=True):
        with side:
            st.markdown(f"**{plain_label(label)}**")
            draw(without_figures(one) if is_hidden else one, texts)


def show_votes(one: str, other: str, texts: Texts) -> None:
    pair = state.get("pair")
    with st.container(horizontal=True):
        for key in VOTES:
            is_off = not is_open()
            st.button(texts[key], key=key, disabled=is_off, on_click=vote, args=(key,), width="stretch")
    if pair and state.get("voted"):
        left, right = names(engines(), pair.left, pair.right)
        st.caption(plain_label(texts.say("voted", a=left, b=right)))
    st.caption(plain_label(tally_line(store(), engines(), one, other, texts)))


def is_open() -> bool:
    """Whether there is something to judge that was not judged yet."""
    return bool(state.get("pair")) and not state.get("voted") and can_judge(state["compared"])


def vote(key: str) -> None:
    pair: Pair = state["pair"]
    store().vote(browser(), pair.question, pair.left, pair.right, VOTES[key])
    state["voted"] = True


def scorecard_tab() -> None:
    texts, model = texts_now(), engines().find(state.get("model"))
    folder = scorecard_of(model) if model else None
    st.markdown(summary(folder, model.name if model else "", texts))
    if folder and (folder / "scorecard.png").is_file():
        st.image(str(folder / "scorecard.png"), alt=texts["scorecard_picture"])
