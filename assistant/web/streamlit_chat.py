"""The chat tab of the Streamlit page: its widgets and one generator."""

from contextlib import closing
from typing import Any

import streamlit as st

from assistant.settings import one_line
from assistant.web import Shown
from assistant.web.chats import ask, ask_again, rate, reply, undo
from assistant.web.exchange import from_json, to_json, to_markdown
from assistant.web.store import Chat
from assistant.web.streamlit_parts import (
    browser,
    client,
    draw,
    engine,
    sampling_now,
    shown_of,
    store,
    texts_now,
)
from assistant.web.texts import Texts

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
    if not chat.turns:
        st.title(name, anchor=False)
        st.caption(texts["tagline"])
    place = st.container()
    typed = st.chat_input(
        texts.say("placeholder", name=name), max_chars=20000, submit_mode="stop", key="typed"
    )
    question = typed or (None if chat.turns else choose_example(texts))
    with place:
        is_asked = bool(state.pop("again", False))
        if question and ask(chat, question):
            is_asked = True
        show_turns(chat, texts)
        if is_asked:
            answer_turn(chat, texts)
        elif chat.turns:
            show_actions(chat, texts)
    show_address(chat)


def choose_example(texts: Texts) -> str | None:
    with st.empty().container():
        return st.pills(texts["try"], texts["examples"], key="example")


def show_turns(chat: Chat, texts: Texts) -> None:
    for at, turn in enumerate(chat.turns):
        with st.chat_message(turn["role"]):
            draw(shown_of(turn), texts)
            if turn["role"] == "assistant" and turn["content"]:
                show_verdict(chat.id, at, texts)


def answer_turn(chat: Chat, texts: Texts) -> None:
    """The one generator of the page; stop, reload or another widget closes it, and what was said stays."""
    chat.system_prompt = state.get("system_prompt", "")
    state["chat"] = st.query_params["chat"] = chat.id
    states = reply(store(), browser(), chat, engine(), sampling_now(), texts, client())
    with st.chat_message("assistant"), closing(states):
        place, shown = st.empty(), Shown()
        for shown in states:
            with place.container():
                draw(shown, texts)
    if not shown.failed or store().load(browser(), chat.id):
        st.rerun()


@st.fragment
def show_verdict(id: str, at: int, texts: Texts) -> None:
    """A fragment: rating an older answer does not end the one that is being written."""
    chat = store().load(browser(), id)
    turn: Any = chat.turns[at] if chat and at < len(chat.turns) else {}
    key = f"verdict-{id}-{at}"
    kept = {True: 1, False: 0}.get(turn.get("liked"))
    st.feedback(key=key, default=kept, on_change=keep_verdict, args=(id, at, key))
    if state.get(key) is not None and not turn.get("comment"):
        st.text_input(
            texts["comment"], key=f"{key}-note", max_chars=1000, on_change=keep_verdict, args=(id, at, key)
        )
    elif turn.get("comment"):
        st.caption(turn["comment"])


def keep_verdict(id: str, at: int, key: str) -> None:
    if chat := store().load(browser(), id):
        given = state.get(key)
        rate(chat, at, None if given is None else bool(given), state.get(f"{key}-note") or "")
        store().save(browser(), chat)


def show_actions(chat: Chat, texts: Texts) -> None:
    with st.container(horizontal=True, key="actions"):
        st.button(texts["regenerate"], type="tertiary", icon=":material/refresh:", on_click=again)
        with st.popover(texts["edit"], type="tertiary", icon=":material/edit:"):
            asked = next(turn for turn in reversed(chat.turns) if turn["role"] == "user")
            st.text_area(texts["you"], asked["content"], key=f"edit-{chat.id}-{len(chat.turns)}")
            st.button(
                texts["send"], type="primary", on_click=again, args=(f"edit-{chat.id}-{len(chat.turns)}",)
            )
        st.button(texts["undo"], type="tertiary", icon=":material/undo:", on_click=take_back)
        st.button(texts["clear_chat"], type="tertiary", icon=":material/delete_sweep:", on_click=empty)


def again(key: str = "") -> None:
    chat = open_chat()
    if ask_again(chat, len(chat.turns), state.get(key) if key else None):
        store().save(browser(), chat)
        state["again"] = True


def take_back() -> None:
    chat = open_chat()
    undo(chat)
    store().save(browser(), chat)


def empty() -> None:
    chat = open_chat()
    chat.turns.clear()
    store().save(browser(), chat)


# ---- the conversations in the sidebar


def shelf(texts: Texts) -> None:
    st.button(texts["new_chat"], width="stretch", type="primary", on_click=choose, args=(None,))
    known = store().titles(browser())
    if not known:
        return
    with st.container(key="chats", gap="xxsmall", height=260 if len(known) > 6 else "content"):
        for title, id in known:
            is_open = id == state.get("chat")
            st.button(
                title or texts["new_chat"],
                key=f"chat-{id}",
                width="stretch",
                type="secondary" if is_open else "tertiary",
                on_click=choose_id,
                args=(id,),
            )


def this_chat(texts: Texts) -> None:
    chat = open_chat()
    with st.expander(texts["this_chat"]):
        if chat.turns:
            st.text_input(
                texts["title"],
                chat.title,
                max_chars=200,
                key=f"title-{chat.id}",
                on_change=rename,
                args=(chat.id,),
            )
            name = chat.title[:40] or "chat"
            st.download_button(
                texts["export_json"], to_json([chat]), f"{name}.json", on_click="ignore", width="stretch"
            )
            st.download_button(
                texts["export_markdown"],
                to_markdown(chat, texts),
                f"{name}.md",
                on_click="ignore",
                width="stretch",
            )
            with st.popover(texts["delete"], width="stretch"):
                st.button(texts["really"], type="primary", on_click=delete, args=(chat.id,))
        st.file_uploader(
            texts["import"],
            type="json",
            help=texts["import_hint"],
            key="upload",
            on_change=take_in,
            args=(texts,),
        )


def rename(id: str) -> None:
    store().rename(browser(), id, state[f"title-{id}"])


def delete(id: str) -> None:
    store().delete(browser(), id)
    choose(None)


def take_in(texts: Texts) -> None:
    upload = state["upload"]
    if upload is None:
        return
    try:
        chats = from_json(upload.getvalue(), upload.name)
        for chat in reversed(chats):
            store().save(browser(), chat)
    except ValueError as error:
        st.toast(one_line(error))
        return
    choose(chats[0])
    st.toast(texts.say("imported", number=len(chats)))
