"""The eyes of data/eyes go along with a page whose model they fit; of any other it is said that it is blind.

Knows no tensor: the hidden size that the eyes fit stands in the header of their file.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

from assistant.bundles.targets import Target
from assistant.catalog import ADAPTER_FILES
from assistant.folders import read_json

BLIND = "note: this page answers text alone:"


def place_eyes(target: Target, bundle: Path, root: Path, say: Callable[[str], None]) -> None:
    """Copy `root`/data/eyes into a bundle that already holds its model, or say why not.

    Their settings stay here: they tell where things lay on the machine that trained them.
    """
    from assistant.web.looking import EYES, projector_width

    if target.form == "gguf":
        say(f"{BLIND} llama.cpp runs here without PyTorch (--to huggingface --variant zero can see)")
        return
    path = bundle / "model" / "config.json"
    config = read_json(path) if path.is_file() else {}
    if "vision_config" in config:
        return  # it has eyes of its own
    width = projector_width(root / EYES)
    if not width:
        say(f"{BLIND} there are no trained eyes in {EYES}/")
    elif (config.get("model_type"), config.get("hidden_size")) != ("llama", width):
        say(f"{BLIND} {EYES}/ fits Llama models of width {width} that go along, and this is none")
    else:
        (bundle / EYES).mkdir(parents=True, exist_ok=True)
        for name in ADAPTER_FILES:
            shutil.copyfile(root / EYES / name, bundle / EYES / name)
        size = sum((bundle / EYES / name).stat().st_size for name in ADAPTER_FILES)
        say(f"the page can look at pictures: {EYES}/ goes along ({size / 1e6:.1f} MB)")
