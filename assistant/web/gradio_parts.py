"""What the tabs of the Gradio page share: the look, the texts, the browser's secret, the settings."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from assistant.backends import Sampling
from assistant.web import MAX_NEW_TOKENS, MAX_TEMPERATURE, Engine, sampling_from
from assistant.web.models import Engines, labels_of
from assistant.web.store import Store
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
    radius_size="lg",
    font=[gr.themes.LocalFont("Source Sans Pro", weights=(400, 700)), "system-ui", "sans-serif"],
).set(  # white on the button, and hints on the page, are readable: a contrast of at least 4.5
    button_primary_background_fill="*primary_600",
    button_primary_background_fill_hover="*primary_700",
    body_text_color_subdued="*neutral_600",
    body_text_color_subdued_dark="*neutral_400",
)
LOOK: dict[str, Any] = {
    "theme": THEME,
    "css_paths": [Path(__file__).with_name("page.css")],
}
PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
# No component counts the seconds of what is over at once.
QUICK: dict[str, Any] = PRIVATE | {"queue": False, "show_progress_on": []}
# For what shows a state of the page: a change that comes while the last one is drawn is drawn after it.
LATEST: dict[str, Any] = QUICK | {"trigger_mode": "always_last"}


@dataclass(frozen=True)
class Parts:
    """What a tab may use; `browser` holds {"id": the browser's secret, "chat": the open conversation}."""

    say: Callable[[str], Any]
    store: Store
    engines: Engines
    browser: gr.BrowserState
    language: gr.Radio
    model: gr.Dropdown
    sidebar: gr.Sidebar
    shelf: gr.Column
    system_prompt: gr.Textbox
    sampling: list[gr.Slider]

    @staticmethod
    def texts(language: str | None) -> Texts:
        """The texts of the page's language switch, which a visitor may have set to anything."""
        return load_texts()[pick_language(language)]

    @property
    def asked(self) -> list[Any]:
        """The inputs of every event that asks a model; see `heard`."""
        return [self.browser, self.language, self.model, self.system_prompt, *self.sampling]


@dataclass(frozen=True)
class Asked:
    """The values of Parts.asked, as a visitor may have sent them, within limits."""

    browser: str
    chat: str
    texts: Texts
    engine: Engine
    system_prompt: str
    sampling: Sampling
    client: str


def heard(parts: Parts, request: gr.Request | None, values: tuple[Any, ...]) -> Asked:
    browser, language, model, system_prompt, *sampling = values
    return Asked(
        secret(browser),
        open_chat(browser),
        parts.texts(language),
        parts.engines.get(model),
        str(system_prompt or ""),
        sampling_from(*sampling),
        request.client.host if request and request.client else "",
    )


def secret(browser: Any) -> str:
    return str((browser or {}).get("id") or "")


def open_chat(browser: Any) -> str:
    return str((browser or {}).get("chat") or "")


def sayer(engine: Engine) -> Callable[[str], Any]:
    """Texts that the browser picks by its language, or the plain ones that ASSISTANT_LANG asks for."""
    if fixed_language() is None:
        return gr.I18n(**translations(engine))
    return lambda key: load_texts()[pick_language(None)].say(key, name=engine.name)


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


def setting_inputs(say: Callable[[str], Any]) -> list[gr.Slider]:
    least, most = MAX_NEW_TOKENS
    return [
        gr.Slider(0, MAX_TEMPERATURE, 0, step=0.05, label=say("temperature"), info=say("temperature_hint")),
        gr.Slider(0.05, 1, 0.9, step=0.05, label=say("top_p"), info=say("top_p_hint")),
        gr.Slider(least, most, 512, step=16, label=say("max_new_tokens")),
    ]


def text_box(parts: Parts, key: str, send: str, **rest: Any) -> gr.Textbox:
    """A box with its button inside and no label to be seen; `key` and `send` name their texts."""
    said = parts.say(key)
    return gr.Textbox(
        placeholder=said, label=said, show_label=False, container=False, submit_btn=parts.say(send), **rest
    )


def answers_box(**rest: Any) -> gr.Chatbot:
    """Where answers are shown: as Markdown with formulas, and nothing of them is trusted."""
    fixed: dict[str, Any] = {"sanitize_html": True, "allow_tags": False, "latex_delimiters": LATEX}
    return gr.Chatbot(**{"layout": "bubble", "buttons": ["copy"], **rest, **fixed})


def model_choices(engines: Engines, texts: Texts) -> list[tuple[str, str]]:
    return [(label, id) for id, label in labels_of(engines.models(), texts).items()]
