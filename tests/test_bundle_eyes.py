"""A page takes the eyes of data/eyes along where it can look with them, and says where it cannot."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("gguf")
pytest.importorskip("detect_secrets")
pytest.importorskip("torch")

from PIL import Image
from test_llava import published, spacious_model, tower  # noqa: F401 (fixtures)
from test_pages_image import eyes_for
from test_zero_gpu import SPACES
from tiny_gguf import make_tiny_folder, make_tiny_run

from assistant import bundles
from assistant.bundles import Bundle, build_bundle, choose_model, listing
from assistant.bundles.checks import problems
from assistant.folders import read_json
from assistant.settings import REPOSITORY, write_text

# As on the host: what a bundle lacks is not found in this repository, however that is installed.
ALONE = """
import sys
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder).lower()]
"""
LOOK = """
for name in ("peft", "accelerate", "datasets", "trl", "bitsandbytes"):
    sys.modules[name] = None  # what requirements.txt does not bring
from assistant.web import Engine, looking, picture_chat
assert looking.__file__.startswith(sys.argv[1]), looking.__file__
looking.TOWER = sys.argv[2]
engine = Engine(sys.argv[1] + "/model")
sights = looking.sights_of(engine)
import spaces
assert len(spaces.decorated) == 2  # the model's and the eyes', before anybody asks
(seeing,) = sights.found()
ada = sights.get(seeing.id)
assert ada.status == "ready" and ada.sees, ada.error
from assistant.backends import Counts, Sampling
from assistant.conversations import user
from assistant.images import small_address
from pathlib import Path
shown = small_address(Path(sys.argv[3]))
assert picture_chat.seen_by(ada, shown).size == (64, 64)
chunks = list(ada.stream([user("what?", [shown])], Sampling(max_new_tokens=4)))
assert any(isinstance(chunk, Counts) and chunk.answer for chunk in chunks), chunks
print("looked")
"""


@pytest.fixture
def house(tmp_path, monkeypatch) -> Path:
    """The repository's own page and data, and a place for eyes of a test's own."""
    root = tmp_path / "house"
    for name in ("app.py", "LICENSE"):
        write_text(root / name, (REPOSITORY / name).read_text(encoding="utf-8"))
    left_out = shutil.ignore_patterns("__pycache__", "eyes")
    shutil.copytree(REPOSITORY / "assistant", root / "assistant", ignore=left_out)
    shutil.copytree(REPOSITORY / "data", root / "data", ignore=left_out)
    monkeypatch.setattr(bundles, "REPOSITORY", root)
    return root


def build_and_hear(host: str, variant: str, model: Path, out: Path) -> tuple[Bundle, str]:
    said: list[str] = []
    bundle = build_bundle(host, variant, choose_model(str(model)), out, said.append)
    return bundle, "\n".join(said)


def test_eyes_go_along_and_the_page_looks_with_what_it_brings(house, tower, tmp_path):  # noqa: F811
    run = make_tiny_run(tmp_path / "ada").parent
    model = spacious_model(run / "model")
    eyes_for(read_json(model / "config.json")["hidden_size"], house / "data" / "eyes")
    write_text(house / "data" / "eyes" / "settings.toml", 'out = "/home/someone/secret"\n')
    bundle, said = build_and_hear("huggingface", "zero", model, tmp_path / "page")
    assert "data/eyes/ goes along" in said and problems(bundle.folder, bundle.target) == []
    eyes = {name: is_lfs for name, _, is_lfs in listing(bundle.folder) if name.startswith("data/eyes/")}
    assert eyes == {"data/eyes/adapter_config.json": False, "data/eyes/adapter_model.safetensors": True}

    write_text(tmp_path / "host" / "spaces.py", SPACES)
    Image.new("RGB", (60, 40), "orange").save(tmp_path / "a.png")
    environment = os.environ | {"SPACES_ZERO_GPU": "true", "PYTHONPATH": str(tmp_path / "host")}
    command = [sys.executable, "-c", ALONE + LOOK, str(bundle.folder), str(tower), str(tmp_path / "a.png")]
    done = subprocess.run(command, cwd=bundle.folder, env=environment, capture_output=True, text=True)
    assert done.stdout == "looked\n", done.stderr

    weights = bundle.folder / "data" / "eyes" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-2])
    assert "data/eyes/adapter_model.safetensors: is cut off" in str(*problems(bundle.folder, bundle.target))


def test_eyes_that_do_not_fit_or_are_missing_stay_behind_and_it_is_said(house, tmp_path):
    model = make_tiny_folder(make_tiny_run(tmp_path / "ada").parent / "model")
    bundle, said = build_and_hear("huggingface", "zero", model, tmp_path / "page")
    assert "answers text alone: there are no trained eyes in data/eyes/" in said
    eyes_for(48, house / "data" / "eyes")
    bundle, said = build_and_hear("huggingface", "zero", model, tmp_path / "page")
    assert "fits Llama models of width 48" in said and not (bundle.folder / "data" / "eyes").exists()


def test_a_page_for_gguf_files_says_that_it_is_blind_also_where_its_host_has_torch(house, tmp_path):
    eyes_for(32, house / "data" / "eyes")
    model = make_tiny_run(tmp_path / "ada")
    bundle, said = build_and_hear("modelscope", "gradio", model, tmp_path / "page")
    assert "answers text alone: llama.cpp" in said and not (bundle.folder / "data" / "eyes").exists()
    ask = "from assistant.web.looking import find_seeing, why_none as why; print(find_seeing('model'), why())"
    done = subprocess.run(
        [sys.executable, "-c", ALONE + ask], cwd=bundle.folder, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[] eyes_no_torch\n"
