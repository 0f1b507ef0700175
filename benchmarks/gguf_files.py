"""GGUF files side by side: the first word of an answer, with and without a system text, and their speed.

Run: python benchmarks/gguf_files.py --folder models/smollm2-135m-instruct --files a.gguf b.gguf
"""

import time
from dataclasses import dataclass
from pathlib import Path

import torch

from assistant.conversations import system, user
from assistant.llama_cpp import Engine
from assistant.loading import encode_chat, load_chat_model
from assistant.settings import run_command

QUESTION = user("What is the capital of France?")
MAKERS = system("You are a helpful AI assistant named SmolLM, trained by Hugging Face")
READ, WRITTEN = 512, 128  # tokens


@dataclass(frozen=True)
class Settings:
    folder: Path
    """The model folder the files were made of."""
    files: list[Path]


def main(settings: Settings) -> None:
    chat = load_chat_model(settings.folder, dtype=torch.float32, device="cpu")
    prompts = {"plain": [QUESTION], "with the maker's system text": [MAKERS, QUESTION]}
    ids = {title: encode_chat(chat.tokenizer, messages) for title, messages in prompts.items()}

    def first_words(logits: torch.Tensor) -> str:
        best = logits.softmax(-1).topk(2)
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return ", ".join(f"{chat.tokenizer.decode([token])!r} {share:.3f}" for token, share in pairs)

    for title, prompt in ids.items():
        with torch.inference_mode():
            print(
                f"{settings.folder} {title}: {first_words(chat.model(torch.tensor([prompt])).logits[0, -1])}"
            )
    for file in settings.files:
        engine = Engine(file, 2 * READ)
        for title, prompt in ids.items():
            engine.read(prompt, reuse=False)
            print(f"{file.name} {title}: {first_words(torch.tensor(engine.logits()))}")
        print(f"{file.name}: {file.stat().st_size / 1e6:.0f} MB, {speed(engine)}")
        engine.close()


def speed(engine: Engine) -> str:
    start = time.perf_counter()
    engine.read((engine.tokenize("A story about the sea and the wind. ") * READ)[:READ], reuse=False)
    read = time.perf_counter()
    written = sum(1 for _ in engine.generate(WRITTEN, temperature=1.0, seed=0))
    done = time.perf_counter()
    return (
        f"reads {READ / (read - start):.0f}, writes {written / (done - read):.0f} tokens/s ({written} tokens)"
    )


if __name__ == "__main__":
    run_command(main, Settings)
