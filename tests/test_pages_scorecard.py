import contextvars
import tempfile
from types import SimpleNamespace

from PIL import Image

from assistant.folders import write_json
from assistant.web.models import Found


def test_gradio_shows_the_picture_of_a_scorecard_that_lies_elsewhere(tmp_path, monkeypatch):
    """Gradio itself shows no file outside the folder it was started in, and follows links to find out."""
    import gradio as gr
    from gradio.context import LocalContext

    from assistant.web.gradio_parts import Parts
    from assistant.web.gradio_scorecard import scorecard_tab

    (tmp_path / "scorecard").mkdir()
    write_json(tmp_path / "scorecard" / "scorecard.json", {"passed": True})
    Image.new("RGB", (8, 8)).save(tmp_path / "scorecard" / "scorecard.png")
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "kept"))
    ada = Found("ada", "Ada", "merged", str(tmp_path / "model"))
    with gr.Blocks() as page:
        here = {"language": gr.Textbox(), "model": gr.Textbox()}
        engines = SimpleNamespace(find=lambda id: ada)
        parts = SimpleNamespace(say=lambda key: key, texts=Parts.texts, engines=engines, **here)
        scorecard_tab(page, parts)  # type: ignore[arg-type]
    (shows,) = page.fns.values()
    monkeypatch.setattr(tempfile, "gettempdir", lambda: "/nowhere")
    launched = SimpleNamespace(has_launched=True, is_running=False, allowed_paths=[], blocked_paths=[])
    alone = contextvars.copy_context()
    alone.run(LocalContext.blocks.set, launched)
    _, picture = alone.run(shows.fn, "ada", "en").values()
    assert picture.visible and picture.value["path"].startswith(str(tmp_path / "kept"))
