"""A small OpenAI-compatible server for tests: it answers by script and remembers what it was asked."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ANSWER = ["I'm ", "Ada", "'s assist", "ant."]


class Handler(BaseHTTPRequestHandler):
    server: "StandIn"
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.server.fetched.append(self.path)
        self.reply(200, {"object": "list", "data": [{"id": "ada", "object": "model"}]})

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append(request)
        if self.headers["Authorization"] == "Bearer wrong":
            return self.reply(401, {"error": {"message": "bad key"}})
        if request["model"] not in ("ada", "base"):
            return self.reply(404, {"error": {"message": "no such model"}})
        question = request["messages"][-1]["content"]
        if not request.get("stream"):
            said = self.server.says or question[::-1]
            return self.reply(200, {"choices": [{"message": {"role": "assistant", "content": said}}]})
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            self.speak(question)
        except OSError:
            self.server.closed.set()

    def speak(self, question: str) -> None:
        if "silent" in question:
            self.connection.settimeout(20)
            self.server.closed.set() if not self.connection.recv(1) else None
        elif "endless" in question:
            for number in range(20_000):
                self.chunk(f"word{number} ")
                time.sleep(0.01)
        elif "break" in question:
            self.chunk("Half an ans")
            time.sleep(0.2)
            self.connection.shutdown(2)
        elif "markdown" in question:
            self.chunk("**bold** :red[red] \\(x^2\\) `:red[code]` from $5 to $10")
            self.chunk(f" ![p](http://127.0.0.1:{self.server.server_port}/secret.png)")
            self.chunk("\n\n$$y^2$$\n\n\\[z^2\\]\n\n```python\nprint('hi')\n```\n")
            self.done()
        else:
            for text in ANSWER:
                self.chunk(text)
                time.sleep(0.05)
                if "held" in question and not self.server.go_on.wait(10):
                    self.server.held_too_long = True
            self.done()

    def chunk(self, text: str) -> None:
        self.event(json.dumps({"id": "1", "choices": [{"index": 0, "delta": {"content": text}}]}))

    def done(self) -> None:
        usage = {"prompt_tokens": 9, "completion_tokens": len(ANSWER), "total_tokens": 9 + len(ANSWER)}
        self.event(json.dumps({"id": "1", "choices": [], "usage": usage}))
        self.event("[DONE]")
        self.wfile.write(b"0\r\n\r\n")

    def event(self, data: str) -> None:
        line = f"data: {data}\n\n".encode()
        self.wfile.write(b"%x\r\n%b\r\n" % (len(line), line))
        self.wfile.flush()

    def reply(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


class StandIn(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[dict[str, Any]] = []
        self.fetched: list[str] = []
        self.says = ""  # where it does not stream, instead of the question backwards
        self.closed = threading.Event()
        self.go_on = threading.Event()  # lets an answer that is "held" after its first piece go on
        self.held_too_long = False
        self.url = f"http://127.0.0.1:{self.server_port}/v1"

    @property
    def heard(self) -> list[str]:
        return [message["content"] for message in self.requests[-1]["messages"]]


@contextmanager
def stand_in() -> Iterator[StandIn]:
    server = StandIn()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
