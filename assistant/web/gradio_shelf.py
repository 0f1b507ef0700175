"""The conversations in the Gradio page's sidebar: new, open, rename, delete, export, import, undo, clear."""

import tempfile
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from assistant.web.chats import change_chat, delete_chat, undo
from assistant.web.exchange import from_json, write_files
from assistant.web.gradio_messages import drawn
from assistant.web.gradio_parts import PRIVATE, QUICK, Parts, open_chat, secret, texts_for
from assistant.web.store import Chat, new_browser
from assistant.web.texts import Texts

PHONE = 768  # pixels: where Gradio's sidebar begins to cover the page


@dataclass(frozen=True)
class Widgets:
    chatbot: gr.Chatbot
    box: gr.Textbox
    new: gr.Button
    chats: gr.Radio
    title: gr.Textbox
    export: gr.Button
    upload: gr.UploadButton
    delete: gr.Button
    really: gr.Button
    exported: gr.Row
    files: list[gr.DownloadButton]


def build_shelf(parts: Parts, chatbot: gr.Chatbot, box: gr.Textbox) -> Widgets:
    say = parts.say
    new = gr.Button(say("new_chat"), variant="primary", elem_id="new")
    chats = gr.Radio([], label=say("chats"), elem_id="chats", container=False, interactive=True)
    with gr.Accordion(say("this_chat"), open=False):
        title = gr.Textbox(
            label=say("title"),
            placeholder=say("title"),
            show_label=False,
            container=False,
            submit_btn=say("rename"),
            max_length=200,
            elem_id="title",
        )
        with gr.Row():
            export = gr.Button(say("export"), size="sm", min_width=50)
            upload = gr.UploadButton(say("import"), file_types=[".json"], size="sm", min_width=50)
            delete = gr.Button(say("delete"), size="sm", min_width=50)
        really = gr.Button(say("really"), variant="stop", size="sm", visible=False)
        with gr.Row(visible=False) as exported:
            files = [gr.DownloadButton(kind, size="sm", min_width=50) for kind in ("JSON", "Markdown")]
    return Widgets(chatbot, box, new, chats, title, export, upload, delete, really, exported, files)


def wire_shelf(parts: Parts, widgets: Widgets, running: list[Any]) -> None:
    """Leaving a conversation ends the answer that is being written there; what was said stays."""
    leave = QUICK | {"outputs": outputs(parts, widgets), "cancels": running}
    wire_opening(parts, widgets, leave)
    wire_changing(parts, widgets, leave)
    wire_files(parts, widgets, leave)


def outputs(parts: Parts, widgets: Widgets) -> list[Any]:
    shown = [widgets.chatbot, widgets.box, widgets.chats, widgets.title, widgets.exported, widgets.really]
    return [parts.browser, parts.system_prompt, *shown]


def show(parts: Parts, widgets: Widgets, browser: str, chat: Chat | None, texts: Texts) -> dict[Any, Any]:
    """The page with this conversation open, or with none."""
    chat = chat or Chat(id="")
    return {
        parts.browser: {"id": browser, "chat": chat.id},
        parts.system_prompt: chat.system_prompt,
        widgets.chatbot: drawn(chat.turns, texts),
        widgets.box: box_at_rest(parts),
        widgets.chats: titles(parts, browser, chat.id),
        widgets.title: chat.title,
        widgets.exported: gr.Row(visible=False),
        widgets.really: gr.Button(visible=False),
    }


def titles(parts: Parts, browser: str, chat: str) -> gr.Radio:
    known = parts.store.titles(browser)
    return gr.Radio(known, value=chat if any(id == chat for _, id in known) else None, visible=bool(known))


def box_at_rest(parts: Parts, text: str | None = None) -> gr.Textbox:
    buttons = {"submit_btn": parts.say("send"), "stop_btn": False, "interactive": True}
    return gr.Textbox(text, **buttons) if text else gr.Textbox(**buttons)


def wire_opening(parts: Parts, widgets: Widgets, leave: dict[str, Any]) -> None:
    def select(chosen: gr.SelectData, browser: Any, language: str) -> dict[Any, Any]:
        chat = parts.store.load(secret(browser), str(chosen.value))
        return show(parts, widgets, secret(browser), chat, parts.texts(language))

    def begin(browser: Any, language: str) -> dict[Any, Any]:
        return show(parts, widgets, secret(browser), None, parts.texts(language))

    here = [parts.browser, parts.language]
    widgets.chats.select(select, here, **leave)
    widgets.new.click(begin, here, **leave)


def wire_arrival(page: gr.Blocks, parts: Parts, widgets: Widgets) -> None:
    """A browser that comes for the first time gets its secret; one that comes back, its conversation."""
    with parts.shelf:
        locale, width = gr.Textbox(visible=False), gr.Number(visible=False)

    def arrive(browser: Any, locale: str, width: float, request: gr.Request) -> dict[Any, Any]:
        texts = parts.texts(locale) if locale else texts_for(request)
        id = secret(browser) or new_browser()
        shown = show(parts, widgets, id, parts.store.load(id, open_chat(browser)), texts)
        examples: list[Any] = [{"text": text} for text in texts["examples"]]
        shown[widgets.chatbot] = gr.Chatbot(shown[widgets.chatbot], examples=examples)
        is_wide = not width or width >= PHONE
        return shown | {parts.language: texts.code, parts.sidebar: gr.Sidebar(open=is_wide)}

    here = [parts.browser, locale, width]
    changed = [*outputs(parts, widgets), parts.language, parts.sidebar]
    page.load(arrive, here, changed, js="(...here) => assistant.arrive(...here)", **QUICK)


def empty(chat: Chat) -> str:
    chat.turns.clear()
    return ""


def wire_changing(parts: Parts, widgets: Widgets, leave: dict[str, Any]) -> None:
    def change(browser: Any, language: str, how: Callable[[Chat], str]) -> dict[Any, Any]:
        id, questions = secret(browser), [""]
        chat = change_chat(parts.store, id, open_chat(browser), lambda chat: questions.append(how(chat)))
        shown = show(parts, widgets, id, chat, parts.texts(language))
        return shown | {widgets.box: box_at_rest(parts, questions[-1])}

    def clear(browser: Any, language: str) -> dict[Any, Any]:
        return change(browser, language, empty)

    def take_back(browser: Any, language: str) -> dict[Any, Any]:
        return change(browser, language, undo)

    def rename(title: str, browser: Any) -> gr.Radio:
        parts.store.rename(secret(browser), open_chat(browser), title)
        return titles(parts, secret(browser), open_chat(browser))

    def delete(browser: Any, language: str) -> dict[Any, Any]:
        delete_chat(parts.store, secret(browser), open_chat(browser))
        return show(parts, widgets, secret(browser), None, parts.texts(language))

    here = [parts.browser, parts.language]
    widgets.chatbot.clear(clear, here, **leave)
    widgets.chatbot.undo(take_back, here, **leave)
    widgets.title.submit(rename, [widgets.title, parts.browser], widgets.chats, **QUICK)
    widgets.delete.click(lambda: gr.Button(parts.say("really"), visible=True), None, widgets.really, **QUICK)
    widgets.really.click(delete, here, **leave)


def wire_files(parts: Parts, widgets: Widgets, leave: dict[str, Any]) -> None:
    def export(browser: Any, language: str) -> Generator[Any, None, None]:
        texts = parts.texts(language)
        if not (chat := parts.store.load(secret(browser), open_chat(browser))):
            gr.Info(texts["nothing_yet"], title=texts["export"])
            return
        with tempfile.TemporaryDirectory() as folder:  # Gradio copies them into its own, which it empties
            paths = write_files(chat, Path(folder), texts)
            files = dict(zip(widgets.files, map(gr.DownloadButton, ["JSON", "Markdown"], paths), strict=True))
            yield {widgets.exported: gr.Row(visible=True), **files}

    def take_in(upload: str, browser: Any, language: str) -> dict[Any, Any]:
        texts, id = parts.texts(language), secret(browser)
        try:
            chats = from_json(Path(upload).read_bytes(), Path(upload).name)
            for chat in reversed(chats):
                parts.store.save(id, chat)
        except ValueError as error:
            gr.Warning(texts.say_error("import_failed", error), title=texts["import"])
            return {}
        gr.Info(texts.say("imported", number=len(chats)), title=texts["import"])
        return show(parts, widgets, id, chats[0], texts)

    here = [parts.browser, parts.language]
    # Only what goes through the queue can say something in a corner of the page.
    widgets.export.click(export, here, [widgets.exported, *widgets.files], **PRIVATE)
    widgets.upload.upload(take_in, [widgets.upload, *here], **leave | {"queue": True})
