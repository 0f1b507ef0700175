"""The tab with the chosen assistant's scorecard: verdict, table, picture."""

from typing import Any

import gradio as gr
from gradio.processing_utils import save_file_to_cache

from assistant.web.gradio_parts import LATEST, Parts
from assistant.web.models import scorecard_of
from assistant.web.scorecard_view import summary


def scorecard_tab(page: gr.Blocks, parts: Parts) -> None:
    with gr.Tab(parts.say("scorecard"), elem_id="scorecard-tab"):
        said = gr.Markdown(elem_id="scorecard")
        picture = gr.Image(
            show_label=False,
            label=parts.say("scorecard_picture"),
            alt_text=parts.say("scorecard_picture"),
            interactive=False,
            container=False,
            visible=False,
            buttons=["fullscreen"],
            elem_id="scorecard-picture",
        )

    def show(model: str, language: str) -> dict[Any, Any]:
        found, texts = parts.engines.find(model), parts.texts(language)
        folder = scorecard_of(found) if found else None
        path = folder / "scorecard.png" if folder else None
        # A copy of our own: where out/ is a link to another disk, Gradio refuses the file itself.
        kept = save_file_to_cache(path, picture.GRADIO_CACHE) if path and path.is_file() else None
        return {
            said: summary(folder, found.name if found else "", texts),
            picture: gr.Image(kept, visible=bool(kept)),
        }

    here = [parts.model, parts.language]
    gr.on([page.load, parts.language.change, parts.model.change], show, here, [said, picture], **LATEST)
