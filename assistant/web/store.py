"""Conversations and votes on this machine's disk, each browser's own. Knows no framework and no model."""

import hashlib
import json
import os
import secrets
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

Winner = Literal["left", "right", "tie"]
MOST_CHATS = 300  # per browser
LONGEST_CHAT = 4_000_000  # characters, as JSON
MOST_OF_ONE = 50_000_000  # bytes of one browser's conversations
MOST_BYTES = 2_000_000_000  # of the whole file
LONGEST_TITLE = 60
READ = "SELECT id, title, system_prompt, turns FROM chat WHERE owner=? AND id=?"
TABLES = """
CREATE TABLE IF NOT EXISTS chat (
  owner TEXT NOT NULL, id TEXT NOT NULL, title TEXT NOT NULL, system_prompt TEXT NOT NULL,
  turns TEXT NOT NULL, changed REAL NOT NULL, PRIMARY KEY (owner, id));
CREATE TABLE IF NOT EXISTS vote (
  owner TEXT NOT NULL, question TEXT NOT NULL, left_model TEXT NOT NULL, right_model TEXT NOT NULL,
  winner TEXT NOT NULL, at REAL NOT NULL);
"""


class Turn(TypedDict):
    """A message and what stands beside it: a note, the figures of an answer, a person's verdict."""

    role: Literal["user", "assistant"]
    content: str
    note: NotRequired[str]
    failed: NotRequired[bool]
    figures: NotRequired[dict[str, float]]
    model: NotRequired[str]
    liked: NotRequired[bool]
    comment: NotRequired[str]


@dataclass
class Chat:
    id: str = field(default_factory=lambda: secrets.token_urlsafe(9))
    title: str = ""
    system_prompt: str = ""
    turns: list[Turn] = field(default_factory=list)


class Store:
    """One SQLite file. A browser is named by a secret that only it holds; the file keeps just its hash."""

    def __init__(self, path: Path | None) -> None:
        """Raises RuntimeError when the file cannot be made; None keeps all in memory."""
        self._lock = threading.Lock()
        try:
            self._connection = _connect(path)
        except (OSError, sqlite3.Error) as error:
            raise RuntimeError(f"{path} cannot hold the chats ({error}); set ASSISTANT_DATA") from None

    def save(self, browser: str, chat: Chat) -> None:
        """Keep the conversation as it is now, named after its first question unless it has a title.

        Raises ValueError for one that is too long, or one more than a browser may keep, or no browser.
        """
        if not browser:
            raise ValueError("this page has not found its browser yet; reload it")
        chat.title = chat.title or first_line(chat.turns)
        turns = _written(chat.turns)
        row = (chat.title, chat.system_prompt, turns, time.time(), _hash(browser), chat.id)
        with self._transaction() as cursor:
            _check_bytes(cursor, _hash(browser), chat.id, len(turns.encode()))
            cursor.execute(
                "UPDATE chat SET title=?, system_prompt=?, turns=?, changed=? WHERE owner=? AND id=?", row
            )
            if not cursor.rowcount:
                _check_room(cursor, _hash(browser))
                cursor.execute(
                    "INSERT INTO chat (title, system_prompt, turns, changed, owner, id) VALUES (?,?,?,?,?,?)",
                    row,
                )

    def load(self, browser: str, id: str) -> Chat | None:
        """The browser's own conversation of that id; None when it has none."""
        return next(map(_read, self._rows(READ, _hash(browser), id)), None)

    def change(self, browser: str, id: str, how: Callable[[Chat], object]) -> Chat | None:
        """The kept conversation after `how` changed its turns, with nobody else between reading and writing.

        Its title stays; what was deleted is not kept again: None. Raises ValueError when it gets too long.
        """
        with self._transaction() as cursor:
            cursor.execute("BEGIN IMMEDIATE")
            found = cursor.execute(READ, (_hash(browser), id)).fetchone()
            if not found:
                return None
            how(chat := _read(found))
            row = (_written(chat.turns), time.time(), _hash(browser), id)
            cursor.execute("UPDATE chat SET turns=?, changed=? WHERE owner=? AND id=?", row)
        return chat

    def titles(self, browser: str) -> list[tuple[str, str]]:
        """(title, id) of the browser's conversations, the last changed first."""
        return self._rows("SELECT title, id FROM chat WHERE owner=? ORDER BY changed DESC", _hash(browser))

    def rename(self, browser: str, id: str, title: str) -> None:
        title = " ".join(title.split())[:LONGEST_TITLE]
        if title:
            with self._transaction() as cursor:
                cursor.execute("UPDATE chat SET title=? WHERE owner=? AND id=?", (title, _hash(browser), id))

    def delete(self, browser: str, id: str) -> None:
        with self._transaction() as cursor:
            cursor.execute("DELETE FROM chat WHERE owner=? AND id=?", (_hash(browser), id))
        self.wipe()

    def wipe(self) -> None:
        """Empty the log beside the file: what was deleted or overwritten stands there until then."""
        self._rows("PRAGMA wal_checkpoint(TRUNCATE)")

    def vote(self, browser: str, question: str, left: str, right: str, winner: Winner) -> None:
        row = (_hash(browser), question, left, right, winner, time.time())
        with self._transaction() as cursor:
            _check_file(cursor)
            cursor.execute("INSERT INTO vote VALUES (?,?,?,?,?,?)", row)

    def tally(self, one: str, other: str) -> tuple[int, int, int]:
        """How often `one` won, `other` won, and neither did, whichever side they stood on."""
        wins = {one: 0, other: 0, "": 0}
        for left, right, winner in self._rows("SELECT left_model, right_model, winner FROM vote"):
            if {left, right} == {one, other}:
                wins[{"left": left, "right": right}.get(winner, "")] += 1
        return wins[one], wins[other], wins[""]

    def close(self) -> None:
        self._connection.close()

    def _rows(self, query: str, *values: str) -> list[Any]:
        with self._lock, closing(self._connection.execute(query, values)) as cursor:
            return cursor.fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Cursor]:
        with self._lock, self._connection, closing(self._connection.cursor()) as cursor:
            yield cursor


@cache
def the_store() -> Store:
    """The one store of this process; when the disk takes none, one in memory, and the terminal says so."""
    path = data_folder() / "chats.sqlite"
    try:
        return Store(path)
    except RuntimeError as error:
        print(f"note: {error}; chats are kept only until this program ends", file=sys.stderr)
        return Store(None)


def data_folder() -> Path:
    """ASSISTANT_DATA, else where this system keeps a user's data."""
    if named := os.environ.get("ASSISTANT_DATA", "").strip():
        return Path(named)
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Application Support"
    else:
        base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(base) / "little-assistant"


def new_browser() -> str:
    """A secret that nobody guesses: 192 bits."""
    return secrets.token_urlsafe(24)


def first_line(turns: list[Turn]) -> str:
    """The title a conversation gets by itself: its first question, shortened."""
    text = " ".join(next((turn["content"] for turn in turns if turn["role"] == "user"), "").split())
    return text if len(text) <= LONGEST_TITLE else text[: LONGEST_TITLE - 1].rstrip() + "…"


def _read(row: tuple[str, str, str, str]) -> Chat:
    id, title, system_prompt, turns = row
    return Chat(id, title, system_prompt, json.loads(turns))


def _written(turns: list[Turn]) -> str:
    text = json.dumps(turns, ensure_ascii=False)
    if len(text) > LONGEST_CHAT:
        raise ValueError("this conversation is too long to be kept; begin a new one")
    return text


def _check_bytes(cursor: sqlite3.Cursor, owner: str, id: str, size: int) -> None:
    others = "SELECT total(length(CAST(turns AS BLOB))) FROM chat WHERE owner=? AND id<>?"
    (kept,) = cursor.execute(others, (owner, id)).fetchone()
    if kept + size > MOST_OF_ONE:
        raise ValueError(
            f"this browser's conversations fill the {MOST_OF_ONE // 1_000_000} MB that are kept for it; "
            "delete some first"
        )
    _check_file(cursor)


def _check_file(cursor: sqlite3.Cursor) -> None:
    count = "SELECT (page_count - freelist_count) * page_size FROM {}"
    tables = "pragma_page_count(), pragma_freelist_count(), pragma_page_size()"
    (size,) = cursor.execute(count.format(tables)).fetchone()
    if size > MOST_BYTES:
        raise ValueError(
            f"this server keeps {MOST_BYTES // 1_000_000} MB of conversations and no more; delete some of "
            "yours, or ask who runs it for room"
        )


def _check_room(cursor: sqlite3.Cursor, owner: str) -> None:
    (count,) = cursor.execute("SELECT count(*) FROM chat WHERE owner=?", (owner,)).fetchone()
    if count >= MOST_CHATS:
        raise ValueError(f"{MOST_CHATS} conversations are kept already; delete one first")


def _connect(path: Path | None) -> sqlite3.Connection:
    if path:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    connection = sqlite3.connect(path or ":memory:", check_same_thread=False, timeout=10)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
    connection.execute("PRAGMA secure_delete=ON")
    connection.executescript(TABLES)
    return connection


def _hash(browser: str) -> str:
    return hashlib.sha256(browser.encode()).hexdigest()
