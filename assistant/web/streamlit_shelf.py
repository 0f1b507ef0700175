"""The conversations in the Streamlit page's sidebar: new, open, rename, delete, export, import."""

import streamlit as st

from assistant.web.chats import delete_chat
from assistant.web.exchange import from_json, to_json, to_markdown
from assistant.web.streamlit_chat import choose, choose_id, open_chat
from assistant.web.streamlit_parts import browser, plain_label, store
from assistant.web.texts import Texts

state = st.session_state


def shelf(texts: Texts) -> None:
    new = texts["new_chat"]
    st.button(new, icon=":material/add:", width="stretch", on_click=choose, args=(None,))
    known = store().titles(browser())
    if not known:
        return
    with st.container(key="chats", gap="xxsmall", height=260 if len(known) > 6 else "content"):
        for title, id in known:
            is_open = id == state.get("chat")
            st.button(
                plain_label(title or texts["new_chat"]),
                key=f"chat-{id}",
                width="stretch",
                wrap=False,
                type="secondary" if is_open else "tertiary",
                on_click=choose_id,
                args=(id,),
            )


def this_chat(texts: Texts) -> None:
    chat = open_chat()
    with st.expander(texts["this_chat"], key="fold-this-chat"):
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
                st.button(texts["really"], on_click=delete, args=(chat.id,))
        st.file_uploader(
            texts["import"],
            type="json",
            help=texts["import_hint"],
            key=f"upload-{state.get('uploads', 0)}",  # another key empties it
            on_change=take_in,
            args=(texts,),
        )


def rename(id: str) -> None:
    store().rename(browser(), id, state[f"title-{id}"])


def delete(id: str) -> None:
    delete_chat(store(), browser(), id)
    choose(None)


def take_in(texts: Texts) -> None:
    upload = state[f"upload-{state.get('uploads', 0)}"]
    if upload is None:
        return
    state["uploads"] = state.get("uploads", 0) + 1
    try:
        chats = from_json(upload.getvalue(), upload.name)
        for chat in reversed(chats):
            store().save(browser(), chat)
    except ValueError as error:
        st.toast(plain_label(texts.say_error("import_failed", error)))
        return
    choose(chats[0])
    st.toast(texts.say("imported", number=len(chats)))
