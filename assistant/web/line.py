"""How many may wait for the engine, and how often one client may ask. Knows no framework and no model."""

import ipaddress
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

MOST_WAITING = 64
FULL_RETRY_S = 10
MINUTE_S = 60.0
MOST_CLIENTS = 10_000  # remembered at once; a client that asked nothing for a minute is forgotten first


class Busy(RuntimeError):
    """Not now: the line is `full`, or this client asked too `often`. Ask again after `retry_s` seconds."""

    def __init__(self, kind: Literal["full", "often"], retry_s: int) -> None:
        sentence = {
            "full": f"too many people are waiting; ask again in {retry_s} seconds",
            "often": f"too many questions in one minute; ask again in {retry_s} seconds",
        }
        super().__init__(sentence[kind])
        self.kind, self.retry_s = kind, retry_s


class Line:
    """At most `most_waiting` behind the answer that is written, and `per_minute` questions of one client.

    0 questions a minute means no limit; a client on this machine has none either, and nor has a trusted
    one of `proxies`, addresses and networks: what a proxy does not say whom it asks for is of many visitors.
    """

    def __init__(
        self,
        most_waiting: int = MOST_WAITING,
        per_minute: int = 0,
        now: Callable[[], float] = time.monotonic,
        proxies: Sequence[str] = (),
    ) -> None:
        self.most_waiting, self.per_minute, self.proxies = most_waiting, per_minute, proxies
        self._now, self._lock = now, threading.Lock()
        self._inside = 0
        self._asked: dict[str, deque[float]] = {}

    @contextmanager
    def enter(self, client: str = "") -> Iterator[None]:
        """A place until the block ends. Raises Busy when there is none."""
        with self._lock:
            if self._inside > self.most_waiting:
                raise Busy("full", FULL_RETRY_S)
            self._note(client)
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1

    def _note(self, client: str) -> None:
        """Raises Busy when `client` asked `per_minute` times within the last minute."""
        if not self.per_minute or not client or is_loopback(client) or is_one_of(client, self.proxies):
            return
        now = self._now()
        times = self._asked.setdefault(network_of(client), deque())
        while times and now - times[0] >= MINUTE_S:
            times.popleft()
        if len(times) >= self.per_minute:
            raise Busy("often", int(MINUTE_S - (now - times[0])) + 1)
        times.append(now)
        if len(self._asked) > MOST_CLIENTS:
            self._forget(now)

    def _forget(self, now: float) -> None:
        kept = {name: times for name, times in self._asked.items() if now - times[-1] < MINUTE_S}
        self._asked = dict(list(kept.items())[-MOST_CLIENTS:])


def is_loopback(address: str) -> bool:
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address == "localhost"
    mapped = getattr(found, "ipv4_mapped", None)
    return bool((mapped or found).is_loopback)


def is_one_of(address: str, networks: Iterable[str]) -> bool:
    """Whether an address is one of these, or in one of these networks; what is neither counts for nothing."""
    return any(address == network or _is_in(address, network) for network in networks)


def _is_in(address: str, network: str) -> bool:
    try:
        return ipaddress.ip_address(address) in ipaddress.ip_network(network, strict=False)
    except ValueError:
        return False


def network_of(address: str) -> str:
    """Who counts as one client: an IPv4 address, or the /64 that a household gets of IPv6."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address
    if found.version == 4 or getattr(found, "ipv4_mapped", None):
        return str(getattr(found, "ipv4_mapped", None) or found)
    return str(ipaddress.ip_network(f"{found}/64", strict=False))
