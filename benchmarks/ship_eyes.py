"""Put the eyes that were trained into data/eyes/: filtered, and small enough to be shipped with the rest.

Run: python benchmarks/ship_eyes.py --adapter out/eyes/instruct --llava out/eyes/aligned --data out/pictures
Use: python scripts/make_llava.py --llm models/smollm2-135m-instruct --vision efficientnet-lite0 \\
        --adapter data/eyes --out out/eyes/llava

The filter is that of assistant/training/filtering.py once more, after the last step: what a chat without a
picture sends into the adapter moves it less (docs/log.md has what each strength costs). Questions about a
picture that nobody sent are text too, and what they taught stays.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from peft import set_peft_model_state_dict
from safetensors.torch import load_file

from assistant.conversations import images_of
from assistant.folders import read_json
from assistant.llava_adapter import SOMEBODYS, WEIGHTS, read_trained, sight_of, write_small
from assistant.settings import DATA, load_settings, run_command, save_settings
from assistant.training.collating import Collator
from assistant.training.examples import anchor_examples
from assistant.training.filtering import filter_inputs
from assistant.training.moments import input_moments
from assistant.training.parts import pictures_for, trained_model
from assistant.training.reading import read_rows
from assistant.training.recipe import load_recipe
from assistant.training.run import load_base, say
from assistant.training.seeing import picture_examples
from assistant.training.states import Prepared

RECIPE = "llava_instruct"
READ = 100  # rows for each one that is looked at: of a hundred, four ask about a picture that is not there
CACHE = DATA.parent / "models" / "cache"


@dataclass(frozen=True)
class Settings:
    adapter: Path
    """What train.py --recipe llava_instruct wrote."""
    llava: Path
    """The LLaVA that it was trained on."""
    data: Path
    """The folder of gen_image_data.py."""
    filter: float = 1.0
    """How much a token of text alone counts against one of a row with pictures; 0: no filter."""
    rows: int = 400
    """Rows with pictures whose inputs are looked at."""
    refusals: int = 100
    """And rows that ask about a picture which is not there."""
    anchors: int = 700
    """General prompts whose inputs are looked at."""
    out: Path = DATA / "eyes"


def write_filtered(settings: Settings, folder: Path) -> None:
    """The adapter into `folder`, its LoRA's inputs filtered."""
    counts = [f"identity_rows={READ * settings.rows}", f"anchors={settings.anchors}", "steps=1"]
    recipe = load_recipe(RECIPE, counts)
    chat = load_base(settings.llava, recipe)
    rows = read_rows(chat, recipe, settings.data, None, CACHE, say)
    objective = recipe.objective
    anchors = anchor_examples(
        chat, rows.anchors, objective.anchor_tokens, objective.prompt_every, objective.max_length
    )
    shown = [row for row in rows.pictures if images_of(row["messages"])][: settings.rows]
    refused = [row for row in rows.pictures if row.get("kind") == "no_image"][: settings.refusals]
    examples = picture_examples(chat, shown + refused, objective.max_length) + anchors
    pictures = pictures_for(chat, recipe, [image for e in examples for image in e.images], say)
    model = trained_model(chat, recipe, 0)
    weights = load_file(settings.adapter / WEIGHTS)
    set_peft_model_state_dict(model, {name: tensor.float() for name, tensor in weights.items()})
    model.eval()
    collate = Collator(examples, [Prepared() for _ in examples], pictures)
    seen = len(examples) - len(anchors)
    say(f"filtering by {seen} rows about pictures and {len(anchors)} general prompts")
    own, general = (
        input_moments(model, collate, list(places), 0) for places in (range(seen), range(seen, len(examples)))
    )
    filter_inputs(model, own, general, settings.filter)
    model.save_pretrained(folder)


def main(settings: Settings) -> None:
    read_trained(settings.adapter)
    with TemporaryDirectory() as work:
        if settings.filter:
            write_filtered(settings, Path(work))
        folder = Path(work) if settings.filter else settings.adapter
        llm = read_json(settings.llava / "config.json")["text_config"]
        neurons = int(llm.get("added_neurons", 0))
        write_small(folder, settings.out, sight_of(settings.llava), neurons=neurons)
    made_by = {k: v for k, v in load_settings(settings.adapter).items() if k not in SOMEBODYS}
    save_settings(settings.out, {**made_by, "filter": settings.filter})
    print(f"{settings.out}: {(settings.out / WEIGHTS).stat().st_size / 10**6:.1f} MB", file=sys.stderr)


if __name__ == "__main__":
    run_command(main, Settings)
