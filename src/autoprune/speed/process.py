"""One measurement in a process of its own, which has ended when its figures are there.

So a model is alone in memory while it is measured, and two that do not fit together can be compared. And where weights
happen to lie in memory, which can make a process faster or slower for all its life, is drawn anew in every round:
it becomes part of the noise that is reported, where two processes that live on would show it as a difference.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from typing import IO, Any

from autoprune.errors import AutopruneError


def measure(task: dict[str, Any]) -> dict[str, Any]:
    """The answer of `autoprune.speed.child` to a task. Its process does not outlive this call, whatever ends it."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", f"{__package__}.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=environment,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            with process.stdin, process.stdout:
                process.stdin.write(json.dumps(task).encode("ascii") + b"\n")
                process.stdin.flush()
                line = process.stdout.readline()
        except BrokenPipeError:
            line = b""
        finally:
            process.kill()
            code = process.wait()
        if not line.endswith(b"\n"):
            raise _died(task, code, log)
    answer = json.loads(line)
    if "error" in answer:
        raise AutopruneError(**answer["error"])
    return answer


def _died(task: dict[str, Any], code: int, log: IO[bytes]) -> AutopruneError:
    log.seek(0)
    lines = log.read().decode("utf-8", "replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "no message")[:300]
    why = f"by signal {-code}, as happens when memory runs out" if code < 0 else f"with: {last}"
    return AutopruneError(
        f"the process that measured it ended {why}",
        where=task["model"],
        remedy="use a smaller --batch or --prompt, or a machine with more memory",
    )
