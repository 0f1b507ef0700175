"""The READMEs name only what exists, and the tree keeps the rules of the hosts that read it."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
READMES = ("README.md", "README.zh-CN.md")


@pytest.mark.parametrize("readme", READMES)
def test_every_script_make_target_and_link_of_the_readme_exists(readme: str) -> None:
    text = (ROOT / readme).read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    scripts = set(re.findall(r"scripts/\w+\.py", text))
    assert scripts == {f"scripts/{path.name}" for path in (ROOT / "scripts").glob("*.py")}
    for target in re.findall(r"make ([a-z]+)", text):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / link).exists(), link


def test_the_front_matter_is_what_a_gradio_space_takes() -> None:
    front = (ROOT / "README.md").read_text(encoding="utf-8").split("---\n")[1]
    values = dict(re.findall(r"^(\w+): (.+)$", front, re.MULTILINE))
    assert values["sdk"] == "gradio" and values["app_file"] == "app.py"
    assert re.fullmatch(r"\d+\.\d+\.\d+", values["sdk_version"])
    assert len(values["short_description"]) <= 60


def test_packages_txt_holds_names_alone() -> None:
    content = (ROOT / "packages.txt").read_bytes()
    assert re.fullmatch(rb"([a-z0-9.+-]+\n)+", content)


def test_no_tracked_file_would_become_an_lfs_pointer() -> None:
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    command = ["git", "check-attr", "-z", "--stdin", "filter"]
    fields = subprocess.run(command, cwd=ROOT, input=files, capture_output=True, check=True).stdout.split(
        b"\0"
    )
    assert [name for name, value in zip(fields[::3], fields[2::3], strict=False) if value == b"lfs"] == []
