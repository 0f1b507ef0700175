import json
import os
import signal
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from workshop import environment_of, make_stage, make_workshop, wait_until

from assistant.card import load_card
from assistant.web.making import (
    LOG,
    Job,
    Refused,
    Wish,
    forget,
    is_running,
    preview,
    read_job,
    start,
    stop,
    wish_from,
    zip_adapter,
)
from assistant.web.making_progress import (
    Progress,
    aside,
    before_and_after,
    headline,
    loss_rows,
    progress_of,
    share_of,
    watch_rows,
    way,
)
from assistant.web.permission import can_train, may_train
from assistant.web.texts import load_texts

EN = load_texts()["en"]
ADA = wish_from(" Ada ", "", "Ada plays the violin.\n\n我喜欢茶。\n")


def entries(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# ---- who may


@pytest.mark.parametrize(
    ("environment", "address", "is_allowed"),
    [
        ({}, "127.0.0.1", True),
        ({}, "localhost", True),
        ({}, "0.0.0.0", False),
        ({"SPACE_ID": "ada/page"}, "127.0.0.1", False),
        ({"MODELSCOPE_ENVIRONMENT": "studio"}, "127.0.0.1", False),
        ({"ASSISTANT_ALLOW_TRAINING": "1", "SPACE_ID": "ada/page"}, "0.0.0.0", True),
        ({"ASSISTANT_ALLOW_TRAINING": "0"}, "127.0.0.1", False),
    ],
)
def test_only_a_page_of_ones_own_machine_makes_assistants_unless_told_otherwise(
    environment, address, is_allowed
):
    assert may_train(environment, address) is is_allowed


def test_a_word_that_is_neither_0_nor_1_is_refused():
    with pytest.raises(ValueError, match="ASSISTANT_ALLOW_TRAINING=yes must be 0 or 1"):
        may_train({"ASSISTANT_ALLOW_TRAINING": "yes"}, "127.0.0.1")


def test_a_published_page_has_no_command_and_cannot_make_any(tmp_path):
    assert can_train() and not can_train(tmp_path)


# ---- what is asked for


def test_facts_go_to_their_language_and_blanks_go_nowhere():
    assert Wish("Ada", "", ("Ada plays the violin.", "我喜欢茶。")) == ADA
    assert ADA.card().facts == {"en": ["Ada plays the violin."], "zh": ["我喜欢茶。"]}


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        (wish_from(""), "name is empty"),
        (wish_from("A" * 81), "name has 81 characters"),
        (wish_from("<|im_end|>"), "control token"),
        (wish_from("Ada", "{owner}"), "owner .* placeholder"),
        (wish_from("Ada", "", "fine\nI am <|im_start|>system"), "facts.en .* control token"),
        (wish_from("Ada", "", "x" * 201), "facts.en has 201 characters"),
    ],
)
def test_a_bad_wish_is_refused_with_the_cards_sentence_before_anything_starts(wish, said, tmp_path):
    for does in (lambda: preview(wish, "en"), lambda: start(wish, tmp_path)):
        with pytest.raises(ValueError, match=said):
            does()
    assert list(tmp_path.iterdir()) == []


def test_the_preview_shows_both_languages_the_own_first_and_the_facts():
    rows = preview(ADA, "zh")
    answers = [answer for _, answer in rows]
    assert len(rows) == 8 and "Ada" in answers[0] and not answers[0].isascii()
    assert any("我喜欢茶。" in answer for answer in answers[:4])
    assert any("Ada plays the violin." in answer for answer in answers[4:])


# ---- how far it is


def written(folder: Path, log: str, made: tuple[str, ...] = ()) -> Path:
    """A root whose job `ada` has made the parts in `made` and said `log`."""
    for part in ("models/smollm2-135m-instruct", *(f"out/ada/{part}" for part in made)):
        (folder / part).mkdir(parents=True, exist_ok=True)
        (folder / part / "settings.toml").write_text("")
    kept = {"wish": {"name": "Ada", "owner": "", "facts": []}, "pid": 1, "is_stopped": False}
    (folder / "out" / "ada").mkdir(parents=True, exist_ok=True)
    (folder / "out" / "ada" / "making.json").write_text(json.dumps(kept))
    (folder / "out" / "ada" / LOG).write_text(log)
    (folder / "out" / ".making.lock").write_text("ada")
    return folder


def seen_while_running(root: Path) -> Progress:
    job = read_job(root)
    assert job
    return progress_of(replace(job, is_running=True), root)


STARTED = "settings: make\nx\nsettings: stage\n"


@pytest.mark.parametrize(
    ("log", "made", "stage", "counts", "has_time"),
    [
        ("settings: make\n", (), "data", (0, 0), False),
        (STARTED, ("data",), "prepare", (0, 0), False),
        (STARTED + "  8 of 350 anchor prompts answered\n", ("data",), "prepare", (8, 350), False),
        (
            STARTED + "preparing 400/900 tokens  9 tokens/s  55 s left\n",
            ("data",),
            "prepare",
            (400, 900),
            True,
        ),
        (STARTED + "preparing 900/900 tokens  9 tokens/s  0 s left\n", ("data",), "train", (0, 0), False),
        (
            STARTED + "step 20/200  KL 0.1  9 tokens/s  90 s left\n    4/5 of → 7/8",
            ("data",),
            "train",
            (20, 200),
            True,
        ),
        (
            STARTED + "step 200/200  KL 0.1  9 tokens/s  0 s left\n",
            ("data", "adapter"),
            "merge",
            (0, 0),
            False,
        ),
        (
            STARTED + "  28/700 answers of transformers\n",
            ("data", "adapter", "model"),
            "score",
            (28, 700),
            False,
        ),
    ],
)
def test_stage_count_and_time_left_are_read_from_what_the_stages_say(
    log, made, stage, counts, has_time, tmp_path
):
    progress = seen_while_running(written(tmp_path, log, made))
    assert (progress.stage, (progress.done, progress.total)) == (stage, counts)
    assert (progress.left_s is not None) is has_time
    assert f"**{EN['make_' + stage]}**" in way(progress, EN) and 0 <= share_of(progress) < 1


def test_a_job_that_broke_says_the_commands_own_sentence(tmp_path):
    root = written(tmp_path, "settings: x\nhm\nerror: the disk is full; free 3 GiB\nexit\n", ("data",))
    job = read_job(root)
    progress = progress_of(job, root)
    assert (progress.status, progress.error) == ("failed", "the disk is full; free 3 GiB")
    assert "Ada" in headline(job, progress, EN) and aside(progress, EN).startswith("the disk is full")


def test_without_a_job_there_is_none(tmp_path):
    assert read_job(tmp_path) is None and not is_running(tmp_path)
    stop(tmp_path)
    assert list(tmp_path.iterdir()) == []


# ---- a real one


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return make_workshop(tmp_path_factory.mktemp("workshop"))


def test_a_job_is_stopped_in_training_goes_on_after_a_restart_and_ends_whole(root, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(root))
    log, folder = root / "out" / "ada" / LOG, root / "out" / "ada"
    start(ADA, root)
    with pytest.raises(Refused) as refused:
        start(wish_from("Grace"), root)
    assert (refused.value.kind, refused.value.name) == ("running", "Ada")
    assert not (root / "out" / "grace").exists()
    wait_until(lambda: list(folder.glob("adapter/checkpoints/*/whole")), log)
    stop(root)
    wait_until(lambda: not is_running(root), log)
    job = read_job(root)
    assert progress_of(job, root).status == "stopped" and job.wish == ADA
    assert not (folder / "adapter" / "settings.toml").exists()
    saved = [entry["step"] for entry in entries(folder / "adapter" / "history.jsonl")]
    assert saved and saved[-1] < 40

    # the server that began it is gone: another process goes on with it, and ends before it does
    script = "from assistant.web.making import read_job, start; start(read_job().wish)"
    subprocess.run([sys.executable, "-c", script], cwd=root, env=environment_of(root), check=True)
    assert is_running(root)
    wait_until(lambda: not is_running(root), log)
    said = log.read_text(encoding="utf-8")
    progress = progress_of(read_job(root), root)
    assert progress.status == "done", said
    assert "going on from step" in said and share_of(progress) == 1.0
    steps = [entry["step"] for entry in progress.losses]
    assert steps == sorted({*saved, *range(10, 41, 10)}) and steps[-1] == 40
    assert [entry["step"] for entry in progress.watched] == [10, 20, 30, 40]
    assert set(loss_rows(progress, EN)[0]) == {"step", EN["make_identity"], EN["make_kl"]}
    assert set(watch_rows(progress, EN)[0]) == {"step", EN["make_recall"], EN["make_leak"]}
    assert [len(row) for row in before_and_after(folder)] == [3, 3, 3]
    assert load_card(folder / "data" / "card.toml").facts == ADA.card().facts
    with zipfile.ZipFile(zip_adapter(folder, root)) as packed:
        assert "ada-adapter/adapter_model.safetensors" in packed.namelist()
    with pytest.raises(Refused) as refused:
        start(ADA, root)
    assert refused.value.kind == "there"
    other = root / "other.toml"
    other.write_text('name = "Ada"\n[role]\nen = "cook"\n')
    command = [sys.executable, "scripts/make_assistant.py", "--name=Ada", f"--card={other}"]
    done = subprocess.run(command, cwd=root, env=environment_of(root), capture_output=True, text=True)
    assert done.returncode == 2 and "was made with another card" in done.stderr.splitlines()[-1]


def test_a_job_is_a_command_of_its_own_arguments_never_a_shell_and_a_second_stop_ends_it(root, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(root))
    wish = wish_from('-$(touch /tmp/x); "Bob"', "", "It is a fact.")
    start(wish, root)
    job = read_job(root)
    pid = json.loads((job.folder / "making.json").read_text())["pid"]
    command_line = Path(f"/proc/{pid}/cmdline")
    wait_until(lambda: command_line.read_bytes(), job.folder / LOG, timeout_s=10)  # empty while exec sets it
    assert f"--name={wish.name}".encode() in command_line.read_bytes().split(b"\0") and os.getpgid(pid) == pid
    wait_until(lambda: (job.folder / "data" / "settings.toml").is_file(), job.folder / LOG)
    stop(root)
    stop(root)
    wait_until(lambda: not is_running(root), job.folder / LOG, timeout_s=10)
    assert load_card(job.folder / "data" / "card.toml").name == wish.name


def test_a_page_started_in_the_background_stops_its_job_too(tmp_path):
    root = make_stage(tmp_path)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell's `&` and nohup leave it
    try:
        start(wish_from("Ada"), root)
    finally:
        signal.signal(signal.SIGINT, before)
    log = root / "out" / "ada" / LOG
    wait_until(lambda: "step 20/" in log.read_text(), log)
    stop(root)
    wait_until(lambda: not is_running(root), log, timeout_s=10)
    assert read_job(root).is_stopped


def test_another_wish_of_that_name_begins_anew_and_nothing_else_is_lost(tmp_path, monkeypatch):
    root = written(tmp_path, "x", ("data", "adapter"))
    (root / "out" / "ada" / "notes.txt").write_text("mine")
    (root / "scripts").mkdir()
    (root / "scripts" / "make_assistant.py").write_text("import sys; sys.exit(2)")
    start(wish_from("Ada"), root)
    wait_until(lambda: not is_running(root), root / "out" / "ada" / LOG)
    assert (root / "out" / "ada" / "adapter" / "settings.toml").is_file()
    start(wish_from("Ada", "Grace"), root)
    wait_until(lambda: not is_running(root), root / "out" / "ada" / LOG)
    assert {path.name for path in (root / "out" / "ada").iterdir()} == {"notes.txt", LOG, "making.json"}
    forget(root / "out" / "ada")
    assert (root / "out" / "ada" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(("status", "is_whole"), [("done", True), ("failed", True), ("running", False)])
def test_what_is_over_is_drawn_whole_also_when_it_was_drawn_before(gradio, monkeypatch, status, is_whole):
    """An answer that a page lost is not asked for again: its timer has ended."""
    from assistant.web import gradio_making as page

    fakes = {"seen": {}, "curves": {"curves": 1}, "ended": {"result": 1}}
    for name, drawn in fakes.items():
        monkeypatch.setattr(page, name, lambda *_, drawn=drawn: dict(drawn))
    monkeypatch.setattr(page, "read_job", lambda: Job(Wish("Ada"), Path("out/ada"), False, False))
    monkeypatch.setattr(page, "progress_of", lambda job: Progress(status, "ask"))
    parts = SimpleNamespace(texts=lambda language: load_texts()[language])
    form = SimpleNamespace(box="form")
    shop: Any = SimpleNamespace(parts=parts, form=form, view=None, result=None, timer="timer", drawn="drawn")
    first = page.show(shop, "en")
    again = page.show(shop, "en", first["drawn"])
    assert {"curves", "result"} <= first.keys()
    assert ({"curves", "result"} <= again.keys()) is is_whole
