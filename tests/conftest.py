import gc
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# Pages that a test starts keep their conversations here, not with the user's own.
os.environ.setdefault("ASSISTANT_DATA", tempfile.mkdtemp(prefix="assistant-data-"))
# Some test processes and what they start share the cores: threads that spin while they wait for a core that
# another process has made a tiny model take minutes.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A quarter of the time of importing every test file went into looking for garbage among what is imported.
gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with a browser come first: they take longest, and all processes should end together.

    A test with a browser that fails is asked once more, and the report shows an R: a busy machine can keep
    a page waiting for longer than any of them waits.
    """
    slow = {item.path for item in items if item.get_closest_marker("browser")}
    items.sort(key=lambda item: item.path not in slow)
    for item in items:
        if item.get_closest_marker("browser"):
            item.add_marker(pytest.mark.flaky(reruns=1))


@pytest.fixture(autouse=True)
def own_main(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streamlit leaves a page's script as the main module, which a process started later would run."""
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])


@pytest.fixture(autouse=True)
def own_number_format() -> Iterator[None]:
    """No model loads on behind the next test: while it does, new tensors of all threads have its format."""
    yield
    for thread in threading.enumerate():
        if thread.name == "load":
            thread.join(60)
    if torch := sys.modules.get("torch"):
        left, _ = torch.get_default_dtype(), torch.set_default_dtype(torch.float32)
        assert left is torch.float32, f"new tensors are {left} after this test"


@pytest.fixture(scope="session")
def gradio() -> Any:
    """Gradio, in the page's own quick way; who asks for no page of it does without."""
    from assistant.web.gradio_import import import_gradio

    import_gradio()
    return sys.modules["gradio"]


@pytest.fixture(scope="session")
def server() -> Iterator[Any]:
    """What stands in for the models of pages: `ada` and `base`."""
    from stand_in import stand_in

    with stand_in() as standing:
        yield standing


@pytest.fixture(scope="session")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project for pages; this one may have models, whose eyes each page would open."""
    from workshop import make_stage

    return make_stage(tmp_path_factory.mktemp("stage"))


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Where the pages keep their conversations."""
    return {face: tmp_path_factory.mktemp(face) for face in ("gradio", "streamlit")}


@pytest.fixture(scope="session")
def gradio_url(server: Any, stage: Path, folders: dict[str, Path]) -> Iterator[str]:
    from serving import page_of

    with page_of("gradio", server, folders["gradio"], stage) as url:
        yield url


@pytest.fixture(scope="session")
def streamlit_url(server: Any, stage: Path, folders: dict[str, Path]) -> Iterator[str]:
    from serving import page_of

    with page_of("streamlit", server, folders["streamlit"], stage) as url:
        yield url


@pytest.fixture(scope="module")
def url(engine: Any) -> Iterator[str]:
    """The API of the file's own `engine`."""
    from serving import api_of

    with api_of(engine) as address:
        yield address


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[Any]:
    """OpenAI's own client of that API."""
    from serving import client_of

    with client_of(url) as opened:
        yield opened


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """Debian's browser, with a camera that everybody may use."""
    from visiting import CAMERA, Desk

    playwright = pytest.importorskip("playwright.sync_api")
    path = shutil.which("chromium")
    if not path:
        pytest.skip("chromium is not installed: apt-get install chromium fonts-wqy-microhei")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=CAMERA)
        yield Desk(browser)
        browser.close()
