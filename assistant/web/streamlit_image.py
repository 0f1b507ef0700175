"""The Streamlit page's tab where a person shows pictures and asks about them."""

import base64
import hashlib
import time
from contextlib import closing
from typing import Any

import streamlit as st

from assistant.web import Shown, the_engine
from assistant.web.looking import Seeing, Sights, labels_of, sights_of, why_none
from assistant.web.picture_chat import Look, reply, seen_by, take_picture
from assistant.web.streamlit_parts import (
    client,
    draw,
    draw_again_after_stop,
    plain_label,
    sampling_now,
    show_copy,
    shown_of,
    texts_now,
)
from assistant.web.texts import Texts

# Of an SVG the page says more than Streamlit would.
FILES = ["png", "jpg", "jpeg", "webp", "gif", "bmp", "tif", "tiff", "svg"]
PICTURE_WIDTH = 320  # pixels
state = st.session_state


def image_tab() -> None:
    texts, sights = texts_now(), sights_of(the_engine())
    found = sights.found()
    st.caption(texts["picture_hint"])
    if not found:
        st.info(texts[why_none()])
        return
    turns: list[Look] = state.setdefault("picture_turns", [])
    place = st.container()
    photo = choose(found, turns, texts)
    typed = st.chat_input(
        texts["picture_box"], accept_file="multiple", file_type=FILES, max_chars=20000, submit_mode="stop"
    )
    engine = sights.get(state.get("picture_who"), again=bool(typed))
    with place:
        show_progress(sights, texts)
        is_asked = bool(typed) and add_question(typed, photo, turns, texts)
        for at, turn in enumerate(turns):
            show_turn(turn, f"look-{at}", engine, texts)
        if is_asked:
            answer_turn(engine, turns, texts)


def choose(found: list[Seeing], turns: list[Look], texts: Texts) -> Any:
    """Who looks, a new conversation, and the photo that was taken, if any."""
    labels = labels_of(found)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        if len(found) > 1:
            st.selectbox(texts["picture_who"], list(labels), 0, lambda id: labels[id], key="picture_who")
        with st.popover(texts["picture_camera"], icon=":material/photo_camera:"):
            photo = st.camera_input(texts["picture_camera"], label_visibility="collapsed")
        if turns:
            st.button(texts["picture_new"], on_click=turns.clear)
    if photo and photo.file_id != state.get("picture_photo"):
        st.image(photo.getvalue(), texts["picture_next"], width=160)
        return photo
    return None


def show_progress(sights: Sights, texts: Texts) -> None:
    """What the page says while someone gets eyes behind it."""
    who, begin = state.get("picture_who"), time.monotonic()
    is_loading = (known := sights.known(who)) is not None and known.status == "loading"

    def say() -> None:
        engine = sights.known(who)
        said = plain_label(sights.progress(who, int(time.monotonic() - begin), texts))
        st.error(said) if engine and engine.status == "error" else st.caption(said)

    st.fragment(say, run_every=0.5 if is_loading else None)()


def add_question(typed: Any, photo: Any, turns: list[Look], texts: Texts) -> bool:
    """Whether there is something to answer: a question, with pictures that can be read, now or before."""
    addresses = []
    for file in [*([photo] if photo else []), *typed.files]:
        address, why = take_picture(file.getvalue(), texts)
        if why:
            st.error(texts.say("of", what=plain_label(file.name), said=why))
            return False
        addresses.append(address)
    if not addresses and not any(turn.get("images") for turn in turns):
        st.info(texts["picture_wanted"])
        return False
    if photo:
        state["picture_photo"] = photo.file_id
    turn: Look = {"role": "user", "content": (typed.text or "").strip() or texts["picture_what"]}
    turns.append({**turn, "images": addresses} if addresses else turn)
    return True


def show_turn(turn: Look, key: str, engine: Any, texts: Texts) -> None:
    with st.chat_message(turn["role"]):
        for address in turn.get("images", ()):
            content = base64.b64decode(address.partition(",")[2])
            st.image(content, width=PICTURE_WIDTH, alt=texts["picture_add"])
            if seen := seen_once(engine, address):
                with st.popover(texts["picture_seen"], type="tertiary", icon=":material/visibility:"):
                    st.image(seen, texts["picture_seen_hint"], width=224)
        draw(shown_of(turn, texts), texts)
        if turn["role"] == "assistant" and turn["content"]:
            show_copy(turn["content"], key, texts)


def seen_once(engine: Any, address: str) -> Any:
    """seen_by, computed once for each picture and model."""
    key = hashlib.sha256(f"{engine.model} {address}".encode()).hexdigest()
    kept = state.setdefault("picture_seen", {})
    if key not in kept and (seen := seen_by(engine, address)):
        kept[key] = seen
    return kept.get(key)


def answer_turn(engine: Any, turns: list[Look], texts: Texts) -> None:
    """The one generator; stop, reload or another widget closes it, and what was said stays."""
    answering = reply(engine, turns, sampling_now(), texts, client())
    draw_again_after_stop()
    with st.chat_message("assistant"), closing(answering) as states:
        place, shown = st.empty(), Shown()
        for shown in states:
            with place.container():
                draw(shown, texts)
    st.rerun()
