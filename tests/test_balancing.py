"""Weights brought to like sizes before they are rounded: the same model, and less lost by rounding."""

import numpy
import pytest
from test_export import make_byte_level, open_engine, transformers_logits

from assistant import balancing, export
from assistant.balancing import Factors, balance
from assistant.folders import read_json
from assistant.tensors import checkpoint_files, tensors_in

IDS = [1, *range(40, 90), 7]
LOUD = 40.0


def rewritten(folder, change) -> None:
    """Every tensor of a folder as `change(name, tensor)`."""
    from safetensors.torch import save_file

    (path,) = checkpoint_files(folder)
    tensors = {name: change(name, tensor).contiguous() for name, tensor in tensors_in([path])}
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.fixture
def loud(tmp_path):
    """A model of which each layer hears a few channels far louder than the others, as trained ones do."""
    folder = make_byte_level(tmp_path / "loud", initializer_range=0.05)

    def louder(name, tensor):
        if name.endswith("layernorm.weight"):
            tensor[::16] *= LOUD
        return tensor

    rewritten(folder, louder)
    return folder


@pytest.mark.parametrize(
    "changes", [{}, {"tie_word_embeddings": True}, {"head_dim": 32, "num_key_value_heads": 1}]
)
def test_the_balanced_model_is_the_same_model(tmp_path, changes):
    folder = make_byte_level(tmp_path / "model", **changes)
    before = transformers_logits(folder, IDS)
    factors = balance(folder, checkpoint_files(folder), read_json(folder / "config.json"))
    rewritten(folder, lambda name, tensor: factors[name].of(tensor) if name in factors else tensor)
    assert abs(transformers_logits(folder, IDS) - before).max() < 1e-3
    moved = [
        f
        for f in factors.values()
        if any(p is not None and (p - 1).abs().max() > 0.1 for p in vars(f).values())
    ]
    assert len(moved) == len(factors) >= 3 * 9


def test_a_row_factor_that_its_reader_does_not_undo_changes_the_model(tmp_path):
    folder = make_byte_level(tmp_path / "model")
    before = transformers_logits(folder, IDS)
    factors = balance(folder, checkpoint_files(folder), read_json(folder / "config.json"))
    factors["model.layers.1.mlp.down_proj.weight"] = Factors()
    rewritten(folder, lambda name, tensor: factors[name].of(tensor) if name in factors else tensor)
    assert abs(transformers_logits(folder, IDS) - before).max() > 0.01


def lost(folder, kind: str) -> float:
    """How far the logits of a file lie from the folder's, in their standard deviation."""
    engine, whole = open_engine(folder, kind), transformers_logits(folder, IDS)
    assert engine.read(IDS)
    return float((numpy.array(engine.logits()) - whole).std() / whole.std())


@pytest.mark.parametrize(
    ("kind", "exponents", "share"),
    [("q8_0", {}, 0.7), ("q5_0", {}, 0.7), ("q4_0", {}, 0.7), ("q4_0", export.WEIGHT_EXPONENTS, 0.9)],
)
def test_a_balanced_file_loses_less(loud, monkeypatch, kind, exponents, share):
    monkeypatch.setattr(export, "WEIGHT_EXPONENTS", exponents)
    balanced = lost(loud, kind)
    monkeypatch.setattr(balancing, "balance", lambda *args: {})
    assert balanced < share * lost(loud, kind)


def test_a_file_that_is_not_rounded_to_blocks_is_not_balanced(loud, monkeypatch):
    def never(*args):
        raise AssertionError("balanced")

    monkeypatch.setattr(balancing, "balance", never)
    assert lost(loud, "f16") < 0.01
