"""The assistant's page in Gradio: its constructors and one generator."""

from collections.abc import Callable, Generator
from typing import Any

import gradio as gr

from assistant.conversations import Message
from assistant.web import (
    MAX_NEW_TOKENS,
    MAX_TEMPERATURE,
    Engine,
    Shown,
    answer,
    conversation,
    sampling_from,
)
from assistant.web.texts import Texts, fixed_language, load_texts, pick_language

# `$…$` is left out on purpose: "$5 and $10" is money.
LATEX: list[dict[str, str | bool]] = [
    {"left": left, "right": right, "display": display}
    for left, right, display in (("$$", "$$", True), (r"\[", r"\]", True), (r"\(", r"\)", False))
]
# gradio 6.31 ships a semi-bold of this font without most lower-case letters; regular and bold are whole.
THEME = gr.themes.Default(
    primary_hue="indigo",
    neutral_hue="slate",
    font=[gr.themes.LocalFont("Source Sans Pro", weights=(400, 700)), "system-ui", "sans-serif"],
)


def build_page(engine: Engine) -> gr.Blocks:
    say = sayer(engine)
    with gr.ChatInterface(
        respond(engine),
        title=engine.name,
        chatbot=build_chatbot(engine, say),
        textbox=gr.Textbox(
            placeholder=say("placeholder"), show_label=False, submit_btn=True, stop_btn=True, max_length=20000
        ),
        examples=[[text] for text in load_texts()[pick_language(None)]["examples"]],
        cache_examples=False,
        additional_inputs=setting_inputs(say),
        additional_inputs_accordion=gr.Accordion(say("settings"), open=False),
        flagging_mode="never",
        delete_cache=(3600, 3600),
        api_name="chat",
        concurrency_limit=16,  # the engine has its own line, and says how long it is
        fill_height=True,
    ) as page:
        page.load(examples_for, None, page.chatbot, api_visibility="private", queue=False)
    page.queue(max_size=64)
    return page


def build_chatbot(engine: Engine, say: Callable[[str], Any]) -> gr.Chatbot:
    return gr.Chatbot(
        label=engine.name,
        show_label=False,
        height="calc(100dvh - 250px)",
        min_height=280,
        sanitize_html=True,
        allow_tags=False,
        latex_delimiters=LATEX,
        buttons=["copy", "copy_all"],
        placeholder=say("tagline"),
        layout="bubble",
    )


def sayer(engine: Engine) -> Callable[[str], Any]:
    """Texts that the browser picks by its language, or the plain ones that ASSISTANT_LANG asks for."""
    if fixed_language() is None:
        return gr.I18n(**translations(engine))
    return lambda key: load_texts()[pick_language(None)].say(key, name=engine.name)


def setting_inputs(say: Callable[[str], Any]) -> list[Any]:
    least, most = MAX_NEW_TOKENS
    return [
        gr.Textbox("", label=say("system_prompt"), info=say("system_hint"), lines=2, max_length=8000),
        gr.Slider(0, MAX_TEMPERATURE, 0, step=0.05, label=say("temperature"), info=say("temperature_hint")),
        gr.Slider(0.05, 1, 0.9, step=0.05, label=say("top_p"), info=say("top_p_hint")),
        gr.Slider(least, most, 512, step=16, label=say("max_new_tokens")),
    ]


def translations(engine: Engine) -> dict[str, dict[str, str]]:
    """Texts by the locales that browsers name, for the front end to choose from."""
    locales = {"en": ("en",), "zh": ("zh", "zh-CN", "zh-TW", "zh-HK")}
    return {
        locale: {key: str(text).replace("{name}", engine.name) for key, text in texts.items()}
        for language, texts in load_texts().items()
        for locale in locales.get(language, (language,))
    }


def texts_for(request: gr.Request | None) -> Texts:
    return load_texts()[pick_language(request.headers.get("accept-language") if request else None)]


def examples_for(request: gr.Request) -> gr.Chatbot:
    return gr.Chatbot(examples=[{"text": text} for text in texts_for(request)["examples"]])


def respond(engine: Engine) -> Any:
    """The one generator of the page; closing it (stop, reload, a closed tab) ends the engine's work."""

    def chat(
        message: str,
        history: list[dict[str, Any]],
        system_prompt: str,
        temperature: float,
        top_p: float,
        max_new_tokens: float,
        request: gr.Request,
    ) -> Generator[Any, None, None]:
        texts = texts_for(request)
        if not message.strip():
            yield drawn(Shown(note=texts["empty"], failed=True), texts)
            return
        messages = conversation([*spoken(history), {"role": "user", "content": message}], system_prompt)
        sampling = sampling_from(temperature, top_p, max_new_tokens)
        for shown in answer(engine, messages, sampling, texts):
            yield drawn(shown, texts)

    return chat


def drawn(shown: Shown, texts: Texts) -> Any:
    """A plain answer as text; a note as a message of its own, marked so that no model ever reads it."""
    notes = []
    if shown.meanwhile:
        notes.append(gr.ChatMessage(content="", metadata={"title": shown.meanwhile, "status": "pending"}))
    if shown.note:
        title = texts["failed" if shown.failed else "note"]
        notes.append(gr.ChatMessage(content=shown.note, metadata={"title": title}))
    if not notes:
        return shown.text
    return [gr.ChatMessage(content=shown.text), *notes] if shown.text else notes


def spoken(history: list[dict[str, Any]]) -> list[Message]:
    """The turns of a Gradio history without its notes, as messages."""
    return [
        {"role": turn["role"], "content": text}
        for turn in history
        if not (turn.get("metadata") or {}).get("title") and (text := plain_text(turn["content"]))
    ]


def plain_text(content: Any) -> str:
    blocks = content if isinstance(content, list) else [content]
    return "".join(block if isinstance(block, str) else str(block.get("text", "")) for block in blocks)
