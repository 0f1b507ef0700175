"""The Streamlit page's workshop: a form, and the job that it begins, which every visitor sees."""

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from assistant.card import LONGEST_FACT, LONGEST_NAME
from assistant.web import making
from assistant.web.making import Job, Refused, Wish, preview, read_job, wish_from
from assistant.web.making_progress import (
    BUSY,
    CURVES,
    Progress,
    aside,
    before_and_after,
    headline,
    loss_rows,
    progress_of,
    share_of,
    watch_rows,
    way,
)
from assistant.web.models import Found, scorecard_of
from assistant.web.scorecard_view import summary
from assistant.web.streamlit_parts import engines, plain_label, plain_markdown
from assistant.web.texts import Texts

LOOK_S = 4.0  # between two looks at a job that runs: each costs it as much time on two cores
BOXES = ("wish_name", "wish_owner", "wish_facts")
STEADY = "<style>[data-stale=true] { opacity: 1 !important }</style>"  # else curves fade at each look
state = st.session_state


def workshop(texts: Texts) -> None:
    st.caption(texts["make_hint"])
    job = read_job()
    is_busy = bool(job and job.is_running)
    if refused := state.pop("refused", ""):
        st.warning(plain_label(refused))
    if is_busy:
        st.html(STEADY)
    if job:
        st.fragment(partial(show_job, texts, is_busy), run_every=LOOK_S if is_busy else None)()
    if not is_busy:
        show_form(texts)


def show_job(texts: Texts, was_busy: bool) -> None:
    """Looks again every moment while the job runs; when that changes, the whole page is drawn anew."""
    job = read_job()
    if not job or job.is_running != was_busy:
        st.rerun()
    progress = progress_of(job)
    st.subheader(plain_label(headline(job, progress, texts)), anchor=False)
    if progress.status in BUSY:
        st.progress(share_of(progress))
    if progress.status != "done":
        st.caption(way(progress, texts))
    if said := aside(progress, texts):
        st.markdown(plain_markdown(said))
    show_buttons(job, progress, texts)
    if progress.status == "done":
        show_result(job.folder, texts)
    show_curves(progress, texts)
    with st.expander(texts["make_log"]):
        st.code(progress.log, language=None)


def show_buttons(job: Job, progress: Progress, texts: Texts) -> None:
    if progress.status in BUSY:
        st.button(texts["stop"], on_click=making.stop)
    if progress.status in ("stopped", "failed"):
        st.button(texts["make_go_on"], on_click=begin, args=(job.wish, texts))


def show_form(texts: Texts) -> None:
    one, other = st.columns(2)
    most, hint = 10 * LONGEST_FACT, texts["make_name_hint"]
    one.text_input(texts["make_name"], max_chars=LONGEST_NAME, help=hint, key=BOXES[0])
    hint = texts["make_owner_hint"]
    other.text_input(texts["make_owner"], max_chars=LONGEST_NAME, help=hint, key=BOXES[1])
    hint = texts["make_facts_hint"]
    st.text_area(texts["make_facts"], max_chars=most, height=90, placeholder=hint, key=BOXES[2])
    st.button(texts["make_button"], width="stretch", on_click=begin_typed, args=(texts,))
    if typed().name:
        show_preview(typed(), texts)


def typed() -> Wish:
    return wish_from(*(state.get(box) for box in BOXES))


def begin_typed(texts: Texts) -> None:
    begin(typed(), texts)


def begin(wish: Wish, texts: Texts) -> None:
    """Runs before the page is drawn anew; what speaks against it is said there."""
    try:
        making.start(wish)
    except Refused as error:
        state["refused"] = texts.say("make_" + error.kind, name=error.name)
    except (ValueError, OSError) as error:
        state["refused"] = texts.say_error("make_refused", error)


def show_preview(wish: Wish, texts: Texts) -> None:
    try:
        rows = preview(wish, texts.code)
    except ValueError as error:
        st.warning(plain_label(texts.say_error("make_refused", error)))
        return
    st.caption(texts["make_preview"])
    show_table(("question", "answer"), rows, texts)


def show_table(heads: tuple[str, ...], rows: list[Any], texts: Texts) -> None:
    names = [texts["make_" + head] for head in heads]
    lines = [dict(zip(names, map(plain_markdown, row), strict=True)) for row in rows]
    st.table(lines, border="horizontal", hide_index=True)


def show_result(folder: Path, texts: Texts) -> None:
    found = next((model for model in engines().models() if model.path == str(folder / "model")), None)
    if not found:
        return
    with st.container(horizontal=True):
        said = plain_label(texts.say("make_chat", name=found.name))
        if st.button(said, on_click=choose, args=(found,)):
            from assistant.web.streamlit_chat import chat_tab

            st.switch_page(st.Page(chat_tab, url_path="chat", default=True))
        file = f"{folder.name}-adapter.zip"
        st.download_button(texts["make_download"], partial(packed, folder), file, on_click="ignore")
    show_table(("question", "before", "after"), before_and_after(folder), texts)
    st.markdown(summary(scorecard_of(found), found.name, texts))


def choose(found: Found) -> None:
    state["model"] = found.id


def packed(folder: Path) -> bytes:
    with tempfile.TemporaryDirectory() as place:
        return making.zip_adapter(folder, Path(place)).read_bytes()


def show_curves(progress: Progress, texts: Texts) -> None:
    curves = {"losses": loss_rows(progress, texts), "watched": watch_rows(progress, texts)}
    drawn = {title: rows for title, rows in curves.items() if rows}
    for place, (title, rows) in zip(st.columns(max(1, len(drawn))), drawn.items(), strict=False):
        names = list(dict.fromkeys(name for row in rows for name in row if name != "step"))
        colours: Any = CURVES[: len(names)]
        with place:
            st.caption(texts["make_" + title])
            frame, step = pd.DataFrame(rows), texts["make_step"]
            st.line_chart(frame, x="step", y=names, color=colours, height=240, x_label=step)
