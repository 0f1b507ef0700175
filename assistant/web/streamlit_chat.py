"""The chat tab of the Streamlit page: its widgets and one generator."""

import time
from contextlib import closing
from typing import Any

import streamlit as st

from assistant.web import Shown
from assistant.web.chats import ask, ask_again, change_chat, rate, reply, undo
from assistant.web.store import Chat
from assistant.web.streamlit_parts import (
    browser,
    client,
    draw,
    draw_again_after_stop,
    engine,
    leave_as_drawn,
    plain_label,
    sampling_now,
    show_copy,
    shown_of,
    store,
    texts_now,
)
from assistant.web.texts import Texts, preset_of

CLEAR_S = 0.1  # two changes of one place within less are sent as one
state = st.session_state


# ---- which conversation is open; the address holds its id, so a reload finds it again


def open_chat() -> Chat:
    if "chat" not in state:
        choose(store().load(browser(), st.query_params.get("chat", "")))
    return store().load(browser(), state["chat"]) or Chat()


def choose(chat: Chat | None) -> None:
    """Open a conversation, or a new one; the page's address follows at the next run."""
    state["chat"] = chat.id if chat else ""
    state["system_prompt"] = chat.system_prompt if chat else ""
    state["preset"] = preset_of(state["system_prompt"])
    state.pop("example", None)


def choose_id(id: str) -> None:
    choose(store().load(browser(), id))


def show_address(chat: Chat) -> None:
    if not chat.turns:
        st.query_params.pop("chat", None)
    elif st.query_params.get("chat") != chat.id:
        st.query_params["chat"] = chat.id


# ---- the page


def chat_tab() -> None:
    texts, chat = texts_now(), open_chat()
    name = engine().name
    place, examples = st.empty(), st.empty()
    typed = st.chat_input(
        texts.say("placeholder", name=name), max_chars=20000, submit_mode="stop", key="typed"
    )
    question = typed or (None if chat.turns else choose_example(examples, texts))
    is_asked = bool(state.pop("again", False))
    if is_asked:  # else what was taken back stands below until the new answer is whole
        place.empty()
        time.sleep(CLEAR_S)
    with place.container():
        if question and ask(chat, question):
            is_asked = True
            examples.empty()
        show_turns(chat, texts)
        if is_asked:
            answer_turn(chat, texts)
        elif chat.turns:
            show_actions(chat, texts)
        else:
            st.title(plain_label(name), anchor=False)
            st.caption(texts["tagline"])
    show_address(chat)


def choose_example(place: Any, texts: Texts) -> str | None:
    with place.container():
        return st.pills(texts["try"], texts["examples"], key="example")


def show_turns(chat: Chat, texts: Texts) -> None:
    for at, turn in enumerate(chat.turns):
        with st.chat_message(turn["role"]):
            draw(shown_of(turn, texts), texts)
            if turn["role"] == "assistant" and turn["content"]:
                show_verdict(chat.id, at, texts)


def answer_turn(chat: Chat, texts: Texts) -> None:
    """The one generator of the page; stop, reload or another widget closes it, and what was said stays."""
    chat.system_prompt = state.get("system_prompt", "")
    state["chat"] = st.query_params["chat"] = chat.id
    states = reply(store(), browser(), chat, engine(), sampling_now(), texts, client())
    draw_again_after_stop()
    with st.chat_message("assistant"), closing(states):
        place, shown = st.empty(), Shown()
        for shown in states:
            with place.container():
                draw(shown, texts)
    kept = store().load(browser(), chat.id)
    if kept and kept.turns == chat.turns:
        st.rerun()
    leave_as_drawn()  # why it could not be asked or kept


@st.fragment
def show_verdict(id: str, at: int, texts: Texts) -> None:
    """A fragment: rating an older answer does not end the one that is being written."""
    chat = store().load(browser(), id)
    turn: Any = chat.turns[at] if chat and at < len(chat.turns) else {}
    key = f"verdict-{id}-{at}"
    kept = {True: 1, False: 0}.get(turn.get("liked"))
    with st.container(horizontal=True, vertical_alignment="center"):
        st.feedback(key=key, default=kept, on_change=keep_verdict, args=(id, at, key))
        show_copy(turn.get("content", ""), f"copy-{id}-{at}", texts)
    if state.get(key) is not None and not turn.get("comment"):
        st.text_input(
            texts["comment"], key=f"{key}-note", max_chars=1000, on_change=keep_verdict, args=(id, at, key)
        )
    elif turn.get("comment"):
        st.caption(plain_label(turn["comment"]))


def keep_verdict(id: str, at: int, key: str) -> None:
    given, note = state.get(key), state.get(f"{key}-note") or ""
    liked = None if given is None else bool(given)
    store().change(browser(), id, lambda chat: rate(chat, at, liked, note))


def show_actions(chat: Chat, texts: Texts) -> None:
    with st.container(horizontal=True, key="actions"):
        st.button(texts["regenerate"], type="tertiary", icon=":material/refresh:", on_click=again)
        # another key closes it
        editing = f"edit-{state.get('asked_again', 0)}"
        with st.popover(texts["edit"], type="tertiary", icon=":material/edit:", key=editing):
            edit_question(chat, texts)
        st.button(texts["undo"], type="tertiary", icon=":material/undo:", on_click=take_back)
        st.button(texts["clear_chat"], type="tertiary", icon=":material/delete_sweep:", on_click=empty)


@st.fragment
def edit_question(chat: Chat, texts: Texts) -> None:
    """The last question, or an older one: what came after it goes."""
    asked = {at: turn["content"] for at, turn in enumerate(chat.turns) if turn["role"] == "user"}
    key = f"edit-{chat.id}-{len(chat.turns)}"
    at = max(asked)
    if len(asked) > 1:
        at = st.selectbox(texts["edit_which"], list(asked)[::-1], format_func=lambda at: asked[at], key=key)
    st.text_area(texts["you"], asked[at], key=f"{key}-{at}")
    if st.button(texts["send"], on_click=again, args=(at, f"{key}-{at}")):
        st.rerun()


def again(at: int | None = None, key: str = "") -> None:
    """Put the last question again, or the one at turn `at` in the words of that box."""
    words = state.get(key) if key else None
    asked: list[bool] = []

    def put(chat: Chat) -> None:
        asked.append(ask_again(chat, len(chat.turns) if at is None else at, words))

    change_chat(store(), browser(), open_chat().id, put)
    if any(asked):
        state["again"], state["asked_again"] = True, state.get("asked_again", 0) + 1


def take_back() -> None:
    """The question goes back into the box, as on the other page."""
    change_chat(store(), browser(), open_chat().id, lambda chat: state.update(typed=undo(chat)))


def empty() -> None:
    change_chat(store(), browser(), open_chat().id, lambda chat: chat.turns.clear())
