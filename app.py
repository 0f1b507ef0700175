"""The assistant's page: `streamlit run app.py`, or `python app.py` for the same in Gradio.

ASSISTANT_MODEL is a folder, a hub id or http…/v1; ASSISTANT_LANG (en, zh) fixes the language.
"""

import os
import sys


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
    from assistant.web import the_engine

    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    the_engine()  # loads while gradio is imported
    try:
        from assistant.web import gradio_server

        gradio_server.main()
    except (ValueError, RuntimeError, ModuleNotFoundError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
else:  # `streamlit run app.py` imports this file and finds the server here
    from streamlit.starlette import App

    from assistant.web import the_engine
    from assistant.web.streamlit_page import middleware, set_options, show_error

    set_options()
    the_engine()
    app = App(__file__, middleware=middleware(), on_script_error=show_error)
