"""The tower that knows the things of data/pictures, and a LLaVA of it that training begins with.

Run: python benchmarks/learn_things.py --llm models/smollm2-135m-instruct --data out/pictures --out out/eyes
Use: python scripts/train.py --recipe llava_instruct --model out/eyes/untrained --data out/pictures \\
        --out out/eyes/instruct

OUT/tower is EfficientNet-Lite0 with the linear probe of picture_probe.py beside its features; that sees only
pictures to learn from, no held-out style. The projector of OUT/untrained turns the share of a thing into what
the LLM reads as its English name, and is random for all else.
"""

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from picture_probe import features, fit, trained_on
from transformers import AutoModel

from assistant.folders import read_json
from assistant.llava import Parts, make_llava, random_projector
from assistant.loading import check_model_folder, load_tokenizer
from assistant.pictures.things import load_things
from assistant.settings import check_replaceable, load_settings, run_command, save_settings
from assistant.tensors import checkpoint_files, tensors_in
from assistant.vision_tower import LOUD, EfficientNetLite, fetch_tower, register_tower, with_things


@dataclass(frozen=True)
class Settings:
    llm: Path
    """The model that is to see."""
    out: Path
    """Where tower/ and untrained/ go."""
    data: Path = Path("out/pictures")
    """The folder of gen_image_data.py."""
    tower: str = "efficientnet-lite0"
    """A tower that knows no things yet: a name of data/models.toml or a folder."""
    steps: int = 600
    """Steps of the linear layer, 512 pictures each."""


def learn_things(settings: Settings, folder: Path) -> None:
    """Write the tower whole, into `folder`."""
    plain = fetch_tower(settings.tower)
    tower = AutoModel.from_pretrained(plain).float().eval()
    learnt = list(dict(trained_on(settings.data)).items())
    labels = torch.tensor([number for _, number in learnt])
    inputs = features(tower, [path for path, _ in learnt], tower.config.image_size)
    layer = fit(inputs, labels, settings.steps)
    with torch.inference_mode():
        share = (layer(inputs).argmax(1) == labels).float().mean()
    things = {name: tensor.detach() for name, tensor in layer.named_parameters()}
    config = type(tower.config).from_dict(with_things(tower.config.to_dict(), things))
    knowing = EfficientNetLite(config)
    knowing.load_state_dict({**tower.state_dict(), **{f"things.{n}": t for n, t in things.items()}})
    known = {"things": len(labels.unique()), "pictures": len(learnt)}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent, prefix=".making-") as work:
        made = Path(work) / folder.name
        knowing.save_pretrained(made)
        save_settings(made, {**load_settings(plain), **known})
        shutil.rmtree(folder, ignore_errors=True)
        made.replace(folder)
    print(f"{folder}: names {share:.3f} of the {len(learnt)} pictures it learnt from", file=sys.stderr)


def spoken_names(llm: Path) -> torch.Tensor:
    """[things, hidden]: the mean embedding of the tokens of each English name."""
    tokenizer = load_tokenizer(llm)
    embedding = next(
        tensor for name, tensor in tensors_in(checkpoint_files(llm)) if name.endswith("embed_tokens.weight")
    )
    names = [tokenizer(" " + thing.name, add_special_tokens=False).input_ids for thing in load_things()]
    return torch.stack([embedding[ids].float().mean(0) for ids in names])


def naming_projector(llm: Path, seeing: int) -> dict[str, torch.Tensor]:
    """A projector [seeing → hidden → hidden], random but for the shares of things, which become their names.

    GELU is near half of what it is given where that is small, as it is here.
    """
    names = spoken_names(llm)
    projector = random_projector(seeing, names.shape[1])
    second = torch.nn.init.orthogonal_(
        projector["linear_2.weight"], gain=2.0, generator=torch.Generator().manual_seed(0)
    )
    projector["linear_1.weight"][:, seeing - len(names) :] = second.T @ names.T / 2 / LOUD
    projector["linear_1.bias"].zero_()
    projector["linear_2.bias"].zero_()
    return projector


def main(settings: Settings) -> None:
    check_model_folder(settings.llm)
    register_tower()
    tower = settings.out / "tower"
    check_replaceable(tower, "things" in load_settings(tower))
    learn_things(settings, tower)
    projector = naming_projector(settings.llm, read_json(tower / "config.json")["hidden_size"])
    made_of = {"llm": str(settings.llm), "vision": str(tower)}
    make_llava(settings.llm, tower, settings.out / "untrained", Parts(projector), made_of)


if __name__ == "__main__":
    run_command(main, Settings)
