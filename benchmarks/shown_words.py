"""What pictures show, in English words, and a projector that says these words to a LLM."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from assistant.llava import random_projector
from assistant.loading import load_tokenizer
from assistant.pictures.making import SHOWN
from assistant.pictures.scenes import MOST
from assistant.pictures.things import common, load_texts, load_things
from assistant.tensors import checkpoint_files, tensors_in
from assistant.vision_tower import LOUD

COLOURS = 2  # which of the kinds of words these are
NOTHING = -1  # lies at a place


def words() -> list[list[str]]:
    """Of each kind the English words: things, their kinds, colours, numbers from one."""
    texts = load_texts("en")
    return [
        [thing.name for thing in load_things()],
        [texts["kinds"][kind][1] for kind in common()["asked"]],
        list(common()["colours"]),
        texts["numbers"][1 : MOST + 1],
    ]


@dataclass
class Shown:
    """What pictures show.

    `labels`: for each kind of words [pictures, words] each word's share; zeros: none is known.
    `places`: [pictures, rows, columns] the number of the thing that lies there, or NOTHING.
    """

    paths: list[Path]
    labels: list[torch.Tensor]
    places: torch.Tensor


def read_shown(data: Path, side: int) -> Shown:
    """Of a folder of gen_image_data.py, with `side` places each way. Raises ValueError for an older one."""
    things = {thing.name: number for number, thing in enumerate(load_things())}
    kinds, colours = common()["asked"], common()["colours"]
    if not (data / SHOWN).is_file():
        raise ValueError(f"{data} has no {SHOWN}; make the data again: python scripts/gen_image_data.py")
    lines = [json.loads(line) for line in (data / SHOWN).read_text(encoding="utf-8").splitlines()]
    if lines and "boxes" not in lines[0]:
        raise ValueError(f"{data / SHOWN} does not say where things lie; make the data again")
    labels = [torch.zeros(len(lines), len(each)) for each in words()]
    places = torch.full((len(lines), side, side), NOTHING)
    centres = (torch.arange(side) + 0.5) / side
    for row, shown in enumerate(lines):
        for name, (x, y, size) in zip(shown["things"], shown["boxes"], strict=True):
            labels[0][row, things[name]] += 1 / len(shown["things"])
            lies = (centres[:, None] - y).abs().maximum((centres[None] - x).abs()) < size / 2
            places[row][lies] = things[name]
        if shown["kind"]:
            labels[1][row, kinds.index(shown["kind"])] = 1
        if shown["colour"]:
            labels[2][row, colours.index(shown["colour"])] = 1
        labels[3][row, len(shown["things"]) - 1] = 1
    return Shown([data / shown["image"] for shown in lines], labels, places)


def spoken_words(llm: Path) -> torch.Tensor:
    """[words, hidden]: the mean embedding of each word's tokens."""
    tokenizer = load_tokenizer(llm)
    embedding = next(
        tensor for name, tensor in tensors_in(checkpoint_files(llm)) if name.endswith("embed_tokens.weight")
    )
    ids = [tokenizer(" " + word, add_special_tokens=False).input_ids for each in words() for word in each]
    return torch.stack([embedding[word].float().mean(0) for word in ids])


def naming_projector(llm: Path, seeing: int) -> dict[str, torch.Tensor]:
    """A projector [seeing → hidden → hidden], random but for the shares of words, which become those words.

    GELU is near half of what it is given where that is small, as it is here.
    """
    spoken = spoken_words(llm)
    projector = random_projector(seeing, spoken.shape[1])
    second = torch.nn.init.orthogonal_(
        projector["linear_2.weight"], gain=2.0, generator=torch.Generator().manual_seed(0)
    )
    projector["linear_1.weight"][:, seeing - len(spoken) :] = second.T @ spoken.T / 2 / LOUD
    projector["linear_1.bias"].zero_()
    projector["linear_2.bias"].zero_()
    return projector
