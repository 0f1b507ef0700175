"""Gradio imported in half the time. Knows nothing of pages."""

import inspect
from typing import Any


def import_gradio() -> None:
    """Import Gradio without the .pyi files that it writes beside each of its components (component_meta.py).

    They serve editors alone, and take half of the import. Gradio leaves one out where a component has no
    source file, so until the import is done its components are said to have none; nothing else is touched.
    """
    real = inspect.getfile

    def getfile(thing: Any) -> str:
        if isinstance(thing, type) and thing.__module__.startswith("gradio."):
            raise OSError(f"{thing} is not looked up while Gradio is imported")
        return real(thing)

    inspect.getfile = getfile  # type: ignore[assignment]
    try:
        import gradio  # noqa: F401
    finally:
        inspect.getfile = real
