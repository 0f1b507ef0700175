"""How the Gradio page is served: its address, who may come in, and what stays switched off."""

import os
import socket
import sys
from typing import Any

import gradio as gr
from starlette.middleware import Middleware

from assistant.web import the_engine
from assistant.web.api import routes
from assistant.web.gradio_head import EarlyHead, page_head
from assistant.web.gradio_page import LOOK, build_page, translations
from assistant.web.guard import Access, doors, notes
from assistant.web.line import is_loopback
from assistant.web.texts import fixed_language

FIRST_PORT = 7860


def main(access: Access) -> None:
    """Serve the page on GRADIO_SERVER_NAME:GRADIO_SERVER_PORT, by default this machine's port 7860."""
    address = os.environ.get("GRADIO_SERVER_NAME") or "127.0.0.1"
    fixed_language()
    reach_own_server()
    port = free_port(address, int(os.environ.get("GRADIO_SERVER_PORT") or FIRST_PORT))
    page = build_page(the_engine())
    _, link, _ = page.launch(**launch_settings(access, address, port), prevent_thread_lock=True)
    print(f"{the_engine().name}: {link} (Ctrl-C ends it)", flush=True)
    the_engine().begin_soon()
    page.block_thread()


def launch_settings(access: Access, address: str, port: int) -> dict[str, Any]:
    user, _, password = access.login.partition(":")
    for note in notes(access, address):
        print(f"note: {note}", file=sys.stderr)
    guard = doors(access, only_local=is_loopback(address))  # Gradio asks for the login itself
    head = Middleware(EarlyHead, head=page_head())
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
        "footer_links": ["api", "settings"],
        **LOOK,
        "i18n": gr.I18n(**translations(the_engine())) if fixed_language() is None else None,
        "app_kwargs": {"middleware": [*guard, head], "routes": routes(the_engine(), access)},
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
