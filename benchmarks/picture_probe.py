"""How well a linear probe on the frozen tower names the pictures: the measure of a LLaVA's spoken names.

Run: python benchmarks/picture_probe.py --data out/pictures --tower models/efficientnet-lite0

Learns from the pictures of align.json that show one thing, and is asked about those of dev.jsonl (held-out
styles), of seen.jsonl and, with --stamps, about Tux Paint's stamps (Debian, fetched).
"""

import json
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageOps
from transformers import AutoModel

from assistant.images import open_image
from assistant.pictures.stamps import stamps
from assistant.pictures.things import load_things, with_article
from assistant.settings import run_command, write_text
from assistant.vision_tower import MEAN, SPREAD, EfficientNetLite, register_tower

BATCH = 8


@dataclass(frozen=True)
class Settings:
    data: Path = Path("out/pictures")
    tower: Path = Path("models/efficientnet-lite0")
    stamps: bool = False
    steps: int = 600
    size: int = 224
    """Pixels each way that the tower sees."""
    out: Path | None = None
    """A json file for the shares."""


def square(path: Path, size: int) -> Image.Image:
    return ImageOps.pad(open_image(path), (size, size), color="white")


def pixels_of(paths: list[Path], size: int) -> torch.Tensor:
    """[pictures, 3, size, size], 0 to 255, the channels of a pixel beside each other."""
    levels = torch.empty(len(paths), size, size, 3, dtype=torch.uint8)

    def read(place: int) -> None:
        flat = torch.frombuffer(bytearray(square(paths[place], size).tobytes()), dtype=torch.uint8)
        levels[place] = flat.view(size, size, 3)

    with ThreadPoolExecutor() as pool:
        list(pool.map(read, range(len(paths))))
    return levels.permute(0, 3, 1, 2)


def features(model: EfficientNetLite, paths: list[Path], size: int) -> torch.Tensor:
    """[pictures, channels]: the mean over a picture's places."""
    found = []
    for start in range(0, len(paths), BATCH):
        some = paths[start : start + BATCH]
        levels = pixels_of(some, size)
        with torch.inference_mode():
            found.append(model.places((levels.float() / 255 - MEAN) / SPREAD).mean(1))
        print(f"  {start + len(some)}/{len(paths)}", file=sys.stderr, flush=True)
    return torch.cat(found)


def trained_on(data: Path) -> Iterator[tuple[Path, int]]:
    """(picture, number of the thing) of the titles that name one thing."""
    titles = {with_article(thing, "en").casefold(): number for number, thing in enumerate(load_things())}
    for record in json.loads((data / "align.json").read_text(encoding="utf-8")):
        number = titles.get(record["conversations"][-1]["value"].casefold())
        if number is not None:
            yield data / record["image"], number


def asked(data: Path, name: str) -> Iterator[tuple[str, Path, list[str]]]:
    """(style, picture, accepted English names) of the questions for a name."""
    for line in (data / name).read_text(encoding="utf-8").splitlines():
        probe = json.loads(line)
        if probe["kind"].startswith("name_"):
            thing = next(thing for thing in load_things() if thing.name == probe["thing"])
            yield probe["style"], data / probe["image"], list(thing.names["en"])


def fit(inputs: torch.Tensor, labels: torch.Tensor, steps: int) -> torch.nn.Linear:
    """The layer [things, channels] that tells `labels` [pictures] from `inputs` [pictures, channels]."""
    torch.manual_seed(0)
    mean, spread = inputs.mean(0), inputs.std(0) + 1e-6
    scaled = (inputs - mean) / spread
    layer = torch.nn.Linear(inputs.shape[1], len(load_things()))
    optimizer = torch.optim.AdamW(layer.parameters(), lr=3e-3, weight_decay=1e-2)
    for _ in range(steps):
        chosen = torch.randint(len(inputs), (512,))
        loss = torch.nn.functional.cross_entropy(layer(scaled[chosen]), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        layer.weight /= spread
        layer.bias -= layer.weight @ mean
    return layer


def main(settings: Settings) -> None:
    register_tower()
    model = AutoModel.from_pretrained(settings.tower).float().eval()
    learnt = list(trained_on(settings.data))
    inputs = features(model, [path for path, _ in learnt], settings.size)
    layer = fit(inputs, torch.tensor([number for _, number in learnt]), settings.steps)
    questions = [*asked(settings.data, "dev.jsonl"), *asked(settings.data, "seen.jsonl")]
    if settings.stamps:
        questions += [("stamps", stamp.path, list(stamp.names["en"])) for stamp in stamps()]
    given = features(model, [path for _, path, _ in questions], settings.size)
    with torch.inference_mode():
        guesses = layer(given).argmax(1).tolist()
    right: dict[str, list[bool]] = {}
    for (style, _, accepted), guess in zip(questions, guesses, strict=True):
        right.setdefault(style, []).append(load_things()[guess].name in accepted)
    shares = {
        style: {"right": sum(each) / len(each), "of": len(each)} for style, each in sorted(right.items())
    }
    text = json.dumps({"pictures": len(learnt), "styles": shares}, indent=1) + "\n"
    if settings.out:
        write_text(settings.out, text)
    print(text, end="")


if __name__ == "__main__":
    run_command(main, Settings)
