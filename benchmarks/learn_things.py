"""The tower that has learnt drawings and knows words for them, and a LLaVA of it that training begins with.

Run: python benchmarks/learn_things.py --llm models/smollm2-135m-instruct --data out/pictures --out out/eyes
Use: python scripts/train.py --recipe llava_instruct --model out/eyes/untrained --data out/pictures \\
        --out out/eyes/instruct

OUT/tower is EfficientNet-Lite0, trained to say which things a picture shows, of which kind and colour they
are, and how many; it sees only pictures to learn from, no held-out style. The projector of OUT/untrained
turns the share of a word into what the LLM reads as that word, and is random for all else. One H200 sees
40,000 pictures ten times in two minutes; on two cores --blocks 5 and fewer epochs do much of it: docs/log.md.
"""

import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from picture_probe import pixels_of
from seen_otherwise import seen_otherwise
from shown_words import COLOURS, NOTHING, Shown, naming_projector, read_shown, words
from torch import nn
from torch.nn import functional
from transformers import AutoModel

from assistant.devices import device_of_machine
from assistant.folders import read_json
from assistant.llava import Parts, make_llava
from assistant.loading import check_model_folder
from assistant.published_tower import fetch_tower
from assistant.settings import check_replaceable, load_settings, run_command, save_settings
from assistant.vision_tower import (
    MEAN,
    SPREAD,
    STRIDE,
    EfficientNetLite,
    register_tower,
    with_known,
)

BATCH = 128  # pictures a step
DROPPED = 0.3  # share of the features that a step does not see
SMOOTHED = 0.1  # share of a label that goes to all words alike
PLACED = 0.5  # of the loss of what lies at each place, beside that of the whole


@dataclass(frozen=True)
class Settings:
    llm: Path
    """The model that is to see."""
    out: Path
    """Where tower/ and untrained/ go."""
    data: Path = Path("out/pictures")
    """The folder of gen_image_data.py."""
    tower: str = "efficientnet-lite0"
    """A tower that knows no words yet: a name of data/models.toml or a folder."""
    epochs: float = 10.0
    learning_rate: float = 5e-4
    blocks: int = 16
    """The last so many blocks of the tower learn; 0: only the layers that know words."""
    otherwise: bool = True
    """Whether each picture is shown turned, moved, in other colours, and with a part hidden."""
    kept: float = 0.15
    """Share of the tower's own weights that stays in each weight: less of what it knew of photos goes."""
    seed: int = 0


def places_of(tower: EfficientNetLite, pixels: torch.Tensor) -> torch.Tensor:
    """[pictures, places, channels]: the features of levels [pictures, 3, size, size]."""
    device = tower.stem.weight.device
    with torch.autocast(device.type, dtype=torch.bfloat16):
        return tower.places((pixels.to(device).float() / 255 - MEAN) / SPREAD).float()


def loss_of(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The cross entropy of those pictures of which something is known."""
    known = labels.sum(1) > 0
    if not known.any():
        return scores.sum() * 0
    return functional.cross_entropy(scores[known], labels[known], label_smoothing=SMOOTHED)


def loss_of_places(scores: torch.Tensor, things: torch.Tensor) -> torch.Tensor:
    """The cross entropy of scores [places, words]; where nothing lies every word should be as likely."""
    logs = scores.log_softmax(-1)
    named = logs.gather(1, things.clamp(min=0)[:, None])[:, 0]
    return -torch.where(things == NOTHING, logs.mean(1), named).mean()


def learning_parts(tower: EfficientNetLite, blocks: int) -> list[nn.Module]:
    """The last so many blocks, what comes behind them, and before them where all learn."""
    every = list(tower.blocks)
    stem = [tower.stem] if blocks >= len(every) else []
    return [*stem, *every[len(every) - min(blocks, len(every)) :], tower.head] if blocks else []


def batches(count: int) -> Iterator[torch.Tensor]:
    """Endless batches of places, all of them in each round."""
    order = torch.empty(0, dtype=torch.long)
    while True:
        if len(order) < BATCH:
            order = torch.cat([order, torch.randperm(count)])
        yield order[:BATCH]
        order = order[BATCH:]


def learn(tower: EfficientNetLite, pixels: torch.Tensor, shown: Shown, settings: Settings) -> None:
    """Train the tower's last blocks and the layers that know words, which it must have."""
    torch.manual_seed(settings.seed)
    device = tower.stem.weight.device
    with torch.no_grad():
        first = torch.cat([places_of(tower, some).mean(1) for some in pixels[:2048].split(BATCH)])
    mean, spread = first.mean(0), first.std(0) + 1e-3  # the layers learn on features that are alike
    body = [weight for part in learning_parts(tower, settings.blocks) for weight in part.parameters()]
    before = [weight.detach().clone() for weight in body]
    tower.requires_grad_(False)
    for weight in [*body, *tower.known.parameters()]:
        weight.requires_grad_(True)
    groups = [
        {"params": body, "lr": settings.learning_rate},
        {"params": tower.known.parameters(), "lr": 4 * settings.learning_rate},
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.05)
    steps = max(1, int(settings.epochs * len(pixels) / BATCH))
    rates = [group["lr"] for group in groups]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=steps, pct_start=0.15)
    began = time.time()
    for step, chosen in zip(range(steps), batches(len(pixels)), strict=False):
        labels = [each[chosen].to(device) for each in shown.labels]
        some, places = pixels[chosen].to(device).float(), shown.places[chosen].to(device)
        if settings.otherwise:
            some, places, own = seen_otherwise(some, places)
            labels[COLOURS] *= own[:, None]
        seen = (places_of(tower, some) - mean) / spread
        whole = functional.dropout(seen.mean(1), DROPPED)
        loss = sum(loss_of(layer(whole), each) for layer, each in zip(tower.known, labels, strict=True))
        there = tower.known[0](functional.dropout(seen, DROPPED)).flatten(0, 1)
        loss += PLACED * loss_of_places(there, places.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(body, 5.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 99 or step == steps - 1:
            say(f"step {step + 1} of {steps}: loss {loss.item():.3f}, {time.time() - began:.0f} s")
    with torch.no_grad():
        for weight, own in zip(body, before, strict=True):
            weight.lerp_(own, settings.kept)
        for layer in tower.known:
            layer.weight /= spread
            layer.bias -= layer.weight @ mean


def learn_things(settings: Settings, folder: Path) -> None:
    """Write the tower whole, into `folder`."""
    plain = fetch_tower(settings.tower)
    own = AutoModel.from_pretrained(plain).float()
    shown = read_shown(settings.data, own.config.image_size // STRIDE)
    say(f"reading {len(shown.paths)} pictures")
    pixels = pixels_of(shown.paths, own.config.image_size)
    config = with_known(own.config.to_dict(), [len(each) for each in words()])
    tower = EfficientNetLite(type(own.config).from_dict(config)).to(memory_format=torch.channels_last)
    tower.load_state_dict(own.state_dict(), strict=False)
    tower.to(device_of_machine())
    learn(tower, pixels, shown, settings)
    say(f"{folder}: of each kind of words right: {shares_right(tower, pixels[:4096], shown.labels)}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent, prefix=".making-") as work:
        made = Path(work) / folder.name
        tower.cpu().save_pretrained(made)
        knows = {"words": sum(config["known"]), "pictures": len(shown.paths)}
        save_settings(made, {**load_settings(plain), **knows})
        shutil.rmtree(folder, ignore_errors=True)
        made.replace(folder)


def shares_right(tower: EfficientNetLite, pixels: torch.Tensor, labels: list[torch.Tensor]) -> str:
    with torch.inference_mode():
        means = torch.cat([places_of(tower, some).mean(1) for some in pixels.split(BATCH)])
        right = []
        for layer, each in zip(tower.known, labels, strict=True):
            wanted = each[: len(means)]
            guesses = layer(means).argmax(1).cpu()
            known = wanted.sum(1) > 0
            right.append(f"{(wanted.gather(1, guesses[:, None])[known] > 0).float().mean():.3f}")
    return " ".join(right)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(settings: Settings) -> None:
    check_model_folder(settings.llm)
    register_tower()
    tower = settings.out / "tower"
    check_replaceable(tower, "words" in load_settings(tower))
    learn_things(settings, tower)
    projector = naming_projector(settings.llm, read_json(tower / "config.json")["hidden_size"])
    made_of = {"llm": str(settings.llm), "vision": str(tower)}
    make_llava(settings.llm, tower, settings.out / "untrained", Parts(projector), made_of)


if __name__ == "__main__":
    run_command(main, Settings)
