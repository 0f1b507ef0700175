"""The assistant's page in Gradio: its constructors and one generator."""

import os
import socket
import sys
from collections.abc import Callable, Generator
from typing import Any

import gradio as gr
from starlette.middleware import Middleware

from assistant.conversations import Message
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
from assistant.web.texts import Texts, fixed_language, load_texts, pick_language

FIRST_PORT = 7860
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


def main() -> None:
    """Serve the page on GRADIO_SERVER_NAME:GRADIO_SERVER_PORT, by default this machine's port 7860."""
    address = os.environ.get("GRADIO_SERVER_NAME") or "127.0.0.1"
    fixed_language()
    reach_own_server()
    port = free_port(address, int(os.environ.get("GRADIO_SERVER_PORT") or FIRST_PORT))
    page = build_page(the_engine())
    _, link, _ = page.launch(**launch_settings(address, port), prevent_thread_lock=True)
    print(f"{the_engine().name}: {link} (Ctrl-C ends it)", flush=True)
    page.block_thread()


def launch_settings(address: str, port: int) -> dict[str, Any]:
    user, _, password = os.environ.get("ASSISTANT_LOGIN", "").partition(":")
    only_local = is_loopback(address)
    if not only_local and not password:
        print(
            f"note: the page listens on {address}: whoever reaches this machine can chat; "
            "ASSISTANT_LOGIN=user:password asks for a login",
            file=sys.stderr,
        )
    return {
        "server_name": address,
        "server_port": port,
        "auth": (user, password) if password else None,
        "share": False,
        "inbrowser": False,
        "quiet": True,
        "show_error": False,
        "strict_cors": True,
        "enable_monitoring": False,
        "run_history": False,
        "ssr_mode": False,
        "max_file_size": "5mb",
        "allowed_paths": [],
        "footer_links": ["api"],
        "theme": THEME,
        "i18n": gr.I18n(**translations(the_engine())) if fixed_language() is None else None,
        "app_kwargs": {"middleware": [Middleware(Guard, only_local=only_local)]},
    }


def reach_own_server() -> None:
    """Gradio asks its own address at start; behind a proxy that would fail without this."""
    for name in ("no_proxy", "NO_PROXY"):
        hosts = [os.environ.get(name, ""), "localhost", "127.0.0.1"]
        os.environ[name] = ",".join(filter(None, hosts))


def free_port(address: str, wanted: int) -> int:
    """`wanted`, or the next free port, saying so. Raises RuntimeError when 100 in a row are taken."""
    for port in range(wanted, wanted + 100):
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address, port))
            except PermissionError:
                raise RuntimeError(
                    f"port {port} needs more rights; set GRADIO_SERVER_PORT above 1023"
                ) from None
            except OSError:
                continue
        if port != wanted:
            print(f"note: port {wanted} is taken; using {port}", file=sys.stderr)
        return port
    raise RuntimeError(f"ports {wanted} to {wanted + 99} on {address} are taken; set GRADIO_SERVER_PORT")
