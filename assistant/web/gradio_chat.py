"""The chat tab of the Gradio page: its constructors, and one generator for every way to ask."""

from collections.abc import Callable, Generator
from typing import Any

import gradio as gr

from assistant.web import Shown, answer
from assistant.web.asking import Refused
from assistant.web.chats import RUNNING, ask, ask_again, rate, reply
from assistant.web.gradio_messages import drawn, plain_text, turn_at, turn_of
from assistant.web.gradio_parts import (
    PRIVATE,
    QUICK,
    Asked,
    Parts,
    answers_box,
    heard,
    open_chat,
    secret,
    text_box,
    texts_for,
)
from assistant.web.gradio_shelf import Widgets, box_at_rest, build_shelf, titles, wire_arrival, wire_shelf
from assistant.web.store import Chat
from assistant.web.talk import read_sampling, read_talk

AT_ONCE = 64  # the engine has its own line, and says how long it is
ASKING: dict[str, Any] = PRIVATE | {"concurrency_limit": AT_ONCE, "concurrency_id": "chat"}


def chat_tab(page: gr.Blocks, parts: Parts) -> None:
    with gr.Tab(parts.say("chat"), id="chat", elem_id="chat-tab"):
        chatbot = build_chatbot(parts)
        comment = build_comment(parts)
        box = build_box(parts)
        with parts.shelf:
            widgets = build_shelf(parts, chatbot, box)
        running = wire_asking(parts, widgets)
        wire_shelf(parts, widgets, running)
        wire_arrival(page, parts, widgets)
        wire_verdict(parts, chatbot, comment)
        gr.api(chat_api(parts), api_name="chat", concurrency_limit=AT_ONCE)


def build_chatbot(parts: Parts) -> gr.Chatbot:
    return answers_box(
        label=parts.engines.own.name,
        show_label=False,
        container=False,
        height="60dvh",
        buttons=["copy", "copy_all"],
        placeholder=parts.say("welcome"),
        editable="user",
        elem_id="chat",
    )


def build_comment(parts: Parts) -> gr.Textbox:
    return text_box(parts, "comment", "save", elem_id="verdict", max_length=1000, visible=False)


def build_box(parts: Parts) -> gr.Textbox:
    return text_box(
        parts,
        "placeholder",
        "send",
        elem_id="box",
        max_length=20000,
        max_lines=8,
        interactive=False,  # until the browser has its secret
        autofocus=True,
    )


def wire_asking(parts: Parts, widgets: Widgets) -> list[Any]:
    """Four ways to ask, one generator; closing it (stop, reload, a closed tab) ends the engine's work."""
    chatbot, box = widgets.chatbot, widgets.box

    def ask_new(message: str, request: gr.Request, *values: Any) -> Generator[Any, None, None]:
        if message.strip():
            change = lambda chat: ask(chat, message)  # noqa: E731
            yield from run(parts, widgets, change, heard(parts, request, values), box_text="")

    def ask_example(example: gr.SelectData, request: gr.Request, *values: Any) -> Generator[Any, None, None]:
        yield from run(
            parts, widgets, lambda chat: ask(chat, example.value["text"]), heard(parts, request, values)
        )

    def ask_once_more(request: gr.Request, *values: Any) -> Generator[Any, None, None]:
        yield from run(
            parts, widgets, lambda chat: ask_again(chat, len(chat.turns)), heard(parts, request, values)
        )

    def ask_edited(edit: gr.EditData, request: gr.Request, *values: Any) -> Generator[Any, None, None]:
        asked = heard(parts, request, values)

        def change(chat: Chat) -> bool:
            return ask_again(chat, turn_at(chat.turns, asked.texts, edit.index), plain_text(edit.value))

        yield from run(parts, widgets, change, asked)

    outputs = [chatbot, box, parts.browser, widgets.chats, widgets.title]
    running = [
        box.submit(ask_new, [box, *parts.asked], outputs, **ASKING),
        chatbot.example_select(ask_example, parts.asked, outputs, **ASKING),
        chatbot.retry(ask_once_more, parts.asked, outputs, **ASKING),
        chatbot.edit(ask_edited, parts.asked, outputs, **ASKING),
    ]
    for event in running:
        event.failure(lambda: box_at_rest(parts), None, box, **QUICK)
    box.stop(lambda browser: RUNNING.stop(open_chat(browser)), parts.browser, None, **QUICK)
    return running


def run(
    parts: Parts,
    widgets: Widgets,
    change: Callable[[Chat], bool],
    asked: Asked,
    box_text: str | None = None,
) -> Generator[Any, None, None]:
    """Change the open conversation so that it ends with a question, and show the answer growing."""
    chat = parts.store.load(asked.browser, asked.chat) or Chat()
    chat.system_prompt = asked.system_prompt
    if not change(chat):
        return
    before = list(chat.turns)
    beside: dict[Any, Any] = {
        widgets.box: box_while_answering(parts, box_text),
        parts.browser: {"id": asked.browser, "chat": chat.id},
    }
    for shown in reply(
        parts.store, asked.browser, chat, asked.engine, asked.sampling, asked.texts, asked.client
    ):
        turns = [*before, turn_of(shown)]
        yield {widgets.chatbot: drawn(turns, asked.texts, shown.meanwhile), **beside}
        beside = {}
    kept = parts.store.load(asked.browser, chat.id)  # it may have been renamed meanwhile
    yield {
        widgets.box: box_at_rest(parts),
        widgets.chats: titles(parts, asked.browser, chat.id),
        widgets.title: kept.title if kept else "",
    }


def box_while_answering(parts: Parts, text: str | None) -> gr.Textbox:
    buttons = {"submit_btn": False, "stop_btn": parts.say("stop")}
    return gr.Textbox(**buttons) if text is None else gr.Textbox(text, **buttons)


def wire_verdict(parts: Parts, chatbot: gr.Chatbot, comment: gr.Textbox) -> None:
    """A thumb up or down is kept with the answer; then there is room for a comment."""
    rated = gr.State(-1)

    def like(data: gr.LikeData, browser: Any, language: str) -> dict[Any, Any]:
        chat = parts.store.load(secret(browser), open_chat(browser))
        if not chat:
            return {comment: gr.Textbox(visible=False)}
        at = turn_at(chat.turns, parts.texts(language), data.index)
        liked = data.liked if isinstance(data.liked, bool) else None
        parts.store.change(secret(browser), chat.id, lambda chat: rate(chat, at, liked))
        # What is hidden at first does not know its texts; it gets them when it is shown.
        shown = gr.Textbox("", visible=liked is not None, submit_btn=parts.say("save"))
        return {comment: shown, rated: at}

    def note(text: str, at: int, browser: Any, language: str) -> gr.Textbox:
        chat = parts.store.load(secret(browser), open_chat(browser))
        if chat and 0 <= at < len(chat.turns):
            liked = chat.turns[at].get("liked")
            parts.store.change(secret(browser), chat.id, lambda chat: rate(chat, at, liked, text))
            gr.Info(parts.texts(language)["thanks"], title="", duration=3)
        return gr.Textbox(visible=False)

    here = [parts.browser, parts.language]
    chatbot.like(like, here, [comment, rated], **QUICK)
    comment.submit(note, [comment, rated, *here], comment, **PRIVATE)


def chat_api(parts: Parts) -> Any:
    """The page's endpoint for programs: one question, with the conversation so far if there is one."""

    def chat(
        message: str,
        system_prompt: str = "",
        temperature: float = 0.0,
        top_p: float = 0.9,
        max_new_tokens: int = 512,
        history: list[dict[str, str]] | None = None,
        request: gr.Request | None = None,
    ) -> Generator[str, None, None]:
        try:
            messages = read_talk(message, history, system_prompt)
            sampling = read_sampling(temperature, top_p, max_new_tokens)
        except Refused as error:
            raise gr.Error(str(error), print_exception=False) from None
        shown, client = Shown(), request.client.host if request and request.client else ""
        for shown in answer(parts.engines.own, messages, sampling, texts_for(request), client):
            yield shown.text
        if shown.failed:
            raise gr.Error(shown.note, print_exception=False)

    return chat
