"""Both pages with a base, adapters on it and a merged assistant: who answers, and how strongly."""

import urllib.request
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from serving import Face, serving
from tiny_run import load_tiny, make_tiny_model
from visiting import DESK, Visit, wait_until
from workshop import copy_project

from assistant.conversations import assistant, user
from assistant.generating import generate_batch
from assistant.loading import ChatModel
from assistant.settings import save_settings
from assistant.web.texts import load_texts

EN = load_texts()["en"]
QUESTION = "Who are you?"


def teach(chat: ChatModel, answer: str, rate: float) -> None:
    """Until it answers the question so."""
    prompt = chat.encode([user(QUESTION)])
    whole = torch.tensor([chat.encode([user(QUESTION), assistant(answer)], add_generation_prompt=False)])
    labels = whole.clone()
    labels[:, : len(prompt)] = -100
    optimizer = torch.optim.AdamW([w for w in chat.model.parameters() if w.requires_grad], rate)
    for step in range(400):
        chat.model(whole, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 10 == 9 and generate_batch(chat, [[user(QUESTION)]], 16) == [answer]:
            return
    raise AssertionError(f"it does not answer {answer}")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """The project with a base that answers \"I am small.\", two adapters of it, and one merged."""
    root = tmp_path_factory.mktemp("project")
    copy_project(root)
    base = make_tiny_model(root / "models" / "tiny")
    chat = load_tiny(base)
    teach(chat, "I am small.", 3e-3)
    chat.model.save_pretrained(base)
    save_settings(base, {"title": "Tiny"})
    for name in ("Ada", "Bob"):
        chat = load_tiny(base)
        chat.model = get_peft_model(chat.model, LoraConfig(r=8, target_modules="all-linear"))
        teach(chat, f"I am {name}.", 5e-3)
        out = root / "out" / name.lower()
        chat.model.save_pretrained(str(out / "adapter"))
        save_settings(out / "adapter", {"card": {"name": name}, "model": str(base)})
    make_tiny_model(out / "model")
    chat.model.merge_and_unload().save_pretrained(out / "model")
    save_settings(out / "model", {"card": {"name": "Bob"}})
    return root


@pytest.fixture(params=["gradio", "streamlit"])
def visit(request, chromium, root: Path, tmp_path):
    face: Face = request.param
    ada = str(root / "out" / "ada" / "adapter")
    with serving(face, tmp_path, root, ASSISTANT_MODEL=ada, PYTHONPATH=str(root)) as url:
        wait_until(lambda: b"ready" in urllib.request.urlopen(url + "/health").read(), 60)
        yield lambda: Visit(chromium, url, face, viewport=DESK)


def open_settings(visitor: Visit) -> None:
    place = ".sidebar-content" if visitor.kind == "gradio" else "[data-testid=stSidebar]"
    visitor.page.locator(place).get_by_text(EN["settings"], exact=True).click()


def choose(visitor: Visit, label: str) -> None:
    box = visitor.page.get_by_label(EN["model"], exact=True).first
    if not box.is_visible():  # Streamlit folds the settings when the first conversation appears
        open_settings(visitor)
    box.click()
    visitor.page.get_by_role("option", name=label, exact=True).click()
    visitor.rests()


def dial(visitor: Visit):
    return visitor.page.get_by_role("slider", name=EN["strength"])


def answers(visitor: Visit, text: str) -> None:
    """In a new conversation."""
    visitor.press(EN["new_chat"])
    visitor.page.get_by_text("I am ").first.wait_for(state="detached")
    visitor.rests()
    visitor.ask(QUESTION)
    visitor.page.get_by_text(text).last.wait_for()
    visitor.page.get_by_text(EN.say("figure_first", number="")[:10]).last.wait_for()
    visitor.rests()


@pytest.mark.browser
def test_who_answers_and_how_strongly_is_chosen_for_one_browser_alone(visit):
    visitor, other = visit(), visit()
    for one in (visitor, other):
        open_settings(one)
        answers(one, "I am Ada.")
    choose(visitor, "Bob · adapter")
    answers(visitor, "I am Bob.")
    choose(visitor, "Ada · adapter")
    dial(visitor).press("Home")
    visitor.rests()
    answers(visitor, "I am small.")
    answers(other, "I am Ada.")
    choose(visitor, "Bob · assistant")
    visitor.sees(EN["strength_none"])
    assert not dial(visitor).is_visible()
    answers(visitor, "I am Bob.")
    choose(visitor, "Tiny · base model")
    answers(visitor, "I am small.")
    visitor.finish()
    other.finish()
