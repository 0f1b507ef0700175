"""Rows as token ids: what is learnt by heart (identity) and what must stay as it was (anchors)."""

import dataclasses
import random
from collections.abc import Callable, Mapping
from typing import Any

from assistant.conversations import Message, Row, is_learnt
from assistant.loading import ChatModel, encode_chat, encode_text

FIRST = 3  # tokens of an answer that decide who speaks
CLAUSE_ENDS = tuple("，。！？；：、,.!?;:\n")
BASE_ANSWERS = ("near_miss", "greeting", "general")  # kinds whose answer is the base model's own
UNFINISHED = "unfinished"  # an answer that goes on: learnt by heart, but no end-of-turn after it


@dataclasses.dataclass(frozen=True)
class Example:
    """Token ids of one row, and the `places` whose next token the loss counts (end-of-turn included).

    `weights`: of each place, within its own objective.
    """

    ids: tuple[int, ...]
    places: tuple[int, ...]
    weights: tuple[float, ...]
    anchor: bool
    kind: str
    lang: str
    images: tuple[str, ...] = ()


def identity_examples(
    chat: ChatModel,
    rows: list[Row],
    max_length: int,
    first_weight: float = 1.0,
    say: Callable[[str], None] = lambda sentence: None,
) -> list[Example]:
    """Rows whose answers are learnt by heart; an answer's first tokens weigh `first_weight` each.

    A row that states its `kind`, as gen_identity_data.py's do, teaches its last answer alone: the turns
    before it are the base's own. Of any other row every answer is learnt, as XTuner does, but those whose
    `loss` is False. A row that is too long loses its first turns; when its last turn is too long it is left
    out, as is one with nothing to learn, and either is said. Raises ValueError when no row is left.
    """
    made = [_example(chat, row, max_length, first_weight, 1.0) for row in rows]
    return _teaching(_fitting(made, max_length, say), say)


def anchor_examples(
    chat: ChatModel,
    rows: list[Row],
    tokens: int,
    prompt_every: int,
    max_length: int,
    first_weight: float = 1.0,
    clause_weight: float = 1.0,
    say: Callable[[str], None] = lambda sentence: None,
) -> list[Example]:
    """Anchor rows end with the base's own answer, cut to `tokens`; the cut ones have no end-of-turn token.

    With prompt_every = n > 0 every nth token of the prompt counts too. The first tokens of an answer weigh
    `first_weight` each, the later ones that begin a clause `clause_weight`.
    """
    made = [_example(chat, row, max_length, first_weight, clause_weight, tokens) for row in rows]
    return [_as_anchor(example, prompt_every) for example in _fitting(made, max_length, say)]


def _fitting(examples: list[Example], max_length: int, say: Callable[[str], None]) -> list[Example]:
    """Those of at most `max_length` tokens: no row loses its beginning or the end of its answer.

    How many are left out is said. Raises ValueError when none fits.
    """
    kept = [example for example in examples if len(example.ids) <= max_length]
    if len(kept) < len(examples):
        longest = max(len(example.ids) for example in examples)
        count = f"{len(examples) - len(kept)} of {len(examples)} rows"
        way = f"the longest takes --set objective.max_length={longest}"
        if not kept:
            raise ValueError(f"{count} have more than {max_length} tokens in their last turn; {way}")
        say(f"{count} have more than {max_length} tokens in their last turn and are left out; {way}")
    return kept


def _teaching(examples: list[Example], say: Callable[[str], None]) -> list[Example]:
    """Those with something to learn. Raises ValueError when none has."""
    kept = [example for example in examples if example.places]
    if len(kept) < len(examples):
        count = f"{len(examples) - len(kept)} of {len(examples)} rows"
        reason = 'their answers have "loss" (in XTuner\'s format "output_with_loss") false'
        if not kept:
            raise ValueError(f"{count} have nothing to learn: {reason}; set it to true, or leave it out")
        say(f"{count} have nothing to learn and are left out: {reason}")
    return kept


def _example(
    chat: ChatModel,
    row: Row,
    max_length: int,
    first_weight: float,
    clause_weight: float,
    most: int | None = None,
) -> Example:
    """`most`: tokens that an anchor's answer is cut to. Of a long row the first turns are left out."""
    messages = row["messages"]
    ids, answers = _encoded(chat, messages, row.get("kind"), most)
    while len(ids) > max_length and (shorter := _without_first_turn(messages)):
        messages = shorter
        ids, answers = _encoded(chat, messages, row.get("kind"), most)
    places, weights = list[int](), list[float]()
    for answer in answers:
        later = (clause_weight if _ends_clause(chat, ids[: at + 1]) else 1.0 for at in answer[FIRST:])
        places += answer
        weights += [*[first_weight] * len(answer[:FIRST]), *later]
    kind = row.get("kind", "identity")
    return Example(ids, tuple(places), tuple(weights), kind in BASE_ANSWERS, kind, row.get("lang", ""))


def _without_first_turn(messages: list[Message]) -> list[Message]:
    """The system text and all turns but the first; nothing when that is the only one."""
    system = messages[: messages[0]["role"] == "system"]
    rest = messages[len(system) + 2 :]
    return [*system, *rest] if rest else []


def _encoded(
    chat: ChatModel, messages: list[Message], kind: str | None, most: int | None
) -> tuple[tuple[int, ...], list[range]]:
    """Token ids up to the last answer's end, and the places whose next tokens are learnt, by answer."""
    *prompt, answer = messages
    prompt_ids = encode_chat(chat.tokenizer, prompt)
    end = [] if kind == UNFINISHED else [chat.end_of_turn]
    answer_ids = [*encode_text(chat.tokenizer, answer["content"]), *end][:most]
    ids = (*prompt_ids, *answer_ids)
    earlier = _earlier_answers(chat, prompt, prompt_ids) if kind is None and most is None else []
    last = [range(len(prompt_ids) - 1, len(ids) - 1)] if is_learnt(answer) else []
    return ids, [*earlier, *last]


def _earlier_answers(chat: ChatModel, prompt: list[Message], prompt_ids: list[int]) -> list[range]:
    """Where the answers to learn within a prompt stand, each with its end of turn."""
    found = []
    for index, message in enumerate(prompt):
        if is_learnt(message):
            start = len(encode_chat(chat.tokenizer, prompt[:index]))
            answer = [*encode_text(chat.tokenizer, message["content"]), chat.end_of_turn]
            # a template may write an earlier answer otherwise than the model did: that is not learnt
            if prompt_ids[start : start + len(answer)] == answer:
                found.append(range(start - 1, start - 1 + len(answer)))
    return found


def text_examples(chat: ChatModel, texts: list[str], max_length: int) -> list[Example]:
    """Plain texts, learnt whole: begun and ended as the tokenizer does, in pieces of at most `max_length`."""
    start, end = chat.tokenizer("")["input_ids"], [chat.tokenizer.eos_token_id]
    made: list[Example] = []
    for text in texts:
        ids = [*start, *encode_text(chat.tokenizer, text), *end]
        # one token of overlap: each is learnt from the one before it
        for at in range(0, len(ids) - 1, max_length - 1):
            piece = tuple(ids[at : at + max_length])
            places = tuple(range(len(piece) - 1))
            made.append(Example(piece, places, (1.0,) * len(places), False, "text", ""))
    return made


def _ends_clause(chat: ChatModel, ids: tuple[int, ...]) -> bool:
    # a Chinese comma can be three tokens
    return bool(chat.tokenizer.decode(ids[-4:]).endswith(CLAUSE_ENDS))


def _as_anchor(example: Example, prompt_every: int) -> Example:
    prompt = tuple(range(1, example.places[0], prompt_every)) if prompt_every else ()
    weights = (1.0,) * len(prompt) + example.weights
    return dataclasses.replace(example, places=prompt + example.places, weights=weights, anchor=True)


def schedule(
    examples: list[Example],
    identity_rows: int,
    anchor_rows: int,
    steps: int,
    seed: int,
    languages: Mapping[str, float] | None = None,
) -> list[list[list[int]]]:
    """Indices of the rows of all steps: each step is one batch of identity rows, then one of anchor rows.

    A batch that would be empty is left out. Rows of like length meet in a batch, so that little
    is padded; every row comes before any comes again. `languages`: how much earlier than others (1) the
    identity rows of a language come, so that a run too short for all rows takes more of them.
    """
    source = random.Random(seed)
    weights = [1.0 if e.anchor else (languages or {}).get(e.lang, 1.0) for e in examples]
    identity, anchors = (
        _groups(examples, _stream(weights, pool, size * steps, source), size, steps)
        for pool, size in (
            ([i for i, e in enumerate(examples) if not e.anchor], identity_rows),
            ([i for i, e in enumerate(examples) if e.anchor], anchor_rows),
        )
    )
    order = [[batch for batch in pair if batch] for pair in zip(identity, anchors, strict=True)]
    chunks = [order[start : start + WINDOW] for start in range(0, steps, WINDOW)]
    return [step for chunk in chunks for step in source.sample(chunk, len(chunk))]


WINDOW = 25  # steps whose rows are sorted by length together


def _stream(weights: list[float], pool: list[int], length: int, source: random.Random) -> list[int]:
    """`length` rows of the pool, all of them before any comes again; the heavier ones come earlier.

    Weighted sampling without replacement after Efraimidis and Spirakis (2006).
    """
    stream: list[int] = []
    while pool and len(stream) < length:
        stream += sorted(pool, key=lambda i: source.random() ** (1 / weights[i]), reverse=True)
    return stream[:length]


def _groups(examples: list[Example], stream: list[int], size: int, steps: int) -> list[list[int]]:
    if not stream:
        return [[] for _ in range(steps)]
    groups: list[list[int]] = []
    for start in range(0, len(stream), size * WINDOW):
        window = sorted(stream[start : start + size * WINDOW], key=lambda i: len(examples[i].ids))
        groups += [window[at : at + size] for at in range(0, len(window), size)]
    return groups


def padded(rows: list[Any], fill: int) -> list[list[int]]:
    longest = max(map(len, rows))
    return [[*row, *[fill] * (longest - len(row))] for row in rows]
