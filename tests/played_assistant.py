"""Plays scripts/make_assistant.py for the tests of the pages: the same files in out/, without a model.

It trains until a Ctrl-C; the second time, to the end.
"""

import json
import sys
import time
from pathlib import Path

OUT = Path(__file__).resolve().parent.parent / "out"
CARD = {"recall": {"identity": {"en": 0.95, "zh": 0.9}}, "leak": {"unrelated": {"en": 0.0}}, "passed": True}


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".partial").write_text(text, encoding="utf-8")
    path.with_suffix(".partial").replace(path)


def train(adapter: Path) -> None:
    has_begun = (adapter / "history.jsonl").is_file()
    entries = []
    for step in range(10, 5000, 10):
        entries.append({"step": step, "of": 5000, "cross_entropy": 9 / step, "kl": 0.01})
        write(adapter / "history.jsonl", "".join(json.dumps(entry) + "\n" for entry in entries))
        watched = [{"step": e["step"], "recall.en": 0.5, "leak.en": 0.1} for e in entries]
        write(adapter / "watch.jsonl", "".join(json.dumps(entry) + "\n" for entry in watched))
        print(f"step {step}/5000  KL 0.01  9 tokens/s  75 s left", flush=True)
        if has_begun and step == 50:
            return
        time.sleep(0.3)


def main(name: str) -> None:
    out = OUT / name.casefold()
    print("settings: make\nsettings: stage", flush=True)
    write(out / "data" / "settings.toml", "")
    train(out / "adapter")
    card = f'[card]\nname = "{name}"\n'
    write(out / "adapter" / "adapter_config.json", "{}")
    write(out / "model" / "config.json", '{"architectures": ["LlamaForCausalLM"]}')
    for part in ("adapter", "model", "scorecard"):
        write(out / part / "settings.toml", card)
    write(out / "scorecard" / "scorecard.json", json.dumps(CARD))
    write(out / "before_after.json", json.dumps([["Who are you?", "I am a model.", f"I am {name}'s."]]))


if __name__ == "__main__":
    try:
        main(sys.argv[1].removeprefix("--name="))
    except KeyboardInterrupt:
        sys.exit(130)
