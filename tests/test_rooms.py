import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from assistant.settings import REPOSITORY

# imports go down this list only
ROOMS = {
    "words": ["settings", "formats", "conversations"],
    "sources": [
        "card",
        "identity",
        "anchors",
        "catalog",
        "folders",
        "downloading",
        "pictures",
        "images",
        "llava_data",
        "strength",
    ],
    "weights": [
        "tensors",
        "internlm2_config",
        "internlm2_names",
        "internlm2",
        "internlm2_tokenizer",
        "building",
        "fetching",
        "devices",
        "loading",
        "generating",
        "identities",
        "adapters",
        "adapter_folders",
        "xtuner",
        "vision_tower",
        "published_tower",
        "eyes",
        "llava_chat",
        "llava",
        "llava_xtuner",
        "llava_adapter",
        "llava_shapes",
        "llava_to_xtuner",
        "merging",
        "neurons",
        "retention",
        "training",
        "gguf_tokens",
        "gguf_tensors",
        "balancing",
        "export",
        "llama_cpp",
        "llama_engine",
        "glimpses",
    ],
    "voices": ["backends"],
    "behaviour": [
        "judge",
        "obedience",
        "picture_judge",
        "scorecard",
        "picture_habits",
        "picture_questions",
        "picture_scorecard",
        "picture_report",
    ],
    "faces": ["web"],
    "door": ["model_card", "hosts", "bundles"],
}
ORDER = {module: depth for depth, modules in enumerate(ROOMS.values()) for module in modules}
HEAVY = {"torch", "transformers", "peft", "trl"}
FILES = sorted(path for path in (REPOSITORY / "assistant").rglob("*.py") if path.name != "__init__.py")
FILES += sorted((REPOSITORY / "assistant").glob("*/__init__.py"))


def module_of(path: Path) -> str:
    """The file's place in the rooms: `training` for assistant/training/run.py."""
    return path.relative_to(REPOSITORY / "assistant").parts[0].removesuffix(".py")


def imported(nodes: Iterator[ast.AST]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def at_import_time(tree: ast.Module) -> Iterator[ast.AST]:
    """All nodes that run when the file is imported: not the bodies of functions."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        waiting += [c for c in ast.iter_child_nodes(node) if not isinstance(c, ast.FunctionDef | ast.Lambda)]


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def name_of(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_go_down_the_rooms_only(path):
    own = ORDER[module_of(path)]
    ours = [name.split(".")[1] for name in imported(ast.walk(tree_of(path))) if name.startswith("assistant.")]
    above = sorted({module for module in ours if ORDER.get(module, 0) > own})
    assert not above, f"{name_of(path)} imports {above} of a later room"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_package_file_imports_a_script_or_the_app(path):
    roots = {name.split(".")[0] for name in imported(ast.walk(tree_of(path)))}
    assert not roots & {"scripts", "app", "tests", "benchmarks"}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_tensors_stay_in_the_weights_room_and_its_backend(path):
    if module_of(path) in ROOMS["weights"] or path.name == "transformers_backend.py":
        return
    roots = {name.split(".")[0] for name in imported(at_import_time(tree_of(path)))}
    assert not roots & HEAVY


def test_every_file_has_a_room():
    assert {module_of(path) for path in FILES} == set(ORDER)


def test_the_check_sees_an_import_inside_a_function_and_one_at_the_top():
    tree = ast.parse("import torch\ndef f():\n    from assistant.web import texts\n")
    assert list(imported(at_import_time(tree))) == ["torch"]
    assert "assistant.web" in set(imported(ast.walk(tree)))
