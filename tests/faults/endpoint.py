"""A server of chat completions at its worst: by a schedule drawn from a seed it stalls, hangs up, talks nonsense, or
refuses; and it may be out for good until someone has seen to it."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from chat import ChatHandler, ChatServer, completion
from faults.commands import Asked, Command
from faults.trial import REFUSED, Bench, Trial

FAULTS = ("stalls", "hangs up", "breaks off", "garbage", "not JSON", "429", "500", "503")
_TRIES = 4  # of a request that may fail: the client tries a fifth time
_STALL_S = 1.0  # twice what the client waits
_OUTAGE_LOSES = 2  # a third step in a row without an answer is an outage


class Server(ChatServer):
    """Fails with the given chance; out from request `until` on, while `healed` is not there. Faults go to `log`."""

    def __init__(self, seed: int, chance: float, until: int, log: Path, healed: Path):
        super().__init__(Handler)
        self.random, self.chance, self.until, self.log, self.healed = random.Random(seed), chance, until, log, healed
        self.asked, self.failed = 0, Counter[str]()

    def fault(self, prompt: str) -> str:
        """What happens to this request; "" for nothing."""
        self.asked += 1
        fault = self.random.choice(FAULTS)
        if self.asked >= self.until and not self.healed.exists():
            return fault
        if self.random.random() >= self.chance or self.failed[prompt] >= _TRIES:
            self.failed[prompt] = 0
            return ""
        self.failed[prompt] += 1
        return fault


class Handler(ChatHandler):
    server: Server  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_POST(self) -> None:
        prompt = self.question()["messages"][0]["content"]
        fault = self.server.fault(prompt)
        with self.server.log.open("a") as log:
            log.write(f"{fault or 'ok'}\n")
        body = json.dumps(_completion(prompt)).encode()
        match fault:
            case "":
                self.send(body)
            case "stalls":
                time.sleep(_STALL_S)
                self.close_connection = True
            case "hangs up":
                self.close_connection = True
            case "breaks off":
                self.send(body[: len(body) // 2], content_length=str(len(body)))
                self.close_connection = True
            case "garbage":
                self.send(random.Random(prompt).randbytes(2000))
            case "not JSON":
                self.send(b"<html>Bad gateway</html>")
            case status:
                self.send(b'{"error": {"message": "not now"}}', int(status))


def _completion(prompt: str) -> dict[str, Any]:
    """A program that depends on the prompt only; one in eight is none."""
    digest = hashlib.sha256(prompt.encode()).digest()
    power = 0.25 + digest[0] / 64
    body = f"abs(weight) * input_norm ** {power}" if digest[1] % 8 else "abs(weight"
    text = f"hypothesis: a try\nprogram:\n```python\ndef score(weight, input_norm):\n    return {body}\n```"
    return completion(text)


@contextmanager
def serving(folder: Path, seed: int, chance: float = 0.0, until: int = 1 << 30) -> Iterator[str]:
    """Its address. It is a process of its own: threads and forks do not go together."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("log", "healed"):
        (folder / name).unlink(missing_ok=True)
    server = Server(seed, chance, until, folder / "log", folder / "healed")
    pid = os.fork()
    if pid == 0:
        try:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            server.serve_forever(poll_interval=0.01)
        finally:
            os._exit(0)
    server.socket.close()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _faults(folder: Path) -> int:
    return sum(line != "ok" for line in (folder / "log").read_text().split("\n")[:-1])


def flaky(bench: Bench, kind: type[Command]) -> Trial:
    """Every second request fails, but none for good: nobody notices."""
    folder = bench.folder / "server"
    with serving(folder, 0) as Asked.url:
        whole = bench.undisturbed(Asked)
    trial = Trial(bench.command(kind))
    with serving(folder, bench.random.getrandbits(32), chance=0.5) as Asked.url:
        ended = trial.command.run()
        trial.struck(ended, 0)
        trial.faults = _faults(folder)
        return trial.finish(whole)


def out(bench: Bench, kind: type[Command]) -> Trial:
    """It fails for good from one request on: the search ends with an error, and goes on when it has been seen to."""
    trial, folder = Trial(bench.command(kind)), bench.folder / "server"
    command = trial.command
    assert isinstance(command, Asked)
    with serving(folder, bench.random.getrandbits(32), until=bench.random.randint(1, 8)) as Asked.url:
        ended = command.run()
        if _faults(folder):
            trial.struck(ended, REFUSED, 0)  # 0: the last request of all was hit
        (folder / "healed").touch()
        ended = command.run()
        trial.require(ended.code == 0, f"it does not go on: {ended.err[-1500:]}")
        trial.lost.append(command.silent())
        trial.require(command.silent() <= _OUTAGE_LOSES, f"{command.silent()} steps without an answer")
        trial.require(not command.again, f"{command.again} steps were done again")
        trial.require(not command.litter(), f"litter: {command.litter()}")
    if not trial.problems:
        command.forget()
    return trial
