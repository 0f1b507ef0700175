"""A stand-in of Hugging Face's API: real clients create, send large files, commit, and fetch a file."""

import base64
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKENS = {"hf_writer": "write", "hf_reader": "read", "ms-writer": "write"}
Refusal = tuple[int, dict[str, Any], dict[str, str]]


@dataclass
class Repo:
    sdk: str | None = None
    hardware: str | None = None
    private: bool = False
    variables: list[dict[str, str]] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)
    """Git's name of each file: of its content, or of the large file's pointer."""
    content: dict[str, bytes] = field(default_factory=dict)


@dataclass
class Hub:
    """What was sent, and how the stand-in misbehaves."""

    url: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    """Large files by sha256, kept though no commit names them yet."""
    asked: list[str] = field(default_factory=list)
    put: list[str] = field(default_factory=list)
    """sha256 of each large file that came whole."""
    authorizations: set[str | None] = field(default_factory=set)
    refusals: dict[str, list[Refusal]] = field(default_factory=dict)
    """By "METHOD /path's beginning": answers to give first."""
    stalls_at: str = ""
    """sha256 of a large file that is read by half, then never answered."""
    stalled: threading.Event = field(default_factory=threading.Event)

    def refuse(self, request: str, status: int, error: str = "refused", **headers: str) -> None:
        self.refusals.setdefault(request, []).append((status, {"error": error}, headers))


def pointer(content: bytes) -> bytes:
    digest = hashlib.sha256(content).hexdigest()
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{digest}\nsize {len(content)}\n".encode()


def git_name(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Handler(BaseHTTPRequestHandler):
    server: "Server"
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.serve()

    def do_HEAD(self) -> None:
        self.serve()

    def do_POST(self) -> None:
        self.serve()

    def do_PUT(self) -> None:
        self.serve()

    def serve(self) -> None:
        hub, path = self.server.hub, self.path.split("?")[0]
        hub.asked.append(f"{self.command} {path}")
        if self.command == "PUT":
            return self.take_large(path.rsplit("/", 1)[1])
        if "/resolve/" in path:
            return self.give(path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        hub.authorizations.add(self.headers.get("Authorization"))
        for request, refusals in hub.refusals.items():
            if f"{self.command} {path}".startswith(request) and refusals:
                status, answer, headers = refusals.pop(0)
                return self.answer(status, answer, headers)
        role = TOKENS.get((self.headers.get("Authorization") or "").removeprefix("Bearer "))
        if role is None:
            return self.answer(401, {"error": "Invalid username or password."})
        self.answer(*self.reply_to(path, body, role))

    def take_large(self, digest: str) -> None:
        hub, size = self.server.hub, int(self.headers["Content-Length"])
        if digest == hub.stalls_at:
            self.rfile.read(size // 2)
            hub.stalled.set()
            self.rfile.read(size - size // 2)  # until the client is killed
            time.sleep(30)
        content = self.rfile.read(size)
        assert hashlib.sha256(content).hexdigest() == digest
        hub.large[digest] = content
        hub.put.append(digest)
        self.answer(200, {})

    def give(self, path: str) -> None:
        """A file of a public model, as /OWNER/NAME/resolve/REVISION/FILE."""
        owner, name, _, _, file = path[1:].split("/", 4)
        content = self.server.hub.repos[f"models/{owner}/{name}"].content[file]
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", "1" * 40)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def reply_to(self, path: str, body: bytes, role: str) -> tuple[Any, ...]:
        hub = self.server.hub
        if path == "/api/whoami-v2":
            return 200, {"type": "user", "name": "ada", "auth": {"accessToken": {"role": role}}}
        if path == "/api/validate-yaml":
            return self.validate(json.loads(body))
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if path.endswith("/info/lfs/objects/batch"):
            return 200, {
                "transfer": "basic",
                "objects": [self.wanted(o) for o in json.loads(body)["objects"]],
            }
        kind, owner, name, *rest = path.removeprefix("/api/").split("/")
        key = f"{kind}/{owner}/{name}"
        if key not in hub.repos:
            return 404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"}
        repo = hub.repos[key]
        if rest[:1] == ["tree"]:
            return 200, [self.entry(path, content) for path, content in repo.content.items()]
        if not rest or rest[0] == "revision":
            runtime = {"stage": "RUNNING", "hardware": {"current": repo.hardware, "requested": repo.hardware}}
            return 200, {
                "id": f"{owner}/{name}", "sha": "0" * 40, "sdk": repo.sdk, "runtime": runtime, "siblings": []
            }  # fmt: skip
        if rest[0] == "hardware":
            repo.hardware = json.loads(body)["flavor"]
            return 200, {"stage": "BUILDING", "hardware": {"current": None, "requested": repo.hardware}}
        return self.preupload(repo, json.loads(body)) if rest[0] == "preupload" else self.commit(key, body)

    def entry(self, path: str, content: bytes) -> dict[str, Any]:
        return {"type": "file", "path": path, "size": len(content), "oid": git_name(content)}

    def validate(self, request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if "license: nonsense" in request["content"]:
            return 400, {"errors": [{"message": '"license" must be one of the known licences'}]}
        return 200, {"warnings": []}

    def create(self, request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        kind = request.get("type", "model") + "s"
        name = f"{request['organization'] or 'ada'}/{request['name']}"
        url = f"{self.server.hub.url}/{'spaces/' if kind == 'spaces' else ''}{name}"
        if f"{kind}/{name}" in self.server.hub.repos:
            return 409, {"error": "You already created this repo", "url": url}
        private = request.get("visibility") == "private"
        variables = request.get("variables", [])
        self.server.hub.repos[f"{kind}/{name}"] = Repo(
            request.get("sdk"), request.get("hardware"), private, variables
        )
        return 200, {"url": url, "name": name}

    def wanted(self, entry: dict[str, Any]) -> dict[str, Any]:
        """What the large-file protocol answers: where to put it, or nothing when it is there."""
        hub = self.server.hub
        if entry["oid"] in hub.large:
            return entry
        return {**entry, "actions": {"upload": {"href": f"{hub.url}/large/{entry['oid']}"}}}

    def preupload(self, repo: Repo, request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        def mode(entry: dict[str, Any]) -> str:
            is_binary = b"\0" in base64.b64decode(entry["sample"])
            return "lfs" if is_binary or entry["size"] > 10 * 2**20 else "regular"

        files = [
            {
                "path": entry["path"],
                "uploadMode": mode(entry),
                "shouldIgnore": False,
                "oid": repo.files.get(entry["path"]),
            }
            for entry in request["files"]
        ]
        return 200, {"files": files}

    def commit(self, key: str, body: bytes) -> tuple[int, dict[str, Any]]:
        repo, link = self.server.hub.repos[key], f"{self.server.hub.url}/{key.removeprefix('models/')}"
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "lfsFile":
                content = self.server.hub.large[value["oid"]]
                repo.files[value["path"]] = hashlib.sha256(content).hexdigest()
            elif line["key"] == "file":
                content = base64.b64decode(value["content"])
                repo.files[value["path"]] = git_name(content)
            else:
                continue
            repo.content[value["path"]] = content
        return 200, {"commitUrl": f"{link}/commit/{'1' * 40}", "commitOid": "1" * 40, "success": True}

    def answer(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


class Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, hub: Hub, handler: type[Handler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.hub = hub
        hub.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_: Any) -> None:
        """A killed client is part of the tests."""


@contextmanager
def hub_stand_in(handler: type[Handler] = Handler) -> Iterator[Hub]:
    server = Server(Hub(), handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield server.hub
    finally:
        server.shutdown()
        server.server_close()
