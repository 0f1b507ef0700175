"""A person with a browser before either page, for tests: what one does there, and what one sees."""

import re
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from assistant.web.texts import load_texts

SLOW_MS = 60_000  # beside other work
DECORATION = "[data-testid=stIconMaterial]"  # Streamlit's icons, hidden from screen readers
DESK, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
AT_REST = "* { transition: none !important; animation: none !important }"
CAMERA = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
KEPT = "local_storage,indexeddb,cache_storage,service_workers,file_systems,shared_storage,storage_buckets"
# What a person reads or hears, one text a line; not code, nor tables and curves, which hold data.
READ = """() => [...document.querySelectorAll("body *")]
    .filter(node => node.checkVisibility())
    .filter(node => !node.closest("code, pre, td, svg, script, style, [data-testid=stIconMaterial]"))
    .flatMap(node => [
        ...[...node.childNodes].filter(child => child.nodeType === 3 && node.tagName !== "TEXTAREA")
            .map(child => child.nodeValue),
        ...["aria-label", "title", "placeholder", "alt"].map(name => node.getAttribute(name) ?? "")])"""
WORD = re.compile(r"[A-Za-z]{2,}")


class Desk:
    """A browser whose pages are lent: one that comes back forgets its visitor, but not the page's code.

    To read that code anew in a new context takes two seconds, as long as most of what a visitor does.
    """

    def __init__(self, browser: Any) -> None:
        self.browser = browser
        self._spare: dict[str, list[Any]] = defaultdict(list)
        self._lent: dict[Any, dict[str, Any]] = {}

    def lend(self, **context: Any) -> Any:
        spare = self._spare[str(sorted(context.items()))]
        page = spare.pop() if spare else self.browser.new_context(**context).new_page()
        self._lent[page] = context
        return page

    def take_back(self, page: Any) -> None:
        """Another visitor of the same kind may have it: whatever a site can keep in a browser is gone."""
        context, own, address = self._lent.pop(page), page.context, urlsplit(page.url)
        if not address.netloc:  # what the tab has kept can be reached from its site alone
            return own.close()
        page.evaluate("sessionStorage.clear()")
        page.goto("about:blank")
        for other in own.pages:
            if other is not page:
                other.close()
        own.clear_cookies()
        own.clear_permissions()
        own.grant_permissions(context.get("permissions", []))
        origin = {"origin": f"{address.scheme}://{address.netloc}", "storageTypes": KEPT}
        own.new_cdp_session(page).send("Storage.clearDataForOrigin", origin)
        page.set_viewport_size(context.get("viewport", {"width": 1280, "height": 720}))
        page.emulate_media(color_scheme=context.get("color_scheme", "light"))
        self._spare[str(sorted(context.items()))].append(page)

    @contextmanager
    def beside(self, *flags: str) -> Iterator["Desk"]:
        """One more browser, with other flags."""
        browser = self.browser.browser_type.launch(executable_path=shutil.which("chromium"), args=[*flags])
        yield Desk(browser)
        browser.close()


class Visit:
    """One person's browser on one of the two pages; it notes foreign requests and page errors."""

    def __init__(self, desk: Desk, url: str, kind: str, **context: Any) -> None:
        self.kind, self._desk, self._is_marked = kind, desk, False
        self.complaints: list[str] = []
        self.page = self._own = desk.lend(**({"locale": "en-US", "viewport": DESK} | context))
        self.page.set_default_timeout(SLOW_MS)
        self.page.on("pageerror", self._note_error)
        self.page.on("request", self._note_request)
        self.page.goto(url)
        self.arrive()

    def arrive(self) -> None:
        self.box.wait_for()

    def run_first(self, script: str) -> None:
        """Run it in this browser before any page; nobody else gets it."""
        self._is_marked = True
        self.page.add_init_script(script)

    def leave(self) -> None:
        self._own.remove_listener("pageerror", self._note_error)
        self._own.remove_listener("request", self._note_request)
        if self._is_marked:
            return self._own.context.close()
        self._desk.take_back(self._own)

    def finish(self) -> None:
        """Leave a page that was as wide as its window, asked nobody else, and met no error."""
        assert not self.page.evaluate("document.documentElement.scrollWidth > innerWidth")
        self.leave()
        assert self.complaints == []

    def _note_error(self, error: Any) -> None:
        self.complaints.append(str(error))

    def _note_request(self, request: Any) -> None:
        is_ours = re.match(r"(http|ws)://127\.0\.0\.1:|data:|blob:", request.url)
        if not is_ours or "SemiBold" in request.url:  # half of that font's letters are missing
            self.complaints.append(request.url)

    @property
    def box(self) -> Any:
        name = "[data-testid=stChatInputTextArea]" if self.kind == "streamlit" else "#box textarea"
        return self.page.locator(name).first

    @property
    def answers(self) -> Any:
        if self.kind == "gradio":
            return self.page.locator(".message.bot")
        return self.page.get_by_test_id("stChatMessage").filter(
            has=self.page.get_by_test_id("stChatMessageAvatarAssistant")
        )

    def ask(self, question: str) -> None:
        self.box.fill(question)
        self.box.press("Enter")

    @property
    def stop_button(self) -> Any:
        name = "#box .stop-button" if self.kind == "gradio" else "[data-testid=stChatInputStopButton]"
        return self.page.locator(name)

    def stop(self) -> None:
        """Stop, and wait until the box takes the next question: before that, Gradio leaves it in the box."""
        self.stop_button.click()
        self.stop_button.wait_for(state="hidden")

    def sees(self, text: str) -> None:
        """Somewhere on the page; what a closed fold holds as well is not seen."""
        self.page.get_by_text(text).locator("visible=true").last.wait_for()

    def press(self, name: str) -> None:
        self.page.get_by_role("button", name=name, exact=True).last.click()

    def reads_answer(self) -> None:
        """The answer is whole: its figures are there and the page is at rest."""
        self.sees("tokens/s")
        self.stop_button.wait_for(state="hidden")
        self.rests()

    def rests(self) -> None:
        """What Streamlit draws once more, a moment later, is drawn."""
        self.page.wait_for_timeout(200)
        if self.kind == "streamlit":
            self.page.locator("[data-testid=stApp][data-test-script-state=notRunning]").wait_for()
            self.page.wait_for_timeout(100)

    def open_tab(self, name: str) -> None:
        role = "tab" if self.kind == "gradio" else "link"
        tab = self.page.get_by_role(role, name=name).first
        if self.kind == "gradio" and not tab.is_visible():  # on a phone the last ones are behind "…"
            self.page.locator(".overflow-menu > button").click()
            tab = self.page.locator(".overflow-dropdown").get_by_role("button", name=name)
        tab.click()

    def violations(self, *left_out: str, rule: str = "") -> list[str]:
        """What axe-core finds serious or critical, but for what stands in Gradio's own markup.

        `left_out` are the selectors of what is not looked at; with `rule`, that one is looked for.
        """
        axe = pytest.importorskip("axe_core_python")
        if not self.page.evaluate("'axe' in window"):
            self.page.evaluate((Path(axe.__file__).parent / "axe.min.js").read_text(encoding="utf-8"))
        where = {"exclude": [[selector] for selector in (DECORATION, *left_out)]}
        how = {"resultTypes": ["violations"], **({"runOnly": [rule]} if rule else {})}
        found = self.page.evaluate("here => axe.run(...here)", [where, how])["violations"]
        theirs = {"aria-required-children"} if self.kind == "gradio" else set()  # the list of examples
        return [
            f"{rule['id']}: {rule['nodes'][0]['html'][:200]} {rule['nodes'][0]['any'][0]['message']}"
            for rule in found
            if rule["impact"] in ("serious", "critical") and rule["id"] not in theirs
        ]


def english_in(visitor: Visit, names: str) -> list[str]:
    """The texts of a Chinese page that hold an English word, but for `names` and what its own texts hold."""
    known = {*WORD.findall(names), *WORD.findall(str([*load_texts()["zh"].values()])), "MB"}
    return [text for text in visitor.page.evaluate(READ) if {*WORD.findall(text)} - known]


def wait_until(is_so: Callable[[], object], timeout_s: float = 60) -> None:
    end = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.05)
