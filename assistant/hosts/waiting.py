"""Waits as long as a busy host asks for, then goes on. Knows no host: it is told how to read the wait."""

import time
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")

TRIES = 6
LONGEST_S = 900  # the hosts count in windows of five minutes; a longer wait is said, not slept


def patiently(
    call: Callable[[], Result], wait_s: Callable[[Exception], float | None], say: Callable[[str], None]
) -> Result:
    """`call`, again after each refusal for which `wait_s` gives seconds. Other errors pass through.

    Raises the refusal itself after the last try or for a wait that is too long.
    """
    for attempt in range(1, TRIES + 1):
        try:
            return call()
        except Exception as error:
            seconds = wait_s(error)
            if seconds is None or seconds > LONGEST_S or attempt == TRIES:
                raise
            say(f"the host asks to wait {seconds:.0f} s (429); then it goes on")
        time.sleep(seconds)
    raise AssertionError("the last try returns or raises")
