"""What a measuring process runs: ``python -m autoprune.speed.child``, which `process` starts.

It is told a task as a line of JSON on stdin, and answers with one on stdout. It ends when its stdin does.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import statistics
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from autoprune.errors import AutopruneError
from autoprune.models import InMemoryBlocks, all_linears, input_device, open_model, weight_bytes
from autoprune.speed.payoff import Facts
from autoprune.speed.runtimes import RUNTIMES
from autoprune.speed.stopwatch import prompt_tokens, time_once
from autoprune.speed.zeros import count_zeros

_ENOUGH_S = 3.0
"""A turn of a small model is repeated until so much has been measured."""


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started us decides
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not come between
    task = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    try:
        answer = look(task) if task["runtime"] is None else take_turn(task)
    except AutopruneError as error:
        answer = {"error": {"what": error.what, "where": error.where, "remedy": error.remedy}}
    except torch.OutOfMemoryError:
        answer = {"error": {"what": "the device has too little memory", "where": task["model"],
                            "remedy": "use --device cpu, or a smaller --batch or --prompt"}}  # fmt: skip
    print(json.dumps(answer), file=answers, flush=True)


def look(task: dict[str, Any]) -> dict[str, Any]:
    """The facts about a model. It also brings the files into the system's cache, for those that open them next."""
    model = open_model(task["model"], dtype=task["dtype"], device=task["device"]).model
    device = input_device(model)
    on_cuda = device.type == "cuda"
    facts = Facts(
        dtype=str(model.dtype).removeprefix("torch."),
        device=device.type,
        device_name=torch.cuda.get_device_name(device) if on_cuda else "",
        capability=torch.cuda.get_device_capability(device) if on_cuda else None,
        threads=torch.get_num_threads(),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        parameter_bytes=weight_bytes(model),
        zeros=count_zeros(all_linears(InMemoryBlocks(model))),
    )
    return asdict(facts)


def take_turn(task: dict[str, Any]) -> dict[str, Any]:
    """Seconds and bytes of one model in one runtime."""
    before = resident_bytes("VmRSS")
    model = open_model(task["model"], dtype=task["dtype"], device=task["device"]).model
    RUNTIMES[task["runtime"]].prepare(model)
    tokens_BL = prompt_tokens(model, task["batch"], task["prompt"], task["vocabulary"])
    time_once(model, tokens_BL, 2)  # what is compiled, allocated or looked up the first time
    gc.collect()
    resident = resident_bytes("VmRSS")
    times = [time_once(model, tokens_BL, task["new"])]
    while sum(map(sum, times)) < _ENOUGH_S:
        times.append(time_once(model, tokens_BL, task["new"]))
    device = input_device(model)
    return {
        "prefill_s": statistics.median(prefill for prefill, _ in times),
        "decode_s": statistics.median(decode for _, decode in times),
        "resident": resident - before if resident and before else None,
        "peak": resident_bytes("VmHWM"),
        "device": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
    }


def resident_bytes(field: str) -> int | None:
    """Of this process alone, now (VmRSS) or at most so far (VmHWM), where Linux tells; the peak that getrusage tells
    would count what the process that started us holds."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), None)


def _end_with_stdin() -> None:
    """When nobody is there to hear the answer, this process ends at once."""
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    main()
