"""The Streamlit page's other tabs: one question to two models, judged blind; and the scorecard."""

from contextlib import closing
from dataclasses import replace
from typing import Any

import streamlit as st

from assistant.conversations import user
from assistant.web import Shown, answer, conversation
from assistant.web.comparison import LONGEST, VOTES, Pair, draw_pair, names, tally_line, together
from assistant.web.models import base_of, scorecard_of
from assistant.web.scorecard_view import summary
from assistant.web.streamlit_parts import (
    browser,
    choose_model,
    client,
    draw,
    draw_again_after_stop,
    engines,
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
    if question:
        state["voted"], state["pair"] = False, draw_pair(one, other, question, blind)
        ask_both(state["pair"], sides, texts)
    elif state.get("pair"):
        show_sides(state["pair"], state["compared"], sides, texts)
    with votes.container():
        show_votes(one, other, texts)


def ask_both(pair: Pair, sides: Any, texts: Texts) -> None:
    """Both answers growing side by side; a stop ends both, and what was said stays."""
    messages = conversation([user(pair.question)], state.get("system_prompt", ""))
    sampling = sampling_now()
    sampling = replace(sampling, max_new_tokens=min(sampling.max_new_tokens, LONGEST))
    states = [
        answer(engines().get(id), messages, sampling, texts, client()) for id in (pair.left, pair.right)
    ]
    places, state["compared"] = [side.empty() for side in sides], [Shown(), Shown()]
    draw_again_after_stop()
    with closing(together(states)) as pairs:
        for state["compared"] in pairs:
            for place, label, one in zip(places, labels(pair), state["compared"], strict=True):
                with place.container():
                    show_side(label, one, texts)


def labels(pair: Pair) -> tuple[str, str]:
    hidden = pair.blind and not state.get("voted")
    return ("A", "B") if hidden else names(engines(), pair.left, pair.right)


def show_sides(pair: Pair, shown: list[Shown], sides: Any, texts: Texts) -> None:
    for side, label, one in zip(sides, labels(pair), shown, strict=True):
        with side:
            show_side(label, one, texts)


def show_side(label: str, shown: Shown, texts: Texts) -> None:
    st.markdown(f"**{label}**")
    draw(shown, texts)


def show_votes(one: str, other: str, texts: Texts) -> None:
    pair = state.get("pair")
    with st.container(horizontal=True):
        for key in VOTES:
            is_off = not pair or bool(state.get("voted"))
            st.button(texts[key], key=key, disabled=is_off, on_click=vote, args=(key,), width="stretch")
    if pair and state.get("voted"):
        left, right = names(engines(), pair.left, pair.right)
        st.caption(texts.say("voted", a=left, b=right))
    st.caption(tally_line(store(), engines(), one, other, texts))


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
