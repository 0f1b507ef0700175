"""What Gradio's own clients ask at /chat, checked: a question, the talk so far, numbers. Knows no engine."""

import json
from typing import Any

from assistant.backends import Sampling
from assistant.conversations import Message, check_messages, images_of
from assistant.settings import one_line
from assistant.web import conversation, sampling_from
from assistant.web.asking import Refused, read_message
from assistant.web.exchange import MOST_TURNS

MOST_CHARACTERS = 1_000_000  # a request to /v1 has as many bytes


def read_talk(message: Any, history: Any, system_prompt: Any) -> list[Message]:
    """What a client of Gradio sends to /chat: one question, with the talk so far in any of its shapes.

    Questions that got no answer are left out, as on the page. Raises Refused.
    """
    earlier = [] if history is None else history
    if not isinstance(earlier, list) or len(earlier) > MOST_TURNS:
        raise Refused(f"history must be a list of at most {MOST_TURNS} messages")
    if len(json.dumps([message, earlier, system_prompt], ensure_ascii=False, default=str)) > MOST_CHARACTERS:
        raise Refused(f"the conversation is longer than {MOST_CHARACTERS} characters; send a shorter one")
    turns = [read_message(turn, f"history[{index}]") for index, turn in enumerate(earlier)]
    turns.append(read_message({"role": "user", "content": message}, "message"))
    if images_of(turns):
        raise Refused("pictures are not read here; leave them out of the history")
    prompts = [str(system_prompt or ""), *(turn["content"] for turn in turns if turn["role"] == "system")]
    spoken = [turn for turn in turns if turn["role"] != "system"]
    try:
        return check_messages(
            conversation(spoken, "\n\n".join(filter(None, prompts))), "history", must_end_with="user"
        )
    except ValueError as error:
        raise Refused(one_line(error)) from None


def read_sampling(temperature: Any, top_p: Any, max_new_tokens: Any) -> Sampling:
    """As sampling_from, of what may be no number. Raises Refused."""
    values = {"temperature": temperature, "top_p": top_p, "max_new_tokens": max_new_tokens}
    for key, value in values.items():
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise Refused(f"{key} must be a number", param=key)
    return sampling_from(temperature, top_p, max_new_tokens)
