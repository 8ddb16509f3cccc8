"""Proposers against a server and a folder that misbehave in every way that was thought of."""

from __future__ import annotations

import builtins
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import chat
from autoprune.errors import AutopruneError
from autoprune.search.proposers.exchange import MAX_BYTES, Exchange
from autoprune.search.proposers.openai import MAX_CHARACTERS, THREADS, OpenAI
from autoprune.search.protocol import Answer, Request
from chat import ChatHandler, ChatServer

KEY = "sk-proj-Zq3tWv9LmB4xNc7RkYd2PfGh8sJu5aTe"
PROGRAM = "def score(weight):\n    return abs(weight)\n"


def request(step: int = 1, prompt: str = "improve", **settings: Any) -> Request:
    return Request(step=step, round=0, operator="mutate", parents=(), prompt=prompt, seed=2**40 + step, **settings)


# ---------------------------------------------------------------- OpenAI: a server of chat completions


class Server(ChatServer):
    """Replies with `reply(handler, question)`, which writes all of it itself, and keeps what it was asked."""

    block_on_close = False

    def __init__(self, reply: Callable[[Handler, dict[str, Any]], None]):
        super().__init__(Handler)
        self.reply, self.questions, self.keys = reply, list[dict[str, Any]](), list[str | None]()


class Handler(ChatHandler):
    server: Server  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_POST(self) -> None:
        question = self.question()
        self.server.questions.append(question)
        self.server.keys.append(self.headers["authorization"])
        self.server.reply(self, question)


def completion(content: Any = PROGRAM, usage: Any = None, **choice: Any) -> dict[str, Any]:
    return chat.completion(content, usage, **choice)


def failure(message: str, **more: Any) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None, **more}}


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    """Starts servers, each replying in turn with the functions or JSON values given; the last one again and again."""
    servers: list[Server] = []

    def start(*replies: Any) -> Server:
        turns = list(replies)

        def reply(handler: Handler, question: dict[str, Any]) -> None:
            turn = turns.pop(0) if len(turns) > 1 else turns[0]
            turn(handler, question) if callable(turn) else handler.send(turn)

        server = Server(reply)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., OpenAI]]:
    """Makes proposers that know KEY; retries follow at once, unless the server says how long to wait."""
    base_client = pytest.importorskip("openai")._base_client
    monkeypatch.setattr(base_client, "INITIAL_RETRY_DELAY", 0.001)
    monkeypatch.setattr("autoprune.search.proposers.openai._PAUSE_S", 0.001)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    proposers: list[OpenAI] = []

    def make(server: Server | str, **settings: Any) -> OpenAI:
        url = server if isinstance(server, str) else server.url
        proposers.append(OpenAI("m", base_url=url, **{"timeout_s": 5.0, "retries": 2} | settings))
        return proposers[-1]

    yield make
    for thread in threading.enumerate():  # connections under way are closed by those who made them
        if thread.name == THREADS:
            thread.join(5)
    for proposer in proposers:
        proposer.close()


def ask(proposer: OpenAI, **settings: Any) -> Answer:
    ((_, answer),) = proposer.propose([request(**settings)])
    return answer


def fails(status: int, message: str = "no", **more: Any) -> Callable[[Handler, Any], None]:
    return lambda handler, question: handler.send(failure(message, **more), status)


def pieces(text: str, length: int) -> set[str]:
    return {text[start : start + length] for start in range(len(text) - length + 1)}


def test_a_text_comes_back_with_what_it_cost(serve: Callable[..., Server], connect: Callable[..., OpenAI]):
    server = serve(completion())
    answer = ask(connect(server, usd_per_million_in=2.0, usd_per_million_out=10.0, max_tokens=50, temperature=0.5))
    assert (answer.text, answer.error, answer.model) == (PROGRAM, "", "m")
    assert (answer.tokens_in, answer.tokens_out, answer.price_usd) == (100, 20, pytest.approx(4e-4))
    assert answer.seconds > 0
    (question,) = server.questions
    assert question["messages"] == [{"role": "user", "content": "improve"}]
    assert (question["model"], question["max_tokens"], question["temperature"]) == ("m", 50, 0.5)
    assert question["seed"] == (2**40 + 1) % 2**31
    assert server.keys == [f"Bearer {KEY}"]


def test_what_the_server_says_it_cost_counts_first(serve: Callable[..., Server], connect: Callable[..., OpenAI]):
    server = serve(completion(usage={"prompt_tokens": 1, "completion_tokens": 1, "cost": 0.25}))
    assert ask(connect(server, usd_per_million_in=1.0, usd_per_million_out=1.0)).price_usd == 0.25


@pytest.mark.parametrize("usage", [[], "x", {"prompt_tokens": True, "cost": "free"}, {"cost": -1}, {"cost": 1e400}])
def test_no_price_where_none_is_known(serve: Callable[..., Server], connect: Callable[..., OpenAI], usage: Any):
    answer = ask(connect(serve(completion(usage=usage))))
    assert (answer.text, answer.tokens_in, answer.price_usd) == (PROGRAM, None, None)


def test_servers_that_fail_are_asked_again(serve: Callable[..., Server], connect: Callable[..., OpenAI]):
    server = serve(fails(500), fails(503), completion())
    assert ask(connect(server)).text == PROGRAM
    assert len(server.questions) == 3


def test_retry_after_is_kept_to(serve: Callable[..., Server], connect: Callable[..., OpenAI]):
    def busy(handler: Handler, question: Any) -> None:
        handler.send(failure("slow down"), 429, retry_after="1")

    answer = ask(connect(serve(busy, completion())))
    assert answer.text == PROGRAM
    assert answer.seconds >= 1


def test_connections_that_break_are_made_again(serve: Callable[..., Server], connect: Callable[..., OpenAI]):
    def hang_up(handler: Handler, question: Any) -> None:
        handler.close_connection = True

    assert ask(connect(serve(hang_up, completion()))).text == PROGRAM


def test_a_server_that_is_out_ends_the_search_instead_of_its_steps(
    serve: Callable[..., Server], connect: Callable[..., OpenAI]
):
    proposer = connect(serve(completion(), fails(503, "overloaded")), concurrency=1)
    answers = proposer.propose([request(step) for step in range(5)])
    assert next(answers)[1].text == PROGRAM
    with pytest.raises(AutopruneError, match=r"3 requests in a row .* error 503: overloaded") as caught:
        next(answers)
    assert "goes on where it was" in caught.value.remedy


def test_two_failures_are_answers_once_others_have_come(serve: Callable[..., Server], connect: Callable[..., OpenAI]):
    proposer = connect(serve(*[fails(503)] * 2, completion(), *[fails(400)] * 5), concurrency=1, retries=0)
    answers = {asked.step: answer for asked, answer in proposer.propose([request(step) for step in range(8)])}
    assert [bool(answers[step].error) for step in range(8)] == [True, True, False, *[True] * 5]


def test_a_reply_that_breaks_off_is_asked_for_again(serve: Callable[..., Server], connect: Callable[..., OpenAI]):
    nonsense = lambda handler, question: handler.send(b"<html>bad gateway</html>")  # noqa: E731
    assert ask(connect(serve(broken, nonsense, completion()))).text == PROGRAM


def endless(handler: Handler, question: Any) -> None:
    handler.send_response(200)
    handler.end_headers()
    try:
        for _ in range(1000):
            handler.wfile.write(b" ")
            time.sleep(0.02)
    except OSError:
        pass  # the client hung up, as it should
    handler.close_connection = True


def broken(handler: Handler, question: Any) -> None:
    handler.send_response(200)
    handler.send_header("content-length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [')
    handler.close_connection = True


def broken_gzip(handler: Handler, question: Any) -> None:
    handler.send(b"this is not gzip", content_encoding="gzip")


def parts(*texts: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text} for text in texts]


BAD_REPLIES = [
    (lambda handler, question: handler.send(b"<html>bad gateway</html>", 502), "error 502: <html>bad gateway"),
    (lambda handler, question: handler.send(b"\xff\xfe\x00", 500), "error 500"),
    (fails(500, "out\nof\x1b[31m memory"), "error 500: out of [31m memory"),
    (fails(400, "context length exceeded"), "error 400: context length exceeded"),
    (lambda handler, question: handler.send(b'{"a":' * 993 + b"1" + b"}" * 993, 400), 'error 400: {"a":{"a":'),
    (fails(500, "a-" * 5_000_000), "error 500: a-a-"),
    (lambda handler, question: handler.send({"error": "no such thing"}, 400), 'error 400: {"error": "no such thing"}'),
    (lambda handler, question: handler.send({"detail": "prompt too long"}, 422), "error 422: prompt too long"),
    (lambda handler, question: handler.send(b'{"choices": [{"mess'), 'the reply is not JSON: {"choices": [{"mess'),
    (lambda handler, question: handler.send(b""), "the reply is not JSON"),
    (lambda handler, question: handler.send(b"[" * 100_000), "the reply is not JSON"),
    (lambda handler, question: handler.send(b"\xff\xfe{}"), "the reply is not JSON"),
    (lambda handler, question: handler.send(b" " * 33_000_000), "the reply has more than 32 MB"),
    (broken, "the reply broke off"),
    (broken_gzip, "the reply broke off"),
    (failure("upstream is gone"), "the server says: upstream is gone"),
    ([], "the reply has no text"),
    (None, "the reply has no text"),
    ({"choices": []}, "the reply has no text"),
    ({"choices": None}, "the reply has no text"),
    ({"choices": [{"message": None}]}, "the reply has no text"),
    (completion(None), "the reply has no text"),
    (completion(" \n"), "the reply has no text"),
    (completion(7), "the reply has no text"),
    (completion([1, None, {"text": 3}, {}]), "the reply has no text"),
    (completion(None, message={"content": None, "refusal": "I will not"}), "the model refuses: I will not"),
    (completion("", finish_reason="length"), "raise max_tokens"),
]


@pytest.mark.parametrize(
    ("reply", "error"), BAD_REPLIES, ids=[f"{n} {error}" for n, (_, error) in enumerate(BAD_REPLIES)]
)
def test_bad_replies_are_answers_with_an_error(
    serve: Callable[..., Server], connect: Callable[..., OpenAI], reply: Any, error: str
):
    proposer = connect(serve(reply, reply, reply, completion()), retries=0)
    answer = ask(proposer)
    assert error in answer.error
    assert (answer.text, len(answer.error.splitlines())) == ("", 1)
    assert answer.error.isprintable()


def test_tokens_count_that_were_paid_for_nothing(serve: Callable[..., Server], connect: Callable[..., OpenAI]):
    answer = ask(connect(serve(completion(None)), usd_per_million_in=1.0, usd_per_million_out=1.0))
    assert (answer.tokens_in, answer.tokens_out, answer.price_usd) == (100, 20, pytest.approx(1.2e-4))


@pytest.mark.parametrize("reply", [lambda handler, question: time.sleep(2), endless], ids=["silent", "endless"])
def test_waiting_ends(serve: Callable[..., Server], connect: Callable[..., OpenAI], reply: Any):
    start = time.monotonic()
    answer = ask(connect(serve(reply), timeout_s=0.2, retries=0))
    assert (answer.text, "within 0.2 s" in answer.error) == ("", True)
    assert time.monotonic() - start < 1.5


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("a" * 10_000_000, "a" * MAX_CHARACTERS),
        ("é\ud800x\udfff", "é?x?"),
        ("\U0001f600", "\U0001f600"),
        (parts("def ", "score"), "def score"),
        ("a\x00b", "a\x00b"),
    ],
    ids=["10 MB", "halves of surrogates", "a pair of surrogates", "in parts", "NUL"],
)
def test_odd_texts_come_back_sound(
    serve: Callable[..., Server], connect: Callable[..., OpenAI], content: Any, text: str
):
    answer = ask(connect(serve(completion(content))))
    assert answer.text == text
    answer.text.encode()


def test_bytes_that_are_no_utf8_are_replaced(serve: Callable[..., Server], connect: Callable[..., OpenAI]):
    body = json.dumps(completion("a@@b")).encode().replace(b"@@", b"\xff\xc3")
    answer = ask(connect(serve(lambda handler, question: handler.send(body))))
    assert answer.text == "a��b"


def test_prompts_with_halves_of_surrogates_are_sent(serve: Callable[..., Server], connect: Callable[..., OpenAI]):
    server = serve(completion())
    assert ask(connect(server), prompt="a\ud800b").text == PROGRAM
    assert server.questions[0]["messages"][0]["content"] == "a?b"


def picky(*unknown: str, pydantic: bool = False) -> Callable[[Handler, Any], None]:
    """A server that refuses some settings, one complaint at a time."""

    def reply(handler: Handler, question: dict[str, Any]) -> None:
        refused = next((name for name in unknown if name in question), "")
        if refused and pydantic:
            detail = [{"type": "extra_forbidden", "loc": ["body", refused], "input": question[refused]}]
            handler.send({"detail": detail}, 422)
        elif refused == "max_tokens":
            message = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
            handler.send(failure(message, param=refused), 400)
        elif refused:
            handler.send(failure(f"unknown field {refused}"), 400)
        else:
            handler.send(completion())

    return reply


@pytest.mark.parametrize("pydantic", [True, False])
def test_settings_that_the_server_refuses_are_left_out_from_then_on(
    serve: Callable[..., Server], connect: Callable[..., OpenAI], pydantic: bool
):
    server = serve(picky("seed", "max_tokens", pydantic=pydantic))
    proposer = connect(server)
    assert [ask(proposer).text, ask(proposer).text] == [PROGRAM] * 2
    assert ["max_completion_tokens" in question for question in server.questions] == [False, False, True, True]
    assert [set(question) for question in server.questions[2:]] == [{"model", "messages", "max_completion_tokens"}] * 2


def test_a_temperature_is_not_left_out_silently(serve: Callable[..., Server], connect: Callable[..., OpenAI]):
    proposer = connect(serve(picky("temperature")), temperature=0.3)
    with pytest.warns(UserWarning, match="refuses temperature"):
        assert ask(proposer).text == PROGRAM
    assert ask(proposer).text == PROGRAM


def test_replies_are_never_unbounded(serve: Callable[..., Server], connect: Callable[..., OpenAI]):
    server = serve(picky("max_tokens", "max_completion_tokens"))
    assert "max_completion_tokens" in ask(connect(server)).error
    assert all({"max_tokens", "max_completion_tokens"} & set(question) for question in server.questions)


UNSURVIVABLE = [
    (401, {}, f"Incorrect API key provided: {KEY}", "OPENAI_API_KEY"),
    (402, {}, "Insufficient Balance", "credit"),
    (403, {}, "region", "key"),
    (404, {}, "The model `m` does not exist", "model name 'm'"),
    (404, {"code": "model_not_found"}, "no", "model name 'm'"),
    (400, {}, "m is not a valid model ID; the model is not found", "model name 'm'"),
    (400, {}, "Server is pinned to 'other'; requested 'm'.", "model name 'm'"),
    (429, {"code": "insufficient_quota"}, "You exceeded your quota", "credit"),
]


@pytest.mark.parametrize(("status", "more", "message", "remedy"), UNSURVIVABLE)
def test_what_no_request_survives_ends_the_run(
    serve: Callable[..., Server], connect: Callable[..., OpenAI], status: int, more: Any, message: str, remedy: str
):
    proposer = connect(serve(fails(status, message, **more)), retries=0)
    with pytest.raises(AutopruneError) as caught:
        list(proposer.propose([request(step) for step in range(8)]))
    assert remedy in caught.value.remedy
    assert len(str(caught.value).splitlines()) == 1
    assert (caught.value.__cause__, caught.value.__context__) == (None, None)


@pytest.mark.parametrize("status", [400, 403, 404])
def test_what_has_worked_may_work_again(serve: Callable[..., Server], connect: Callable[..., OpenAI], status: int):
    proposer = connect(serve(completion(), fails(status, "the model is not found"), completion()))
    answers = [ask(proposer) for _ in range(3)]
    assert [answer.text for answer in answers] == [PROGRAM, "", PROGRAM]
    assert answers[1].error.startswith(f"error {status}")


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/v1", "http://user:geheim@nowhere.invalid/v1?token=geheim"])
def test_no_server_at_first_contact_ends_the_run(connect: Callable[..., OpenAI], url: str):
    with pytest.raises(AutopruneError, match=r"no connection .*; check the base URL") as caught:
        ask(connect(url, retries=1))
    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize(("status", "body"), [(200, completion()), (500, failure("no"))])
def test_a_server_that_goes_away_later_does_not_end_the_run(
    serve: Callable[..., Server], connect: Callable[..., OpenAI], status: int, body: Any
):
    server = serve(lambda handler, question: handler.send(body, status, connection="close"))
    proposer = connect(server, retries=0)
    assert "no connection" not in ask(proposer).error
    server.shutdown()
    server.server_close()
    assert "no connection" in ask(proposer).error


ECHOES = {
    "whole": KEY,
    "front": f"{KEY[:14]}",
    "tail": f"...{KEY[-12:]}",
    "masked": f"{KEY[:8]}******{KEY[-4:]}",
    "dotted": f"sk-{KEY[3:6]}...{KEY[-4:]}",
    "header": f"authorization: Bearer {KEY}",
    "cut by the limit of a line": "x " * 140 + KEY,
    "of someone else": "sk-ab***yz and hf_abcdefgh",
}


@pytest.mark.parametrize("status", [401, 400, 500, 200])
def test_the_key_shows_nowhere(
    serve: Callable[..., Server], connect: Callable[..., OpenAI], caplog: pytest.LogCaptureFixture, status: int
):
    caplog.set_level(logging.DEBUG)
    replies = [fails(status, f"Incorrect API key provided: {echo}. Find yours at ...") for echo in ECHOES.values()]
    server = serve(*replies)
    proposer = connect(server, retries=0)
    said = [repr(proposer)]
    for _ in replies:
        try:
            said.append(repr(ask(proposer)))
        except AutopruneError as error:
            said.append("\n".join([str(error), repr(error), error.what, error.where, error.remedy]))
    assert all("Incorrect API key provided" in text for text in said[1:])
    said = "\n".join([*said, caplog.text])
    assert not any(piece in said for piece in pieces(KEY, 6))
    assert all(part not in said for part in ("sk-ab", "hf_abc", "sk-pro"))
    assert set(server.keys) == {f"Bearer {KEY}"}


def test_the_key_is_taken_out_of_texts_too(serve: Callable[..., Server], connect: Callable[..., OpenAI]):
    text = f"{PROGRAM}# {KEY} {KEY[3:20]} {KEY[-12:]} x**y"
    assert ask(connect(serve(completion(text)))).text == f"{PROGRAM}# [key] [key] [key] x**y"


@pytest.mark.parametrize("key", ["none", "weight", " EMPTY\n"])
def test_placeholders_are_no_secrets(
    serve: Callable[..., Server], connect: Callable[..., OpenAI], monkeypatch: pytest.MonkeyPatch, key: str
):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    server = serve(completion(f"{PROGRAM}# none weight EMPTY"))
    assert ask(connect(server)).text == f"{PROGRAM}# none weight EMPTY"
    assert server.keys == [f"Bearer {key.strip()}"]


def test_a_local_server_needs_no_key(
    serve: Callable[..., Server], connect: Callable[..., OpenAI], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("OPENAI_API_KEY")
    server = serve(completion())
    assert ask(connect(server)).text == PROGRAM
    assert server.keys == ["Bearer none"]
    with pytest.raises(AutopruneError, match="OPENAI_API_KEY is not set"):
        OpenAI("m")
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    assert ask(OpenAI("m")).text == PROGRAM


@pytest.mark.parametrize("key", ["sk-gehéim12345", "sk-gehe\nim12345", "sk-gehe\x7f12345"])
def test_keys_that_cannot_be_sent_are_refused(monkeypatch: pytest.MonkeyPatch, key: str):
    pytest.importorskip("openai")
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(AutopruneError, match="has characters that no key has") as caught:
        OpenAI("m")
    assert "geh" not in repr(caught.value)


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x/v1", "http://", "http://[::1", "http://x:y/", "/v1"])
def test_addresses_that_are_none_are_refused(connect: Callable[..., OpenAI], url: str):
    with pytest.raises(AutopruneError, match="write it like http://localhost:8000/v1"):
        connect(url)


def test_the_package_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch):
    def no_openai(name: str, *more: Any, imported: Any = builtins.__import__) -> Any:
        if name == "openai":
            raise ImportError(name)
        return imported(name, *more)

    monkeypatch.setattr(builtins, "__import__", no_openai)
    with pytest.raises(AutopruneError, match=r"pip install autoprune\[openai\]"):
        OpenAI("m")


def test_requests_run_side_by_side_and_answers_come_as_they_are_ready(
    serve: Callable[..., Server], connect: Callable[..., OpenAI]
):
    gate = threading.Event()

    def reply(handler: Handler, question: Any) -> None:
        prompt = question["messages"][0]["content"]
        if prompt == "0":
            assert gate.wait(5)
        handler.send(completion(prompt))

    proposer = connect(serve(reply), concurrency=2)
    answers = proposer.propose([request(step, prompt=str(step)) for step in range(6)])
    first = [next(answers) for _ in range(5)]
    gate.set()
    last = next(answers)
    assert [asked.step for asked, _ in [*first, last]] == [1, 2, 3, 4, 5, 0]
    assert all(answer.text == str(asked.step) for asked, answer in [*first, last])
    assert list(proposer.propose([])) == []


def test_stopping_early_cancels_what_has_not_started(serve: Callable[..., Server], connect: Callable[..., OpenAI]):
    def reply(handler: Handler, question: Any) -> None:
        time.sleep(0.05)
        handler.send(completion())

    server = serve(reply)
    answers = connect(server, concurrency=2).propose([request(step) for step in range(100)])
    next(answers)
    answers.close()  # pyright: ignore[reportAttributeAccessIssue]
    time.sleep(0.3)
    assert len(server.questions) <= 5


def test_defects_of_our_own_are_raised(
    serve: Callable[..., Server], connect: Callable[..., OpenAI], monkeypatch: pytest.MonkeyPatch
):
    proposer = connect(serve(completion()))
    monkeypatch.setattr(proposer, "_completion", lambda request: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ask(proposer)


# ---------------------------------------------------------------- Exchange: a folder


class Polls:
    """Stands in for time.sleep: does one thing after another, then fails rather than wait for ever."""

    def __init__(self, *actions: Callable[[], Any]):
        self.actions, self.count = list(actions), 0

    def __call__(self, seconds: float) -> None:
        self.count += 1
        if self.actions:
            self.actions.pop(0)()
        assert self.count < 20, "waits for ever"


def nothing() -> None:
    """A poll in which nobody writes."""


def reply_path(folder: Path, step: int) -> Path:
    return folder / f"{step:05d}-0.reply.txt"


def writes(folder: Path, step: int, content: bytes = b"reply", mode: str = "wb") -> Callable[[], None]:
    def write() -> None:
        with reply_path(folder, step).open(mode) as file:
            file.write(content)

    return write


def old(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    os.utime(path, (0, time.time() - 100))


def test_a_batch_is_written_at_once_and_answered_in_any_order(tmp_path: Path):
    folder = tmp_path / "a" / "b"

    def check_and_answer() -> None:
        assert [path.read_text() for path in sorted(folder.glob("*.prompt.txt"))] == ["one", "two", "three"]
        assert not list(folder.glob(".*"))
        writes(folder, 3, "drei é".encode())()

    polls = Polls(check_and_answer, writes(folder, 1, b"eins"), nothing, writes(folder, 2, b"zwei"))
    proposer = Exchange(folder, sleep=polls)
    requests = [request(step + 1, prompt=prompt) for step, prompt in enumerate(["one", "two", "three"])]
    answers = [(asked.step, answer.text, answer.error) for asked, answer in proposer.propose(requests)]
    assert answers == [(3, "drei é", ""), (1, "eins", ""), (2, "zwei", "")]
    assert "reply.txt" in (folder / "README.txt").read_text()
    proposer.close()


def test_a_reply_is_read_once_it_stops_growing(tmp_path: Path):
    grow = [writes(tmp_path, 1, content, "ab") for content in (b"", b"de", b"f sc", b"ore")]
    ((_, answer),) = Exchange(tmp_path, sleep=Polls(*grow)).propose([request()])
    assert answer.text == "def score"


def test_a_reply_that_disappears_again_is_awaited(tmp_path: Path):
    polls = Polls(writes(tmp_path, 1, b"xx"), reply_path(tmp_path, 1).unlink, writes(tmp_path, 1, b"yy"))
    ((_, answer),) = Exchange(tmp_path, sleep=polls).propose([request()])
    assert answer.text == "yy"


def test_replies_of_before_are_taken_at_once(tmp_path: Path):
    old(tmp_path / "00001-0.prompt.txt", b"improve")
    old(reply_path(tmp_path, 1), b"old")
    before = (tmp_path / "00001-0.prompt.txt").stat()
    ((_, answer),) = Exchange(tmp_path, sleep=Polls()).propose([request()])
    assert answer.text == "old"
    after = (tmp_path / "00001-0.prompt.txt").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert list(Exchange(tmp_path, sleep=Polls()).propose([])) == []


def test_a_reply_of_before_that_is_young_may_still_grow(tmp_path: Path):
    writes(tmp_path, 1, b"half")()
    polls = Polls(writes(tmp_path, 1, b" whole", "ab"))
    ((_, answer),) = Exchange(tmp_path, sleep=polls).propose([request()])
    assert answer.text == "half whole"


def test_a_reply_to_another_prompt_is_put_aside(tmp_path: Path):
    old(tmp_path / "00001-0.prompt.txt", b"of another search")
    old(reply_path(tmp_path, 1), b"stale")
    ((_, answer),) = Exchange(tmp_path, sleep=Polls(writes(tmp_path, 1, b"fresh"))).propose([request()])
    assert answer.text == "fresh"
    assert (tmp_path / "00001-0.reply.old.txt").read_text() == "stale"
    assert (tmp_path / "00001-0.prompt.txt").read_text() == "improve"


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"a" * 5_000_000, "a" * MAX_BYTES),
        (b"a\xff\xfeb\xc3", "a��b�"),
        (b"\xed\xa0\x80", "���"),
        ("\ufeffdéf\r\n".encode(), "déf\r\n"),
        (b"\x00", "\x00"),
    ],
    ids=["5 MB", "no UTF-8", "surrogates", "byte order mark", "NUL"],
)
def test_any_bytes_are_a_reply(tmp_path: Path, content: bytes, text: str):
    ((_, answer),) = Exchange(tmp_path, sleep=Polls(writes(tmp_path, 1, content))).propose([request()])
    assert answer.text == text
    answer.text.encode()


def test_prompts_are_written_as_sound_text(tmp_path: Path):
    next(Exchange(tmp_path, sleep=Polls(writes(tmp_path, 1))).propose([request(prompt="é\ud800\r\n")]))
    assert (tmp_path / "00001-0.prompt.txt").read_bytes() == "é?\r\n".encode()


def test_waiting_may_be_bounded(tmp_path: Path):
    proposer = Exchange(tmp_path, poll_s=0.01, timeout_s=0.05)
    old(reply_path(tmp_path, 2), b"there")
    answers = [(asked.step, answer.text, answer.error) for asked, answer in proposer.propose([request(1), request(2)])]
    assert answers == [(2, "there", ""), (1, "", "no reply within 0.05 s")]


def test_folders_that_do_not_do_are_one_line(tmp_path: Path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(AutopruneError, match="is a file, not a folder"):
        Exchange(tmp_path / "file")
    with pytest.raises(AutopruneError, match="cannot write"):
        Exchange(tmp_path / "file" / "inside")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folders_that_may_not_be_written_are_one_line(tmp_path: Path):
    tmp_path.chmod(0o500)
    with pytest.raises(AutopruneError, match="cannot write: Permission denied"):
        Exchange(tmp_path)


def test_a_folder_that_goes_away_is_an_error(tmp_path: Path):
    folder = tmp_path / "exchange"
    with pytest.raises(AutopruneError, match="cannot read"):
        list(Exchange(folder, sleep=Polls(lambda: folder.rename(tmp_path / "elsewhere"))).propose([request()]))


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_pipes_and_folders_are_no_replies(tmp_path: Path, make: Callable[[Path], None]):
    make(reply_path(tmp_path, 1))
    with pytest.raises(AutopruneError, match="is not a plain file"):
        list(Exchange(tmp_path, sleep=Polls()).propose([request()]))
