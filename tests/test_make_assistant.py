import json

from rich.console import Console

from assistant.settings import REPOSITORY, save_settings


def test_a_chinese_answer_is_read_to_its_end_in_a_narrow_terminal(monkeypatch, tmp_path):
    """It has no spaces at which a table's cell could be broken."""
    monkeypatch.syspath_prepend(REPOSITORY / "scripts")
    import make_assistant

    save_settings(tmp_path / "model", {})
    kept, answer = tmp_path / "kept.json", "我是Ada的小助手，我属于Ada，有什么可以帮你的吗？[笑]"
    kept.write_text(json.dumps([["你是谁？", "我不知道。", answer]]), encoding="utf-8")
    console = Console(width=60, record=True, file=(tmp_path / "shown").open("w"))
    console.print(make_assistant.before_and_after(tmp_path, tmp_path / "model", kept))
    lines = [line.split("│")[3].strip() for line in console.export_text().splitlines() if "│" in line]
    assert "".join(lines) == answer
