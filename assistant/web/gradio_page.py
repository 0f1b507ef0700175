"""The assistant's page in Gradio: a sidebar with conversations and settings, and the tabs."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import gradio as gr

from assistant.web import Engine
from assistant.web.gradio_chat import chat_tab
from assistant.web.gradio_compare import compare_tab
from assistant.web.gradio_image import image_tab
from assistant.web.gradio_make import make_tab
from assistant.web.gradio_parts import (
    LATEST,
    LOOK,
    PRIVATE,
    QUICK,
    Parts,
    model_choices,
    sayer,
    setting_inputs,
    translations,
)
from assistant.web.gradio_scorecard import scorecard_tab
from assistant.web.gradio_strength import build_dial, wire_dial
from assistant.web.models import Engines
from assistant.web.store import the_store
from assistant.web.texts import (
    Texts,
    fixed_language,
    in_language,
    load_texts,
    pick_language,
    preset_of,
    presets_of,
)

__all__ = ["LOOK", "build_page", "translations"]

LOOK_S = 0.05  # between two looks for what a visitor asks
# Each opens one gr.Tab; a new tab is one more function here.
TABS: list[Callable[[gr.Blocks, Parts], None]] = [chat_tab, image_tab, compare_tab, scorecard_tab, make_tab]


def build_page(engine: Engine) -> gr.Blocks:
    with gr.Blocks(title=engine.name, delete_cache=(3600, 3600)) as page:
        parts = build_sidebar(page, engine)
        with gr.Tabs():
            for tab in TABS:
                tab(page, parts)
    page.queue(max_size=400)  # far above what the engine's own line lets wait: that one says so in words
    # By itself Gradio looks a thousand times a second, a twelfth of a core, for as long as the page runs,
    # and a hundred times for gr.Progress, which nothing here has.
    page._queue.sleep_when_free = LOOK_S
    page._queue.progress_update_sleep_when_free = 1.0
    return page


def build_sidebar(page: gr.Blocks, engine: Engine) -> Parts:
    say, engines, known = sayer(engine), Engines(engine), load_texts()
    # A key of our own: with Gradio's random one a restart of the server would empty every browser.
    browser = gr.BrowserState({}, storage_key="little-assistant", secret="little-assistant")
    with gr.Sidebar(label=say("chats"), width=300, open=False) as sidebar:
        name = gr.Markdown(f"# {engine.name}", elem_id="name")
        shelf = gr.Column(elem_id="shelf")
        with gr.Accordion(say("settings"), open=False):
            choices = model_choices(engines, known[pick_language(None)])
            model = gr.Dropdown(
                choices,
                value=choices[0][1] if choices else None,
                label=say("model"),
                filterable=False,
            )
            dial, no_dial = build_dial()
            preset = gr.Dropdown(
                presets(known[pick_language(None)]),
                label=say("preset"),
                filterable=False,
                elem_id="preset",
            )
            system_prompt, sampling = build_prompt(say), [*setting_inputs(say), dial]
        state = gr.Markdown(elem_id="state")
        language = gr.Radio(
            [(texts["language"], code) for code, texts in known.items()],
            value=pick_language(None),
            label=say("language_label"),
            show_label=False,
            container=False,
            visible=fixed_language() is None,
            elem_id="language",
        )
    parts = Parts(
        say, the_store(), engines, browser, language, model, sidebar, shelf, system_prompt, sampling
    )
    wire_presets(parts, preset)
    language.input(None, language, None, js="(language) => assistant.speak(language)")
    wire_model(page, parts, name, state)
    wire_labels(page, parts, preset)
    wire_dial(page, parts, dial, no_dial)
    return parts


def presets(texts: Texts) -> list[tuple[str, str]]:
    return [(name, key) for key, (name, _) in presets_of(texts).items()]


def wire_presets(parts: Parts, preset: gr.Dropdown) -> None:
    """The preset that is shown is the one in use, also after another conversation was opened."""

    def take(key: str, language: str) -> str:
        return presets_of(parts.texts(language)).get(key, ("", ""))[1]

    preset.input(take, [preset, parts.language], parts.system_prompt, **QUICK)
    parts.system_prompt.change(preset_of, parts.system_prompt, preset, **LATEST)


def build_prompt(say: Callable[[str], Any]) -> gr.Textbox:
    return gr.Textbox(
        "", label=say("system_prompt"), info=say("system_hint"), lines=2, max_lines=6, max_length=8000
    )


def wire_model(page: gr.Blocks, parts: Parts, name: gr.Markdown, state: gr.Markdown) -> None:
    async def load(model: str, language: str) -> AsyncIterator[Any]:
        """What the page says while a model loads behind it."""
        engine, texts, begin = parts.engines.get(model), parts.texts(language), time.monotonic()
        while engine.status == "loading":
            seconds = int(time.monotonic() - begin)
            yield f"# {engine.name}", texts.say("model_loading", name=engine.name, seconds=seconds)
            await asyncio.sleep(0.5)
            engine.begin()  # the page is there
        said = in_language(engine.error, texts) or texts.say("model_ready", name=engine.shown_model)
        yield f"# {engine.name}", said

    here = [parts.model, parts.language]
    settings = PRIVATE | {"concurrency_limit": None, "trigger_mode": "always_last"}
    gr.on([page.load, parts.model.change, parts.language.change], load, here, [name, state], **settings)


def wire_labels(page: gr.Blocks, parts: Parts, preset: gr.Dropdown) -> None:
    def label(model: str, language: str) -> tuple[gr.Dropdown, gr.Dropdown]:
        """What there is to choose now, in the page's language."""
        texts = parts.texts(language)
        return gr.Dropdown(model_choices(parts.engines, texts), value=model), gr.Dropdown(presets(texts))

    here = [parts.model, parts.language]
    gr.on([page.load, parts.language.change], label, here, [parts.model, preset], **LATEST)
