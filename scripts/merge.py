"""Merge an adapter into its base: one folder, and the proof that it answers the same.

Run: python scripts/merge.py --adapter out/ada/adapter --out out/ada/model
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from assistant.judge import identity_of, judge_identity
from assistant.loading import is_adapter
from assistant.merging import merge, quantization_note
from assistant.scorecard import built_in_probes
from assistant.settings import check_replaceable, load_settings, plain_values, run_command

ASKED = 12


@dataclass(frozen=True)
class Settings:
    adapter: Path
    """The folder that train.py wrote."""
    out: Path
    """Where the merged model goes, for example out/ada/model."""
    scale: Annotated[float, tyro.conf.arg(aliases=["--strength"])] = 1.0
    """Strength of the adapter: 0 is the base, 1 as trained."""


def main(settings: Settings) -> None:
    if not is_adapter(settings.adapter):
        raise ValueError(f"{settings.adapter} is no adapter; give the folder that train.py wrote")
    if not 0 <= settings.scale <= 4:
        raise ValueError(f"--scale {settings.scale} is out of range; 0 is the base, 1 as trained, at most 4")
    if settings.out.resolve() in (settings.adapter.resolve(), *settings.adapter.resolve().parents):
        raise ValueError(f"--out {settings.out} holds the adapter; give a folder of its own")
    check_replaceable(settings.out, "adapter" in load_settings(settings.out))
    made_by = load_settings(settings.adapter)
    asked = [probe["messages"] for probe in built_in_probes() if probe["kind"] == "identity"][:ASKED]
    identity = identity_of(made_by["card"]) if "card" in made_by else None
    if note := quantization_note(settings.adapter):
        print(f"note: {note}", file=sys.stderr)
    proof = merge(
        settings.adapter,
        settings.out,
        asked,
        settings.scale,
        (lambda answer: judge_identity(answer, identity)) if identity else bool,
        {**plain_values(settings), "card": made_by.get("card", {})},
    )
    if proof["loss"]:
        print(f"{proof['loss']}: so the weights are kept in float32, twice the size", file=sys.stderr)
    print(
        f"{settings.out}: merged in {proof['dtype']}; largest logit difference "
        f"{proof['logit_difference']:.1e}, rounding "
        f"{proof['rounding_kl']:.1e} nats a token, {proof['same_answers']} of {proof['answers']} "
        f"answers the same, {proof['stated']} state the identity as before",
        file=sys.stderr,
    )


if __name__ == "__main__":
    run_command(main, Settings)
