"""The dial of the Gradio page: how strongly an adapter speaks; for other models a sentence in its place."""

from typing import Any

import gradio as gr

from assistant.strength import MOST_STRENGTH
from assistant.web.gradio_parts import LATEST, Parts
from assistant.web.models import has_dial


def build_dial() -> tuple[gr.Slider, gr.Markdown]:
    """Shown, and told their texts, once the page knows its model and its language."""
    return (
        gr.Slider(0, MOST_STRENGTH, 1, step=0.05, visible=False, elem_id="strength"),
        gr.Markdown(elem_classes="hint", elem_id="strength-none"),
    )


def wire_dial(page: gr.Blocks, parts: Parts, dial: gr.Slider, none: gr.Markdown) -> None:
    def show(model: str, language: str) -> dict[Any, Any]:
        texts, is_there = parts.texts(language), has_dial(parts.engines.find(model))
        return {
            dial: gr.Slider(label=texts["strength"], info=texts["strength_hint"], visible=is_there),
            none: gr.Markdown("" if is_there else texts["strength_none"], visible=not is_there),
        }

    changes = [page.load, parts.model.change, parts.language.change]
    gr.on(changes, show, [parts.model, parts.language], [dial, none], **LATEST)
