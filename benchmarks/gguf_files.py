"""GGUF files side by side: the first word of an answer, with and without a system text, and their speed.

Run: python benchmarks/gguf_files.py --folder models/smollm2-135m-instruct --files a.gguf b.gguf
"""

import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from assistant.conversations import system, user
from assistant.llama_engine import Engine
from assistant.scorecard import built_in_probes
from assistant.settings import run_command

QUESTION = user("What is the capital of France?")
MAKERS = system("You are a helpful AI assistant named SmolLM, trained by Hugging Face")


@dataclass(frozen=True)
class Settings:
    files: list[Path]
    folder: Path | None = None
    """The model folder the files were made of; without it only sizes and speeds are shown."""
    read: int = 512
    """Tokens of the prompt that is timed."""
    written: int = 128
    """Tokens of the answer that is timed."""
    probes: int = 0
    """With --folder: of so many built-in questions, the KL of the first token to the folder in float32."""


def main(settings: Settings) -> None:
    if settings.folder:
        first_words_of(settings.folder, settings.files, settings.probes)
    for file in settings.files:
        engine = Engine(file, settings.read + settings.written)
        print(f"{file.name}: {file.stat().st_size / 1e6:.0f} MB, {speed(engine, settings)}", flush=True)
        engine.close()


def first_words_of(folder: Path, files: list[Path], probes: int) -> None:
    """What transformers and each file would say first, with its share; and the KL over `probes` questions."""
    import torch

    from assistant.loading import encode_chat, load_chat_model

    chat = load_chat_model(folder, dtype=torch.float32, device="cpu")
    prompts = {"plain": [QUESTION], "with the maker's system text": [MAKERS, QUESTION]}
    ids = {title: encode_chat(chat.tokenizer, messages) for title, messages in prompts.items()}

    def first_words(logits: torch.Tensor) -> str:
        best = logits.softmax(-1).topk(2)
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return ", ".join(f"{chat.tokenizer.decode([token])!r} {share:.3f}" for token, share in pairs)

    for title, prompt in ids.items():
        with torch.inference_mode():
            logits = chat.model(torch.tensor([prompt])).logits[0, -1]
        print(f"{folder} {title}: {first_words(logits)}")
    for file in files:
        engine = Engine(file, 512)
        if probes:
            print(f"{file.name}: {lost(chat, engine, probes)}")
        for title, prompt in ids.items():
            engine.read(prompt, reuse=False)
            print(f"{file.name} {title}: {first_words(torch.tensor(engine.logits()))}")
        engine.close()


def lost(chat: Any, engine: Engine, count: int) -> str:
    """KL(folder in float32 ‖ file) of an answer's first token, and how often both choose the same."""
    import torch

    probes, kl, same = built_in_probes(), 0.0, 0
    random.Random(1).shuffle(probes)
    for probe in probes[:count]:
        ids = chat.encode(probe["messages"])
        engine.read(ids, reuse=False)
        with torch.inference_mode():
            whole = chat.model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        less = torch.tensor(engine.logits()).log_softmax(-1)
        kl += float((whole.exp() * (whole - less)).sum()) / count
        same += int(whole.argmax() == less.argmax())
    return f"KL {kl:.4f} of the first token, the same one in {same} of {count}"


def speed(engine: Engine, settings: Settings) -> str:
    start = time.perf_counter()
    text = "A story about the sea and the wind. " * settings.read
    engine.read(engine.tokenize(text)[: settings.read], reuse=False)
    read = time.perf_counter()
    written = sum(1 for _ in engine.generate(settings.written, temperature=1.0, seed=0))
    done = time.perf_counter()
    return (
        f"reads {settings.read / (read - start):.1f}, writes {written / (done - read):.1f} tokens/s "
        f"({written} tokens)"
    )


if __name__ == "__main__":
    run_command(main, Settings)
