"""What the tabs of the Streamlit page share: texts, the browser's secret, settings, an answer drawn."""

import re
from functools import cache
from pathlib import Path
from typing import Any

import streamlit as st
from streamlit import config

from assistant.backends import Sampling
from assistant.web import Engine, Shown, figures_line, sampling_from, the_engine
from assistant.web.models import Engines, engines_of, labels_of
from assistant.web.store import Store, new_browser, the_store
from assistant.web.streamlit_cookie import COOKIE
from assistant.web.texts import Texts, in_language, load_texts, pick_language

CODE = r"(```.*?(?:```|$)|`[^`\n]*`)"
LANGUAGE = "little_assistant_language"  # a cookie that words.js writes when a person has chosen


def texts_now() -> Texts:
    """The language of the switch, else the one to begin with."""
    return load_texts()[st.session_state.get("language") or first_language()]


def first_language() -> str:
    """The one that ASSISTANT_LANG asks for, else what was chosen in this browser, else the browser's own."""
    kept = st.context.cookies.get(LANGUAGE)
    return pick_language(str(kept) if kept else st.context.locale)


def browser() -> str:
    """The browser's secret; one for this visit alone when it takes no cookie."""
    kept = st.context.cookies.get(COOKIE)
    return (
        kept if kept and isinstance(kept, str) else str(st.session_state.setdefault("browser", new_browser()))
    )


def store() -> Store:
    return the_store()


def engines() -> Engines:
    return engines_of(the_engine())


def engine() -> Engine:
    """The engine of the model that is chosen in the settings."""
    return engines().get(st.session_state.get("model"))


def server_address() -> str:
    """Where the server listens: on this machine alone unless --server.address says otherwise."""
    is_set = config.is_manually_set("server.address")
    return (is_set and config.get_option("server.address")) or "127.0.0.1"


def client() -> str:
    return str(getattr(st.context, "ip_address", None) or "")


def sampling_now() -> Sampling:
    state = st.session_state
    return sampling_from(
        state.get("temperature", 0.0),
        state.get("top_p", 0.9),
        state.get("max_new_tokens", 512),
        state.get("strength", 1.0),
    )


def choose_model(label: str, texts: Texts, key: str, index: int = 0) -> str:
    """The id that is chosen. Streamlit tells options apart by what is read, so no two may read the same."""
    labels = labels_of(engines().models(), texts)
    return st.selectbox(label, list(labels), index, lambda id: labels.get(id, id), key=key) or ""


def draw_again_after_stop() -> None:
    """Mount it before a generator: Streamlit's stop ends the run and draws nothing more, neither the note
    of the answer nor what can be done with it. Fragments wait while a run goes on; the next one is this."""
    st.session_state["is_first_look"], st.session_state["stays"] = True, False
    _look_again()


def leave_as_drawn() -> None:
    """What is on the page now is nowhere else: it is not drawn anew before a person does something."""
    st.session_state["stays"] = True


@st.fragment(run_every=0.5)
def _look_again() -> None:
    if not st.session_state.pop("is_first_look", False) and not st.session_state.get("stays"):
        st.rerun()


def draw(shown: Shown, texts: Texts) -> None:
    if shown.text:
        st.markdown(plain_markdown(shown.text))
    if shown.meanwhile:
        st.caption(shown.meanwhile)
    note = plain_markdown(in_language(shown.note, texts))
    if note and shown.failed:
        st.error(note)
    elif note:
        st.caption(texts.say("of", what=texts["note"], said=note))
    if shown.figures:
        st.caption(figures_line(shown.figures, texts))


def shown_of(turn: Any, texts: Texts) -> Shown:
    return Shown(
        turn["content"],
        in_language(turn.get("note", ""), texts),
        failed=turn.get("failed", False),
        figures=turn.get("figures", {}),
    )


def show_copy(text: str, key: str, texts: Texts) -> None:
    """A copy button; Streamlit's own stands on code alone."""
    style = beside("copy.css")
    button = st.components.v2.component("copy", html="<button></button>", css=style, js=beside("copy.js"))
    plain = key.encode().hex()  # Streamlit refuses a key with __ in it, as one chat's id in four hundred has
    button(key=plain, data={"text": text, "label": texts["copy"], "done": texts["copied"]}, width="content")


def say_in_language(texts: Texts) -> None:
    """What Streamlit says by itself, as far as it stands in the page."""
    others = [known for known in load_texts().values() if known is not texts]
    pairs = [pair for known in others for pair in zip(known["streamlit"], texts["streamlit"], strict=True)]
    kept = f"{LANGUAGE}={texts.code}" if st.session_state.get("has_chosen_language") else ""
    # a list might be a table: to find out, Streamlit imports pandas before the first page is drawn
    st.components.v2.component("words", js=beside("words.js"))(
        key="words", data={"language": texts.code, "words": tuple(pairs), "kept": kept}
    )


@cache
def beside(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def plain_label(text: str) -> str:
    """A name, a title, what a person wrote: as it is, where Streamlit would read Markdown."""
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", " ".join(text.split()))


def plain_markdown(text: str) -> str:
    r"""Markdown as models mean it: \( \[ become $ $$, lines stay lines; $5, :red[…] and :smile: stay text."""
    parts = re.split(CODE, text, flags=re.DOTALL)
    return "".join(part if i % 2 else _without_directives(part) for i, part in enumerate(parts))


def _without_directives(text: str) -> str:
    text = re.sub(r":(?=[A-Za-z+-][\w+-]*(?:\[|:|/))(?!//)", r"\\:", text)
    text = re.sub(r"(?<![\\$])\$(?!\$)", r"\\$", text)
    text = re.sub(r"\\\[(.+?)\\\]", r"$$\1$$", text, flags=re.DOTALL)
    text = re.sub(r"\\\((.+?)\\\)", r"$\1$", text)
    return text.replace("\n", "  \n")
