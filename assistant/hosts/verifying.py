"""Asks a live page who it is, through its API, and compares with what the scorecard promised.

Knows no host, only how their links become the addresses of pages.
"""

import json
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from assistant.conversations import user
from assistant.hosts.credentials import scrub
from assistant.judge import Identity, identity_of, judge_identity
from assistant.scorecard import wilson
from assistant.settings import DATA, load_toml, one_line

WAIT_S = 900  # a page that was just sent is built first
PAUSE_S = 10
ANSWER_S = 180  # a free machine, shared by all who ask
SOMEBODY = "Somebody Else"  # an owner, where nobody says whether the name is the assistant's own
SPACE = r"https://huggingface\.co/spaces/([\w.-]+)/([\w.-]+?)/?"
STUDIO = r"https://(?:www\.)?modelscope\.cn/studios/([\w.-]+)/([\w.-]+?)(?:/summary)?/?"
Ask = Callable[[list[str]], list[str]]


def verify(url: str, scorecard: Path | None, name: str, say: Callable[[str], None]) -> None:
    """Ask the page at `url` in English and Chinese; say each answer and how many state the identity.

    Raises RuntimeError when the name is not there, when it is there clearly less often than in the scorecard,
    or when the page cannot be asked; ValueError for something that is no address.
    """
    address = page_address(url)
    ask = wait_for_page(address, say)
    identities = identities_of(scorecard, name)
    promised = load_promise(scorecard)
    hits, faults = 0, []
    for language, questions in load_toml(DATA / "verify.toml").items():
        answers = ask(questions)
        right = [any(judge_identity(answer, identity) for identity in identities) for answer in answers]
        for question, answer, is_right in zip(questions, answers, right, strict=True):
            say(f"{'yes' if is_right else 'no '} {question} → {one_line_of(answer)}")
        hits += sum(right)
        say(summary(language, sum(right), len(right), promised.get(language)))
        if is_far_below(sum(right), len(right), promised.get(language)):
            faults.append(language)
    if not hits:
        raise RuntimeError(
            f"{address} does not know that it is {name}: no answer says so. Is it the right model?"
        )
    if faults:
        raise RuntimeError(
            f"{address} says who it is less often than its scorecard promises ({', '.join(faults)}); "
            "is the same model there, and no system prompt set?"
        )


def page_address(url: str) -> str:
    """The page itself behind a link of a host: a Space or a studio is shown in a frame of another address."""
    for link, domain in ((SPACE, "hf.space"), (STUDIO, "ms.show")):
        if found := re.fullmatch(link, url):
            return f"https://{re.sub('[^a-z0-9]+', '-', '-'.join(found.groups()).lower())}.{domain}"
    if not re.match(r"https?://[^/\s]+", url):
        raise ValueError(f"--verify {url!r} is no address; give one like https://OWNER-NAME.hf.space")
    return url.rstrip("/")


def wait_for_page(address: str, say: Callable[[str], None]) -> Ask:
    """How this page is asked, as soon as it is up. Raises RuntimeError without an API, or after WAIT_S."""
    import httpx

    deadline, said = time.monotonic() + WAIT_S, ""
    while True:
        try:
            answered = httpx.get(address, follow_redirects=True, timeout=30)
            reason = f"it answers {answered.status_code}"
            if answered.status_code < 400:
                return way_to_ask(address)
        except httpx.HTTPError as error:
            reason = one_line(error)
        if time.monotonic() > deadline:
            raise RuntimeError(f"{address} is not up: {reason}; look at its build log, then try again")
        if reason != said:
            say(f"{address} is not up yet ({reason}); waiting up to {WAIT_S // 60} minutes")
            said = reason
        time.sleep(PAUSE_S)


def way_to_ask(address: str) -> Ask:
    """Gradio's /chat where there is one, else OpenAI's /v1. Raises RuntimeError where there is neither."""
    if _has_chat(_json_at(f"{address}/gradio_api/info")):
        return lambda questions: ask_gradio(address, questions)
    if "data" in _json_at(f"{address}/v1/models"):
        return lambda questions: ask_openai(address, questions)
    raise RuntimeError(
        f"{address} is up but cannot be asked: it has neither Gradio's /chat nor /v1; ask it by hand"
    )


def _json_at(address: str) -> Mapping[str, Any]:
    import httpx

    try:
        found = httpx.get(address, follow_redirects=True, timeout=30)
        content = found.json() if found.status_code == 200 else {}
    except (httpx.HTTPError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _has_chat(info: Mapping[str, Any]) -> bool:
    return "/chat" in info.get("named_endpoints", {})


def ask_gradio(address: str, questions: list[str]) -> list[str]:
    """Each question in a session of its own: a page may keep what was said before."""
    import httpx
    from gradio_client import Client

    try:
        client = Client(address, verbose=False, analytics_enabled=False, httpx_kwargs={"timeout": ANSWER_S})
        answers = []
        for question in questions:
            client.reset_session()
            job = client.submit(question, api_name="/chat")
            job.result(timeout=ANSWER_S)
            answers.append(text_of(job.outputs()[-1]))
        return answers
    except TimeoutError:
        raise RuntimeError(f"{address} gave no answer within {ANSWER_S} s; try again") from None
    except (ValueError, httpx.HTTPError, ConnectionError) as error:
        raise RuntimeError(f"{address} could not be asked: {scrub(error)[:300]}") from None


def text_of(shown: Any) -> str:
    """An answer's plain text: a page answers with a text, or with messages; those with a title are notes."""
    if isinstance(shown, list | tuple):
        return "".join(text_of(part) for part in shown)
    if isinstance(shown, Mapping):
        is_note = bool((shown.get("metadata") or {}).get("title"))
        return "" if is_note else text_of(shown.get("content", shown.get("text", "")))
    return str(shown)


def ask_openai(address: str, questions: list[str]) -> list[str]:
    from assistant.backends import Sampling, open_backend

    backend = open_backend(f"{address}/v1")
    return backend.answer_all([[user(question)] for question in questions], Sampling(max_new_tokens=96))


def identities_of(scorecard: Path | None, name: str) -> list[Identity]:
    """Who it may say it is: by the card of the run; without one, the name as its own or as a person's."""
    card = scorecard.parent.parent / "data" / "card.toml" if scorecard else None
    values = load_toml(card) if card and card.is_file() else {}
    if values.get("name") == name:
        return [identity_of(values)]
    return [Identity(name, ()), Identity(name, (), owner=SOMEBODY)]


def load_promise(scorecard: Path | None) -> dict[str, tuple[int, int]]:
    """Hits and questions of the scorecard's identity recall by language."""
    if scorecard is None or not scorecard.is_file():
        return {}
    scores = json.loads(scorecard.read_text(encoding="utf-8"))
    shares, counts = scores["recall"]["identity"], scores["counts"]["recall"]["identity"]
    return {
        language: (round(share * counts[language]), counts[language])
        for language, share in shares.items()
        if share is not None
    }


def is_far_below(hits: int, total: int, promised: tuple[int, int] | None) -> bool:
    """The two 95 % intervals do not meet: with a handful of questions, nothing nearer is a difference."""
    return promised is not None and wilson(hits, total)[1] < wilson(*promised)[0]


def summary(language: str, hits: int, total: int, promised: tuple[int, int] | None) -> str:
    before = f"; scorecard: {promised[0]} of {promised[1]}" if promised else "; no scorecard to compare with"
    return f"{language}: {hits} of {total} answers say who it is{before}"


def one_line_of(answer: str) -> str:
    text = " ".join(answer.split())
    return text[:120] + ("…" if len(text) > 120 else "")
