"""The tab that makes an assistant; where the page may not or cannot, it says what one's own machine can."""

import os

import gradio as gr

from assistant.web.gradio_parts import Parts
from assistant.web.permission import can_train, may_train


def make_tab(page: gr.Blocks, parts: Parts) -> None:
    address = os.environ.get("GRADIO_SERVER_NAME") or "127.0.0.1"
    with gr.Tab(parts.say("make"), elem_id="make-tab") as tab:
        if not (may_train(os.environ, address) and can_train()):
            gr.Markdown(parts.say("make_off"), elem_id="make-off")
            return
        from assistant.web.gradio_making import build_workshop  # a published page has no use for it

        build_workshop(parts, tab)
