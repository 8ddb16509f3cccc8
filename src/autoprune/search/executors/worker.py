"""What a worker process runs: ``python -m autoprune.search.executors.worker FD``, FD being a socket to `processes`.

It is told the pickled recipe of its scorer, and then one task after the other; it answers each with a line of JSON.
"""

from __future__ import annotations

import base64
import ctypes
import json
import os
import pickle
import resource
import signal
import socket
import sys
import threading
import traceback
from queue import SimpleQueue
from typing import Any, NoReturn

from autoprune.search.executors.attempt import attempt, cannot_make, limit_memory
from autoprune.search.protocol import Outcome, Scorer, Task

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main() -> NoReturn:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started us decides
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    connection = socket.socket(fileno=int(sys.argv[1]))
    connection.set_inheritable(False)
    heard = SimpleQueue[Any]()
    threading.Thread(target=_listen, args=(connection, heard), daemon=True).start()
    setup = heard.get()
    _die_with(setup["parent"])
    scorer = _make(base64.b64decode(setup["recipe"]), connection)
    limit_memory(setup["memory_bytes"])
    connection.sendall(_line({"ready": True}))
    while True:
        connection.sendall(_line_of(attempt(scorer, Task(*heard.get()))))


def _make(recipe: bytes, connection: socket.socket) -> Scorer:
    try:
        return pickle.loads(recipe).make()
    except Exception as failure:
        traceback.print_exc()
        error = cannot_make(failure)
    connection.sendall(_line({"what": error.what, "where": error.where, "remedy": error.remedy}))
    while True:
        signal.pause()  # until we are killed, which hearing this leads to


def _line_of(outcome: Outcome) -> bytes:
    try:
        return _line({"outcome": {**vars(outcome), "figures": dict(outcome.figures)}})
    except (TypeError, ValueError) as error:
        return _line({"outcome": vars(Outcome(error=f"the scorer's figures are not plain JSON values: {error}"))})


def _line(what: dict[str, Any]) -> bytes:
    return json.dumps(what).encode("ascii") + b"\n"


def _listen(connection: socket.socket, heard: SimpleQueue[Any]) -> None:
    """All that is said to us. When nobody is there to say more, this process and what it has started end at once."""
    try:
        with connection.makefile("rb") as lines:
            for line in lines:
                heard.put(json.loads(line))
    finally:
        os.killpg(0, signal.SIGKILL)


def _die_with(parent: int | None) -> None:
    """Be killed when the parent dies, even while something holds Python's lock; Linux only."""
    if parent is None or sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() != parent:  # it died before that
        os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
