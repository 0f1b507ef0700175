"""The assistant's page: `streamlit run app.py`, or `python app.py` for the same in Gradio.

ASSISTANT_MODEL is a folder, a .gguf file, a hub id or http…/v1; ASSISTANT_LANG (en, zh) fixes the language.
ASSISTANT_LOGIN=user:password asks for a login, ASSISTANT_API_KEY guards /v1 (OpenAI's API, docs/api.md);
ASSISTANT_PER_MINUTE and ASSISTANT_MOST_WAITING limit questions.
ASSISTANT_ALLOW_TRAINING (0, 1): whether a visitor may make assistants; else where only this machine can.
"""

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from assistant.web.guard import Access


def main() -> None:
    """Under Streamlit this file is the script of each page; alone it starts Gradio."""
    runtime = sys.modules.get("streamlit.runtime")
    if runtime and runtime.exists():
        from assistant.web.streamlit_page import render

        render()
    elif {"-h", "--help"} & set(sys.argv[1:]):
        print(f"{__doc__}\nGRADIO_SERVER_NAME and GRADIO_SERVER_PORT: where it listens (127.0.0.1:7860).")
    else:
        serve_gradio()


def serve_gradio() -> None:
    from assistant.settings import one_line

    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        access = open_engine()
        from assistant.web.gradio_import import import_gradio

        import_gradio()
        from assistant.web import gradio_server

        gradio_server.main(access)
    except (ValueError, RuntimeError, ModuleNotFoundError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        pass


def open_engine() -> "Access":
    """The engine, with the limits of the environment. Raises ValueError for wrong ones."""
    from assistant.web.engine import the_engine
    from assistant.web.guard import access_from
    from assistant.web.line import Line

    name = use_deploy_file()
    access = access_from(os.environ)
    the_engine().line = Line(access.most_waiting, access.per_minute, proxies=access.proxies)
    the_engine().name = name or the_engine().name
    return access


def fetched(repository: str, file: str) -> str:
    """A file of a Hub repository. Raises RuntimeError, one sentence, when it cannot be had."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import httpx

    try:
        return hf_hub_download(repository, file)
    except (httpx.HTTPError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise RuntimeError(
            f"{repository}/{file} cannot be fetched ({reason}); is it there, and if private, HF_TOKEN set?"
        ) from None


def deployed_model(said: dict[str, str]) -> str:
    """A file or folder beside this one, a file of a Hub repository, which is fetched, or a hub id."""
    if repository := said.get("repository"):
        return fetched(repository, said["model"])
    beside = Path(__file__).resolve().parent / said["model"]
    return str(beside if beside.exists() else said["model"])


def use_deploy_file() -> str:
    """What a published page uses (deploy.json, by scripts/publish.py) unless its environment says else.

    Returns the name of its assistant, which a model fetched from a hub does not tell; empty without the file.
    """
    file = Path(__file__).resolve().with_name("deploy.json")
    if not file.is_file():
        return ""
    said = json.loads(file.read_text(encoding="utf-8"))
    for name, value in said["environment"].items():
        os.environ.setdefault(name, value)
    if os.environ.get("ASSISTANT_MODEL", "").strip():
        return ""
    os.environ["ASSISTANT_MODEL"] = deployed_model(said)
    return str(said["name"])


def streamlit_settings() -> dict[str, Any]:
    """For Streamlit's App: the API beside the page, the guard before both."""
    from assistant.settings import fail, one_line
    from assistant.web.api import routes
    from assistant.web.engine import the_engine
    from assistant.web.streamlit_page import middleware, set_options, show_error

    set_options()
    try:
        access = open_engine()
    except (ValueError, RuntimeError) as error:
        fail(one_line(error), 2)
    the_engine().begin_soon()
    api = routes(the_engine(), access)
    return {"routes": api, "middleware": middleware(access), "on_script_error": show_error}


if __name__ == "__main__":
    main()
else:  # `streamlit run app.py` looks for a line like the last one, and imports this file
    from streamlit.starlette import App

    app = App(__file__, **streamlit_settings())
