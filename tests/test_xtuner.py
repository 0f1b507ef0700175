# ruff: noqa: F401, F811 - fixtures are imported, and named again as arguments
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from test_adapters import (
    HIDDEN,
    KEY_VALUE,
    LAYERS,
    QUERY,
    SIZE,
    XTUNER,
    adapter_config,
    adapter_weights,
    base,
    xtuner_base,
)

from assistant.adapter_folders import to_llama_adapter
from assistant.settings import REPOSITORY, load_settings
from assistant.xtuner import import_pth, read_pth

FINETUNED, PROJECTOR = XTUNER / "iter_5198.pth", XTUNER / "iter_2181.pth"


def deepspeed_folder(
    folder: Path, weights: dict[str, torch.Tensor], states="mp_rank_00_model_states.pt"
) -> Path:
    """As DeepSpeed writes it under ZeRO-2: the weights are views of one flat buffer."""
    folder.mkdir()
    flat = torch.cat([weight.flatten() for weight in weights.values()])
    parts = flat.split([weight.numel() for weight in weights.values()])
    views = {name: part.view(weights[name].shape) for name, part in zip(weights, parts, strict=True)}
    content = {
        "module": views,
        "buffer_names": [],
        "optimizer": None,
        "param_shapes": [{name: weight.shape for name, weight in weights.items()}],
        "sparse_tensor_module_names": set(),
        "ds_config": {"zero_optimization": {"stage": 2}},
        "ds_version": "0.14.4",
        "meta": {"iter": 5198},
    }
    torch.save(content, folder / states)
    (folder / "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt").write_bytes(b"never opened")
    return folder


def test_a_pth_and_a_deepspeed_folder_give_the_adapter_that_xtuner_exports(xtuner_base, tmp_path):
    folder = deepspeed_folder(tmp_path / "iter_5198.pth", read_pth(FINETUNED))
    to_llama_adapter(XTUNER / "hf" / "llm_adapter", tmp_path / "exported", xtuner_base)
    for path, out in ((FINETUNED, tmp_path / "file"), (folder, tmp_path / "folder")):
        [note] = import_pth(path, out, xtuner_base, alpha=4)
        assert "LLaVA" in note and "make_llava.py" in note
        exported = (tmp_path / "exported" / "adapter_model.safetensors").read_bytes()
        assert (out / "adapter_model.safetensors").read_bytes() == exported
        config = adapter_config(out)
        assert {**config, "lora_dropout": 0.05} == adapter_config(tmp_path / "exported")


class HistoryBuffer:
    """Pickles as mmengine's: by its module's name, with a NumPy array and its own methods."""

    def __init__(self) -> None:
        import numpy

        self._log_history, self.statistics_methods = numpy.array([1.5, 0.5]), {"mean": HistoryBuffer.mean}

    def mean(self) -> float:
        return 1.0

    def __setstate__(self, state: Any) -> None:
        raise AssertionError("the log was brought back to life")


HistoryBuffer.__module__ = HistoryBuffer.mean.__module__ = "mmengine.logging.history_buffer"


class Calls:
    """Calls `function` when it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def test_the_training_log_in_a_pth_is_passed_over_and_nothing_in_it_runs(tmp_path, monkeypatch):
    import types

    names = ("mmengine", "mmengine.logging", "mmengine.logging.history_buffer")
    with monkeypatch.context() as patch:
        for name in names:
            patch.setitem(sys.modules, name, types.ModuleType(name))
        sys.modules[names[-1]].HistoryBuffer = HistoryBuffer  # type: ignore[attr-defined]
        weights = {"llm.x.lora_A.default.weight": torch.ones(2, 3)}
        hub = {"log_scalars": {"train/loss": HistoryBuffer()}}
        torch.save({"state_dict": weights, "message_hub": hub}, tmp_path / "iter_1.pth")
    with pytest.raises(Exception, match="Unsupported global"):
        torch.load(tmp_path / "iter_1.pth", weights_only=True)
    read = read_pth(tmp_path / "iter_1.pth")
    assert list(read) == list(weights) and torch.equal(*read.values(), *weights.values())


@pytest.mark.parametrize("call", [(os.mkdir,), (subprocess.check_call, ["mkdir"])], ids=["os", "subprocess"])
def test_a_pth_that_would_run_something_is_refused(call, tmp_path):
    function, *first = call
    target = str(tmp_path / "ran")
    arguments = [first[0] + [target]] if first else [target]
    content = {"state_dict": {"llm.x": torch.ones(1)}, "message_hub": Calls(function, *arguments)}
    torch.save(content, tmp_path / "iter_1.pth")
    with pytest.raises(ValueError, match="iter_1.pth"):
        read_pth(tmp_path / "iter_1.pth")
    assert not (tmp_path / "ran").exists()


def pth_of_rank(rank: int, path: Path) -> Path:
    name = "llm.base_model.model.model.layers.{}.attention.wqkv.lora_{}.default.weight"
    rows = (QUERY + 2 * KEY_VALUE) * SIZE
    halves = {name.format(layer, "A"): torch.ones(rank, HIDDEN) for layer in range(LAYERS)}
    halves |= {name.format(layer, "B"): torch.ones(rows, rank) for layer in range(LAYERS)}
    torch.save({"state_dict": halves}, path)
    return path


@pytest.mark.parametrize("rank, alpha", [(64, 16), (512, 256)])
def test_a_known_rank_takes_the_alpha_of_xtuners_recipe_and_says_so(rank, alpha, base, tmp_path):
    path = pth_of_rank(rank, tmp_path / "a.pth")
    [note] = import_pth(path, tmp_path / "adapter", base)
    assert f"rank {rank}: alpha {alpha}" in note
    assert adapter_config(tmp_path / "adapter")["lora_alpha"] == alpha
    assert import_pth(path, tmp_path / "adapter", base, alpha=7) == []
    assert adapter_config(tmp_path / "adapter")["lora_alpha"] == 7


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPOSITORY / "scripts" / "import_xtuner.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)


def test_the_command_turns_a_pth_into_an_adapter_and_back(xtuner_base, tmp_path):
    done = run(FINETUNED, "--base", xtuner_base, "--out", tmp_path / "adapter", "--alpha", 4)
    assert done.returncode == 0, done.stderr
    assert "LLaVA checkpoint" in done.stderr
    settings = load_settings(tmp_path / "adapter")
    assert (settings["path"], settings["alpha"], settings["to"]) == (str(FINETUNED), 4.0, "llama")
    back = run(tmp_path / "adapter", "--to", "internlm2", "--out", tmp_path / "back")
    assert back.returncode == 0, back.stderr
    original = torch.load(XTUNER / "hf" / "llm_adapter" / "adapter_model.bin", weights_only=True)
    returned = adapter_weights(tmp_path / "back")
    assert set(original) == set(returned)
    assert all(torch.equal(half, returned[name]) for name, half in original.items())


def bad_inputs(folder: Path, base: Path) -> dict[str, tuple[list[object], str]]:
    """Flags by what is wrong with them, and the sentence that answers."""
    full = {"llm.model.tok_embeddings.weight": torch.ones(2, 2)}
    torch.save({"state_dict": full}, folder / "full.pth")
    torch.save([1], folder / "list.pth")
    torch.save({"meta": {"iter": 1}}, folder / "empty.pth")
    (folder / "damaged.pth").write_bytes(FINETUNED.read_bytes()[5000:])
    (folder / "pointer.pth").write_text("version https://git-lfs.github.com/spec/v1\n")
    (folder / "nothing").mkdir()
    deepspeed_folder(folder / "zero3", full, "zero_pp_rank_0_mp_rank_00_model_states.pt")
    exported = XTUNER / "hf" / "llm_adapter"
    return {
        "projector": ([PROJECTOR], "holds no adapter of the LLM (only projector)"),
        "full": ([folder / "full.pth"], "is a full fine-tune, not an adapter"),
        "alpha": ([FINETUNED], "give --alpha"),
        "two alphas": ([exported, "--alpha", 4], "--alpha is for a .pth"),
        "negative": ([FINETUNED, "--alpha", -4], "lora_alpha -4.0"),
        "missing": ([folder / "none.pth"], "does not exist"),
        "list": ([folder / "list.pth"], "holds a list"),
        "empty": ([folder / "empty.pth"], "holds no weights by name"),
        "damaged": ([folder / "damaged.pth"], "is damaged"),
        "pointer": ([folder / "pointer.pth"], "git lfs pull"),
        "folder": ([folder / "nothing"], "holds 0 *_model_states.pt"),
        "zero3": ([folder / "zero3"], "pieces of ZeRO-3"),
        "raw base": ([exported, "--base", XTUNER / "base_llm"], "is no InternLM2 turned into a Llama"),
        "no base": ([exported, "--base", folder / "nothing"], "has no config.json"),
        "back": ([FINETUNED, "--to", "internlm2"], "is no adapter folder"),
        "base gone": ([exported, "--to", "internlm2"], "is gone"),
    }


def test_bad_input_is_answered_with_one_sentence(xtuner_base, tmp_path, monkeypatch, capsys):
    """All but one in this process: starting one takes seconds."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "scripts"))
    import import_xtuner

    for name, (flags, sentence) in bad_inputs(tmp_path, xtuner_base).items():
        if "--base" not in flags and "internlm2" not in flags:
            flags = [*flags, "--base", xtuner_base]
        arguments = ["import_xtuner.py", *map(str, flags), "--out", str(tmp_path / "out")]
        monkeypatch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit) as ended:
            import_xtuner.run_command(import_xtuner.main, import_xtuner.Settings)
        [_, line] = capsys.readouterr().err.strip().splitlines()
        assert ended.value.code == 2 and line.startswith("error: ") and sentence in line, (name, line)
        assert not (tmp_path / "out").exists()
    done = run(PROJECTOR, "--base", xtuner_base, "--out", tmp_path / "out")
    assert done.returncode == 2 and "Traceback" not in done.stderr and "only projector" in done.stderr
