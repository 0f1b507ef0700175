"""The assistant's page in Streamlit: its widgets and one generator."""

import re
import sys
from collections.abc import Generator
from contextlib import closing
from typing import Any

import streamlit as st
from starlette.middleware import Middleware
from streamlit import config

from assistant.conversations import Message
from assistant.settings import one_line
from assistant.web import (
    MAX_NEW_TOKENS,
    MAX_TEMPERATURE,
    Engine,
    Shown,
    answer,
    conversation,
    sampling_from,
    the_engine,
)
from assistant.web.guard import Guard, is_loopback
from assistant.web.texts import Texts, load_texts, pick_language

# What `streamlit run app.py` starts with, unless a flag or STREAMLIT_… says otherwise.
OPTIONS: dict[str, Any] = {
    "server.headless": True,
    "server.fileWatcherType": "none",
    "server.maxUploadSize": 5,
    "server.maxMessageSize": 20,
    "client.showErrorDetails": "none",
    "client.showErrorLinks": False,
    "client.toolbarMode": "minimal",
    "browser.gatherUsageStats": False,
    "runner.magicEnabled": False,
    "theme.light.primaryColor": "#4f46e5",
    "theme.dark.primaryColor": "#818cf8",
}
CODE = r"(```.*?(?:```|$)|`[^`\n]*`)"


def set_options() -> None:
    """Runs while the server starts, before it reads these."""
    for option, value in OPTIONS.items():
        if not config.is_manually_set(option):
            config.set_option(option, value, "assistant")


def middleware() -> list[Middleware]:
    """Only this machine is served unless --server.address (or STREAMLIT_SERVER_ADDRESS) opens the page."""
    opened = config.is_manually_set("server.address") and not is_loopback(config.get_option("server.address"))
    return [Middleware(Guard, only_local=not opened)]


def show_error(error: Exception) -> bool:
    """Instead of Streamlit's traceback."""
    print(f"error: {one_line(error)}", file=sys.stderr)
    texts = load_texts()[pick_language(None)]
    st.error(texts.say("failed_inside", error=type(error).__name__))
    return True


def render() -> None:
    engine = the_engine()
    texts = choose_texts()
    st.set_page_config(page_title=engine.name)
    with st.sidebar:
        sidebar(engine, texts)
    st.header(engine.name, anchor=False)
    st.caption(texts["tagline"])
    turns: list[dict[str, Any]] = st.session_state.setdefault("turns", [])
    for turn in turns:
        show_turn(turn, texts)
    typed = st.chat_input(
        texts.say("placeholder", name=engine.name), max_chars=20000, submit_mode="stop", key="typed"
    )
    question = typed or (None if turns else choose_example(texts))
    if question and question.strip():
        take_turn(engine, turns, question, texts)


def choose_texts() -> Texts:
    """The language of the switch, else of the browser (or ASSISTANT_LANG)."""
    return load_texts()[st.session_state.get("language") or pick_language(st.context.locale)]


def sidebar(engine: Engine, texts: Texts) -> None:
    if st.button(texts["clear"], width="stretch", type="primary"):
        st.session_state["turns"] = []
    known = load_texts()
    st.segmented_control(
        texts["language_label"],
        list(known),
        format_func=lambda language: known[language]["language"],
        default=pick_language(st.context.locale),
        key="language",
        required=True,
        label_visibility="collapsed",
        width="stretch",
    )
    settings(texts)
    st.caption(f"{texts['model']}: {engine.shown_model}")


@st.fragment
def settings(texts: Texts) -> None:
    """A fragment: moving a slider does not end the answer that is being written."""
    least, most = MAX_NEW_TOKENS
    st.text_area(texts["system_prompt"], key="system_prompt", help=texts["system_hint"], max_chars=8000)
    st.slider(
        texts["temperature"],
        0.0,
        MAX_TEMPERATURE,
        0.0,
        0.05,
        key="temperature",
        help=texts["temperature_hint"],
    )
    st.slider(texts["top_p"], 0.05, 1.0, 0.9, 0.05, key="top_p", help=texts["top_p_hint"])
    st.slider(texts["max_new_tokens"], least, most, 512, 16, key="max_new_tokens")


def choose_example(texts: Texts) -> str | None:
    with st.empty().container():
        return st.pills(texts["try"], texts["examples"], key="example")


def show_turn(turn: dict[str, Any], texts: Texts) -> None:
    with st.chat_message(turn["role"]):
        draw(Shown(turn["content"], turn.get("note", ""), failed=turn.get("failed", False)), texts)


def take_turn(engine: Engine, turns: list[dict[str, Any]], question: str, texts: Texts) -> None:
    """Both turns are kept before the first word comes, so that a stop keeps what was written."""
    reply: dict[str, Any] = {"role": "assistant", "content": ""}
    turns += [{"role": "user", "content": question}, reply]
    show_turn(turns[-2], texts)
    with st.chat_message("assistant"), closing(respond(engine, turns[:-1], texts)) as states:
        place = st.empty()
        for shown in states:
            reply |= {"content": shown.text, "note": shown.note, "failed": shown.failed}
            with place.container():
                draw(shown, texts)


def respond(engine: Engine, turns: list[dict[str, Any]], texts: Texts) -> Generator[Shown, None, None]:
    """The one generator of the page."""
    state = st.session_state
    spoken: list[Message] = [{"role": turn["role"], "content": turn["content"]} for turn in turns]
    sampling = sampling_from(state["temperature"], state["top_p"], state["max_new_tokens"])
    return answer(engine, conversation(spoken, state["system_prompt"]), sampling, texts)


def draw(shown: Shown, texts: Texts) -> None:
    if shown.text:
        st.markdown(plain_markdown(shown.text))
    if shown.meanwhile:
        st.caption(shown.meanwhile)
    if shown.note and shown.failed:
        st.error(shown.note)
    elif shown.note:
        st.caption(f"{texts['note']}: {shown.note}")


def plain_markdown(text: str) -> str:
    r"""Markdown as models mean it: \( \[ become $ $$, lines stay lines, :red[…] and :smile: stay text."""
    parts = re.split(CODE, text, flags=re.DOTALL)
    return "".join(part if i % 2 else _without_directives(part) for i, part in enumerate(parts))


def _without_directives(text: str) -> str:
    text = re.sub(r":(?=[A-Za-z+-][\w+-]*(?:\[|:|/))(?!//)", r"\\:", text)
    text = re.sub(r"\\\[(.+?)\\\]", r"$$\1$$", text, flags=re.DOTALL)
    text = re.sub(r"\\\((.+?)\\\)", r"$\1$", text)
    return text.replace("\n", "  \n")
