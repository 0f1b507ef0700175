import os
import signal
import subprocess
import sys
import time

import pytest
from stand_in import ANSWER, StandIn, stand_in

from assistant.settings import REPOSITORY

CHAT = REPOSITORY / "scripts" / "chat.py"


@pytest.fixture(scope="module")
def server():
    with stand_in() as standing:
        yield standing


def run_chat(*flags: str, typed: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, CHAT, *flags],
        input=typed,
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | environment,
    )


def test_one_message_prints_the_answer_alone(server: StandIn, tmp_path):
    done = run_chat("--model", server.url, "--message", "Who are you?", "--system", "be brief")
    assert (done.returncode, done.stdout) == (0, "".join(ANSWER) + "\n")
    assert server.heard == ["be brief", "Who are you?"]
    assert done.stderr.startswith("settings: ")


def test_the_model_is_taken_from_the_environment(server: StandIn):
    assert run_chat("--message", "hi", ASSISTANT_MODEL=server.url).stdout == "".join(ANSWER) + "\n"


def test_an_interactive_chat_remembers_until_cleared_and_ends_with_the_input(server: StandIn):
    done = run_chat("--model", server.url, typed="one\ntwo\n")
    assert done.returncode == 0 and done.stdout.count("".join(ANSWER)) == 2
    assert server.heard == ["one", "".join(ANSWER), "two"]
    run_chat("--model", server.url, typed="one\n/system be kind\ntwo\n/clear\nthree\n/quit\nfour\n")
    assert server.heard == ["be kind", "three"]


def test_an_error_in_a_chat_is_said_and_the_chat_goes_on(server: StandIn):
    done = run_chat("--model", server.url, typed="break\n/nonsense\nhello\n")
    assert done.returncode == 0 and "broke off" in done.stderr and "/nonsense" in done.stderr
    assert server.heard == ["hello"] and done.stdout.endswith("".join(ANSWER) + "\n> ")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--model", "http://127.0.0.1:9/v1#ada", "--message", "hi"), "cannot be reached"),
        (("--model", "no/such/folder", "--message", "hi"), "no/such/folder"),
        (("--message", " "), "--message is empty"),
        (("--message", "hi", "--top-p", "2"), "--top-p"),
    ],
)
def test_what_cannot_work_is_one_sentence_and_exit_code_2(flags, said):
    done = run_chat(*flags)
    *_, last = done.stderr.splitlines()
    assert done.returncode == 2 and last.startswith("error: ") and said in last
    assert "Traceback" not in done.stderr and done.stdout == ""


def test_ctrl_c_stops_the_answer_and_not_the_chat(server: StandIn):
    server.closed.clear()
    command = [sys.executable, CHAT, "--model", server.url]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a job in the background ignores Ctrl-C, and so would its children
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as chat:
        assert chat.stdin and chat.stdout
        chat.stdin.write("endless\n")
        chat.stdin.flush()
        while chat.stdout.read(1) != "w":
            pass
        chat.send_signal(signal.SIGINT)
        assert server.closed.wait(5)
        time.sleep(0.2)
        output, said = chat.communicate("hello\n/quit\n", timeout=20)
    assert chat.returncode == 0 and "stopped" in said
    assert "".join(ANSWER) in output and server.heard == ["hello"]
