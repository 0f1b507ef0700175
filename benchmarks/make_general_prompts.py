"""Rebuild the package-derived rows of data/general/{en,zh}.jsonl; rows of source "own" stay as they are.

Run: python benchmarks/make_general_prompts.py --doorcore D.whl --chitchat C.whl --chatterbot B.whl
"""

import json
import random
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile, ZipFile

import yaml

from assistant.conversations import check_messages, read_jsonl, user
from assistant.settings import DATA, run_command, write_text

Prompt = tuple[str, str]  # (text, source)

TOPICS = ("trivia", "coding", "computers", "science", "history", "literature", "money", "tech_support")
UNFIT = re.compile(  # offensive, private, out of date, another AI's name, or about a machine's own life
    r"suicide|testicle|hitler|murder|kill|crash|shot dead|stewardess|bathroom|assassinat|drunk|guns?\b|sex"
    r"|fuck|shit|damn|hell\b|stupid|suck|dumb|hate|\bdie|poop|obese|slave|jarvis|siri\b|alexa|\bhal\b|gpt"
    r"|illuminati|vineland|mind children|meaning of life|you earn|you charge|money do you|how much money"
    r"|you get",
    re.IGNORECASE,
)
SMALL_TALK = re.compile(
    r"\bif (i|you|it|they)\b|favou?rite|\bi love\b|\bi (would|will)\b|\bwould\b|\bwhat\b", re.IGNORECASE
)
ABOUT_THE_CHAT_OR_A_PERSON = re.compile(
    r"prompt|chat|human|person|robot|\bbot\b|computer|machine|intelligen|\bAI\b|any ?(one|body)|some ?one"
    r"|online|who is|name|are you|you think|about you|\byours?\b|\byou\?|messag|working|answer|question|phone"
    r"|catfish|what this is|know if you|kavanaugh|trump|zuckerberg|blacks|wife|husband|married|adam"
    r"|kyle|jared|byu|utah|friend|family|parents|sister|college|school",
    re.IGNORECASE,
)
# "you", "I", the package's own files and settings, a party
UNFIT_CHINESE = re.compile(
    "[\u4f60\u6211]|\u77e5\u8bc6\u5e93|\u7b11\u8bdd\u5e93|\u52a0\u7684\u5185\u5bb9|\u5171\u4ea7\u515a"
)
HAN_ONLY = re.compile("[\u4e00-\u9fff]{5,24}")


@dataclass(frozen=True)
class Settings:
    doorcore: Path
    """doorcore-0.2.3-py3-none-any.whl (MIT)."""
    chitchat: Path
    """chitchat_dataset-0.9.0-py3-none-any.whl (MIT)."""
    chatterbot: Path
    """chatterbot_corpus-1.3.3-py2.py3-none-any.whl (BSD)."""
    folder: Path = DATA / "general"
    rows: int = 750
    """Rows of each language, own rows counted."""
    small_talk: int = 30
    """Openings taken from the chitchat dataset at most."""
    alike: int = 36
    """Questions that may begin, or end, with the same two words (Chinese: characters)."""
    seed: int = 0


def read_member(wheel: Path, name: str) -> str:
    """The text of one file of a wheel; ValueError when the wheel or the file is missing."""
    try:
        return ZipFile(wheel).read(name).decode("utf-8-sig")
    except (OSError, BadZipFile, KeyError) as error:
        raise ValueError(f"{wheel}: cannot read {name} ({error}); give the wheel that --help names") from None


def doorcore_questions(wheel: Path) -> Iterator[Prompt]:
    for line in read_member(wheel, "doorcore/data/corpus/\u77e5\u8bc6\u5e93.txt").splitlines():
        question = line.split("===")[0].strip()
        if "===" in line and HAN_ONLY.fullmatch(question) and not UNFIT_CHINESE.search(question):
            yield question, "doorcore"


def chatterbot_questions(wheel: Path) -> Iterator[Prompt]:
    for topic in TOPICS:
        text = read_member(wheel, f"chatterbot_corpus/data/english/{topic}.yml")
        for question, *_ in yaml.safe_load(text)["conversations"]:
            if isinstance(question, str) and 2 <= len(question.split()) <= 25:
                yield " ".join(question.split()), "chatterbot"


def chitchat_openings(wheel: Path) -> Iterator[Prompt]:
    for conversation in json.loads(read_member(wheel, "chitchat_dataset/dataset.json")).values():
        text = " ".join(conversation["messages"][0][0]["text"].split()) if conversation["messages"] else ""
        fits = SMALL_TALK.search(text) and not ABOUT_THE_CHAT_OR_A_PERSON.search(text)
        if fits and 4 <= len(text.split()) <= 20:
            yield text, "chitchat"


def key(text: str) -> str:
    return re.sub(r"\W", "", text.casefold())


def shape(text: str) -> tuple[str, str]:
    """How a question begins and ends; characters stand for words where nothing is spaced."""
    words = list(text) if HAN_ONLY.fullmatch(text) else text.casefold().split()
    return "begins " + " ".join(words[:2]), "ends " + " ".join(words[-2:])


def pick(
    prompts: Iterable[Prompt], wanted: int, alike: int, taken: set[str], dice: random.Random
) -> list[Prompt]:
    """`wanted` prompts not in `taken` (which grows), few of one shape."""
    pool = sorted(set(prompts))
    dice.shuffle(pool)
    picked: list[Prompt] = []
    shapes: Counter[str] = Counter()
    for text, source in pool:
        full = any(shapes[part] >= alike for part in shape(text))
        if len(picked) == wanted or full or key(text) in taken or UNFIT.search(text):
            continue
        picked.append((text, source))
        taken.add(key(text))
        shapes.update(shape(text))
    return picked


def own_lines(path: Path) -> tuple[list[str], set[str]]:
    """The lines written for this project, and the keys of their last questions."""
    rows = [(place, row) for place, row in read_jsonl(path) if row["source"] == "own"]
    last = [
        check_messages(row["messages"], place, must_end_with="user")[-1]["content"] for place, row in rows
    ]
    return [json.dumps(row, ensure_ascii=False) for _, row in rows], {key(text) for text in last}


def write_language(path: Path, lines: list[str], prompts: list[Prompt]) -> None:
    rows = [{"messages": [user(text)], "lang": path.stem, "source": source} for text, source in prompts]
    write_text(path, "\n".join(lines + [json.dumps(row, ensure_ascii=False) for row in rows]) + "\n")
    print(f"{path}: {len(lines)} own, {dict(Counter(source for _, source in prompts))}", file=sys.stderr)


def main(settings: Settings) -> None:
    dice = random.Random(settings.seed)
    english, chinese = settings.folder / "en.jsonl", settings.folder / "zh.jsonl"
    lines, taken = own_lines(english)
    picked = pick(chitchat_openings(settings.chitchat), settings.small_talk, settings.alike, taken, dice)
    wanted = settings.rows - len(lines) - len(picked)
    picked += pick(chatterbot_questions(settings.chatterbot), wanted, settings.alike, taken, dice)
    write_language(english, lines, picked)
    lines, taken = own_lines(chinese)
    questions = doorcore_questions(settings.doorcore)
    picked = pick(questions, settings.rows - len(lines), settings.alike, taken, dice)
    write_language(chinese, lines, picked)


if __name__ == "__main__":
    run_command(main, Settings)
