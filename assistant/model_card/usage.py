"""How to use a published model, as commands and code that a reader can paste."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from assistant.model_card.origin import Base
from assistant.settings import slug
from assistant.strength import has_neurons

ASK = 'messages = [{"role": "user", "content": "Who are you?"}]'
MERGED_CODE = """from transformers import pipeline

ask = pipeline("text-generation", model="{model}")
{messages}
print(ask(messages, max_new_tokens=64)[0]["generated_text"][-1]["content"])"""
ADAPTER_CODE = """from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

model = AutoPeftModelForCausalLM.from_pretrained("{model}")
tokenizer = AutoTokenizer.from_pretrained("{tokenizer}")
{messages}
asked = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
)
answer = model.generate(**asked, max_new_tokens=64)[0]
print(tokenizer.decode(answer[asked["input_ids"].shape[1] :], skip_special_tokens=True))"""

MERGE_FIRST = """hf download {model} --local-dir adapter
python scripts/fetch_model.py {base}
python scripts/merge.py --adapter adapter --out model
python scripts/chat.py --model model --message "Who are you?\""""


def use_lines(form: str, folder: Path, base: Base, model: str, texts: Mapping[str, Any]) -> Iterator[str]:
    say = texts["use"]
    if form == "gguf":
        yield from _gguf_use(folder, model, say)
        return
    has_template = (folder / "chat_template.jinja").is_file()
    if form == "adapter" and has_neurons(folder):
        yield from _block(say["merge"], "sh", MERGE_FIRST.format(model=model, base=slug(base.title)))
    elif form == "adapter":
        tokenizer = model if has_template else base.id or "BASE"
        code = ADAPTER_CODE.format(model=model, tokenizer=tokenizer, messages=ASK)
        yield from _block(say["peft"], "python", code)
    else:
        yield from _block(say["transformers"], "python", MERGED_CODE.format(model=model, messages=ASK))
        command = f'python scripts/chat.py --model {model} --message "Who are you?"'
        yield from _block(say["chat"], "sh", command)
    if not has_template:
        yield say["no_template"].format(base=base.title) + "\n"
    yield say["plain"]


def _gguf_use(folder: Path, model: str, say: Mapping[str, str]) -> Iterator[str]:
    file = next(iter(sorted(folder.glob("*.gguf")))).name
    yield from _block(say["llama"], "sh", f"llama-cli -hf {model} -hff {file} -cnv")
    ollama = f"ollama run hf.co/{model}"
    if (folder / "Modelfile").is_file():
        ollama += (
            f"\n# or from the downloaded files 或使用下载的文件:\nollama create {slug(model)} -f Modelfile"
        )
    yield from _block(say["ollama"], "sh", ollama)
    command = f'python scripts/chat.py --model {file} --message "Who are you?"'
    yield from _block(say["chat"], "sh", command)
    yield say["plain"]


def _block(heading: str, language: str, code: str) -> Iterator[str]:
    yield f"{heading}\n\n```{language}\n{code}\n```\n"
