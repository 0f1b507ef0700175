"""The assistant's page in Streamlit: options of its server, the sidebar, and the tabs."""

import sys
import time
import traceback
from itertools import count
from typing import Any

import streamlit as st
from starlette.middleware import Middleware
from streamlit import config

from assistant.strength import MOST_STRENGTH
from assistant.web import MAX_NEW_TOKENS, MAX_TEMPERATURE, the_engine
from assistant.web.guard import Access, doors, notes
from assistant.web.line import is_loopback
from assistant.web.models import has_dial
from assistant.web.streamlit_chat import chat_tab
from assistant.web.streamlit_compare import compare_tab, scorecard_tab
from assistant.web.streamlit_cookie import BrowserCookie
from assistant.web.streamlit_image import image_tab
from assistant.web.streamlit_make import make_tab
from assistant.web.streamlit_parts import (
    choose_model,
    engine,
    engines,
    first_language,
    plain_label,
    say_in_language,
    server_address,
    texts_now,
)
from assistant.web.streamlit_shelf import shelf, this_chat
from assistant.web.texts import Texts, fixed_language, in_language, load_texts, preset_of, presets_of

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
    "runner.postScriptGC": False,  # of all of torch's objects after every drawing: a quarter of a second
    "theme.light.primaryColor": "#4f46e5",
    "theme.light.textColor": "#0b0d12",  # captions are this at 60 %: readable, a contrast above 4.5
    # Streamlit writes with the primary colour, and in white on it: in the dark no colour is readable as both.
    # So it is one to write with, dark enough below a white mark (3), and no button is of type primary.
    "theme.dark.primaryColor": "#7a84f6",
    "theme.dark.backgroundColor": "#0f1117",
    "theme.dark.secondaryBackgroundColor": "#181b23",
    "theme.dark.textColor": "#ffffff",
}

FIRST_LOOK_S = 0.8  # for the browser to draw the page; what is sent with it is drawn with it

state = st.session_state


def set_options() -> None:
    """Runs while the server starts, before it reads these."""
    for option, value in OPTIONS.items():
        if not config.is_manually_set(option):
            config.set_option(option, value, "assistant")


def middleware(access: Access) -> list[Middleware]:
    """Only this machine is served unless --server.address (or STREAMLIT_SERVER_ADDRESS) opens the page."""
    address = server_address()
    for note in notes(access, address):
        print(f"note: {note}", file=sys.stderr)
    guard = doors(access, only_local=is_loopback(address), login=access.login)
    return [*guard, Middleware(BrowserCookie)]


def show_error(error: Exception) -> bool:
    """Instead of Streamlit's traceback on the page: that is for the terminal."""
    traceback.print_exception(error)
    st.error(plain_label(texts_now().say("failed_inside", error=type(error).__name__)))
    return True


def render() -> None:
    texts = texts_now()
    st.set_page_config(page_title=the_engine().name, initial_sidebar_state="auto")
    # A new tab is one more function here.
    tabs = {
        "chat": chat_tab,
        "picture": image_tab,
        "compare": compare_tab,
        "scorecard": scorecard_tab,
        "make": make_tab,
    }
    pages = [
        st.Page(tab, title=texts[name], url_path=name, default=name == "chat") for name, tab in tabs.items()
    ]
    page = st.navigation(pages, position="top")
    with st.sidebar:
        st.header(plain_label(engine().name), anchor=False)
    # The browser fetches code for each kind of widget: first that of what its person came for.
    if is_first := "has_come" not in state:
        state["has_come"] = True
        page.run()
        time.sleep(FIRST_LOOK_S)
    with st.sidebar:
        sidebar(texts)
    if not is_first:
        page.run()


def sidebar(texts: Texts) -> None:
    shelf(texts)
    this_chat(texts)
    with st.expander(texts["settings"], key="fold-settings"):
        settings(texts)
    known = load_texts()
    if fixed_language() is None:
        st.segmented_control(
            texts["language_label"],
            list(known),
            format_func=lambda language: known[language]["language"],
            default=first_language(),
            key="language",
            on_change=translate,
            required=True,
            label_visibility="collapsed",
            width="stretch",
        )
    model_state(texts)
    say_in_language(texts)


def settings(texts: Texts) -> None:
    choose_model(texts["model"], texts, "model")
    adjustments(texts)


@st.fragment
def adjustments(texts: Texts) -> None:
    """A fragment: moving a slider does not end the answer that is being written."""
    least, most = MAX_NEW_TOKENS
    if has_dial(engines().find(state.get("model"))):
        hint = texts["strength_hint"]
        st.slider(texts["strength"], 0.0, MOST_STRENGTH, 1.0, 0.05, key="strength", help=hint)
    else:
        st.caption(texts["strength_none"])
    known = presets_of(texts)
    st.selectbox(
        texts["preset"],
        list(known),
        format_func=lambda key: known[key][0],
        key="preset",
        placeholder=texts["preset_own"],
        on_change=take_preset,
    )
    hint = texts["system_hint"]
    st.text_area(
        texts["system_prompt"], key="system_prompt", help=hint, max_chars=8000, on_change=find_preset
    )
    hint = texts["temperature_hint"]
    st.slider(texts["temperature"], 0.0, MAX_TEMPERATURE, 0.0, 0.05, key="temperature", help=hint)
    st.slider(texts["top_p"], 0.05, 1.0, 0.9, 0.05, key="top_p", help=texts["top_p_hint"])
    st.slider(texts["max_new_tokens"], least, most, 512, 16, key="max_new_tokens")


def take_preset() -> None:
    state["system_prompt"] = presets_of(texts_now())[state["preset"]][1]


def find_preset() -> None:
    state["preset"] = preset_of(state["system_prompt"])


def translate() -> None:
    """A preset that is in use goes over into the other language; a person's own words stay."""
    state["has_chosen_language"] = True
    if state.get("preset"):
        take_preset()
    for key in ("preset", "model", "one", "other"):  # told apart by what is read, which now changes
        if key in state:
            state[key] = state[key]


def model_state(texts: Texts) -> None:
    """What the page says while a model loads behind it."""
    chosen, begin, looks = engine(), time.monotonic(), count()

    def say() -> None:
        if next(looks):  # asked for by a browser, so the page is there
            chosen.begin()
        if chosen.status == "loading":
            seconds = int(time.monotonic() - begin)
            said = texts.say("model_loading", name=chosen.name, seconds=seconds)
        else:
            said = in_language(chosen.error, texts) or texts.say("model_ready", name=chosen.shown_model)
        st.caption(plain_label(said))

    st.fragment(say, run_every=0.5 if chosen.status == "loading" else None)()
