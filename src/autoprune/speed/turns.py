"""Both models on disk, opened, and at work, in turns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from autoprune.errors import AutopruneError
from autoprune.models import context_length, locate, read_settings, weight_files
from autoprune.progress import Progress, Silent
from autoprune.speed.disk import check_compression, measure_files
from autoprune.speed.payoff import Facts, Measured, Model, Pair, Payoff, Zeros
from autoprune.speed.process import measure
from autoprune.speed.runtimes import PLAIN, RUNTIMES, cpu_flags
from autoprune.speed.words import in_words

_PROMPT, _NEW = 512, 64


def compare(
    dense: str | Path,
    pruned: str | Path,
    *,
    prompt: int | None = None,
    new: int | None = None,
    batch: int = 1,
    rounds: int = 7,
    level: int = 3,
    dtype: str = "auto",
    device: str = "auto",
    progress: Progress | None = None,
) -> Payoff:
    """What a pruned model saves and gains against the dense one it was made from, on this machine.

    Both are hub ids, folders, .gguf files or "demo". Prefill reads `batch` prompts of `prompt` tokens, decode writes
    `new` tokens after each, greedily and with a cache (defaults: 512 and 64, fewer where the context is shorter). In
    each of `rounds` rounds either model is opened and measured in a process of its own, in changing order; six rounds
    are the fewest that can tell a difference. `level` is zstd's. Raises AutopruneError for models that cannot be
    opened, or that are of two architectures.
    """
    progress = progress or Silent()
    check_compression(level)
    for option, amount in {"--prompt": prompt, "--new": new, "--batch": batch, "--rounds": rounds}.items():
        if amount is not None and amount < 1:
            raise AutopruneError(f"{option} is {amount}", remedy="give at least 1")
    names = {"dense": str(dense), "pruned": str(pruned)}
    settings = {role: _settings(name, dtype) for role, name in names.items()}
    kinds = {role: found.config.model_type for role, found in settings.items()}
    if kinds["dense"] != kinds["pruned"]:
        raise AutopruneError(
            f"{names['dense']} is a {kinds['dense']} and {names['pruned']} a {kinds['pruned']}: what differs is more "
            "than the pruning",
            remedy="give the model that the pruned one was made from",
        )
    contexts = [length for found in settings.values() if (length := context_length(found)) is not None]
    prompt, new = _lengths(prompt, new, min(contexts, default=None))
    vocabulary = min(found.config.get_text_config().vocab_size for found in settings.values())
    files = {role: weight_files(name) for role, name in names.items()}
    shared = {"dtype": dtype, "device": device, "prompt": prompt, "new": new, "batch": batch, "vocabulary": vocabulary}

    progress.stage("opening both and counting zeros", len(names))
    facts: dict[str, Facts] = {}
    for role, name in names.items():
        found = measure({**shared, "model": name, "runtime": None})
        facts[role] = Facts(**{**found, "zeros": Zeros(**found["zeros"])})
        progress.advance(1)
    models = {
        role: Model(name=name, files=measure_files(files[role], level, progress), facts=facts[role])
        for role, name in names.items()
    }

    not_measured = {name: reason for name, runtime in RUNTIMES.items() if (reason := runtime.lacks(facts["pruned"]))}
    turns = [("dense", PLAIN)] + [("pruned", name) for name in RUNTIMES if name not in not_measured]
    figures: dict[tuple[str, str], list[dict[str, Any]]] = {turn: [] for turn in turns}
    progress.stage(f"measuring, {rounds} rounds", rounds * len(turns))
    for number in range(rounds):
        for role, runtime in turns if number % 2 == 0 else reversed(turns):
            if runtime in not_measured:
                continue
            try:
                answer = measure({**shared, "model": names[role], "runtime": runtime})
            except AutopruneError as error:
                if runtime == PLAIN:
                    raise
                not_measured[runtime] = error.what
            else:
                figures[role, runtime].append(answer)
            progress.advance(1)
    payoff = Payoff(
        dense=models["dense"],
        pruned=models["pruned"],
        measured=[
            _measured(name, figures["dense", PLAIN], figures["pruned", name], batch * prompt, batch * new)
            for role, name in turns
            if role == "pruned" and name not in not_measured
        ],
        not_measured=not_measured,
        settings={"prompt": prompt, "new": new, "batch": batch, "rounds": rounds, "level": level},
        cpu_flags=cpu_flags(),
        words=[],
    )
    return in_words(payoff)


def _settings(name: str, dtype: str) -> Any:
    location, options = locate(name)
    return read_settings(name, location, options, dtype)


def _lengths(prompt: int | None, new: int | None, context: int | None) -> tuple[int, int]:
    """Tokens of a prompt and tokens after it: those asked for, else as many as there is room for."""
    if context is not None:
        if new is None:
            new = min(_NEW, max(1, (context - (prompt or 0)) // 2))
        if prompt is None:
            prompt = min(_PROMPT, max(1, context - new))
        if prompt + new > context:
            raise AutopruneError(
                f"--prompt {prompt} and --new {new} are more than the {context} positions of the model",
                remedy=f"use at most {context} together",
            )
    return _PROMPT if prompt is None else prompt, _NEW if new is None else new


def _measured(
    runtime: str, dense: list[dict[str, Any]], pruned: list[dict[str, Any]], prompt_tokens: int, new_tokens: int
) -> Measured:
    """Both models' answers, one a round, as figures side by side."""

    def speed(field: str, tokens: int) -> Pair:
        return Pair.of([tokens / answer[field] for answer in dense], [tokens / answer[field] for answer in pruned])

    def memory(field: str) -> Pair | None:
        if any((answer[field] or 0) <= 0 for answer in (*dense, *pruned)):  # not told, or lost in what else changed
            return None
        return Pair.of([answer[field] for answer in dense], [answer[field] for answer in pruned])

    return Measured(
        runtime=runtime,
        prefill=speed("prefill_s", prompt_tokens),
        decode=speed("decode_s", new_tokens),
        resident=memory("resident"),
        peak=memory("peak"),
        device=memory("device"),
    )
