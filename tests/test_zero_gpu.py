"""ZeroGPU's rules, with a stand-in for its package: the real one needs the host's own card server."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

# As on the host: imported before torch, one decorated generator, everything crosses by pickle.
SPACES = """
import pickle, sys
assert "torch" not in sys.modules, "spaces must be imported before torch"
decorated = []
def GPU(duration):
    def decorate(task):
        decorated.append(task)
        def crossing(*arguments):
            for chunk in task(*pickle.loads(pickle.dumps(arguments))):
                yield pickle.loads(pickle.dumps(chunk))
        return crossing
    return decorate
"""
ASK = """
import sys
from assistant.backends import Counts, Sampling
from assistant.conversations import user
from assistant.web.engine import Engine
engine = Engine(sys.argv[1])
assert engine.status == "ready", engine.error  # at once, in the main thread: nothing loads lazily
import spaces
assert len(spaces.decorated) == 1
chunks = list(engine.stream([user("hi")], Sampling(max_new_tokens=4)))
assert any(isinstance(chunk, Counts) and chunk.answer for chunk in chunks), chunks
print("answered")
"""


def test_a_model_folder_on_zero_gpu_is_loaded_before_the_page_and_answers_from_another_process(tmp_path):
    from tiny_run import make_tiny_model

    (tmp_path / "spaces.py").write_text(SPACES, encoding="utf-8")
    model = make_tiny_model(tmp_path / "model")
    root = Path(__file__).resolve().parent.parent
    environment = os.environ | {"SPACES_ZERO_GPU": "true", "PYTHONPATH": f"{tmp_path}{os.pathsep}{root}"}
    done = subprocess.run(
        [sys.executable, "-c", ASK, str(model)], env=environment, capture_output=True, text=True, cwd=tmp_path
    )
    assert done.stdout == "answered\n", done.stderr
