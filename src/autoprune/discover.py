"""Let a language model, or chance, design pruning algorithms for a model, measure each, and keep the best.

This is where a search (`autoprune.search`), which knows no models, meets the scorer (`autoprune.scoring`), which knows
no search.

Legend: B sequences, L tokens per sequence.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from autoprune import algorithms
from autoprune.data import check_source
from autoprune.errors import AutopruneError
from autoprune.files import exclusive, write_text, writing_to
from autoprune.inputs import SELF, calibration_tokens, opened_model
from autoprune.language import Program, read_program
from autoprune.language.space import Space
from autoprune.layer import Method
from autoprune.models import InMemoryBlocks, OpenModel, all_linears, fingerprint, open_model
from autoprune.progress import Progress, Silent
from autoprune.scoring.rungs import REFERENCE
from autoprune.scoring.scorer import FRESH, FULL, QUICK, RUNGS, ModelRecipe
from autoprune.scoring.several import SeveralRecipe, labels
from autoprune.scoring.signature import alike
from autoprune.search.account import Account, account, best
from autoprune.search.archive import Archive
from autoprune.search.executors.in_process import InProcess
from autoprune.search.executors.on_ray import OnRay
from autoprune.search.executors.processes import Processes
from autoprune.search.graph import Graph
from autoprune.search.loop import Search, Settings, Watch
from autoprune.search.prompt import GRAPH, PLAIN, Prompter
from autoprune.search.proposers.exchange import Exchange
from autoprune.search.proposers.genetic import Genetic, Random
from autoprune.search.proposers.local import Local
from autoprune.search.proposers.openai import OpenAI
from autoprune.search.protocol import Executor, Proposer
from autoprune.sparsity import Target
from autoprune.stream import check_propagation

ARCHIVE, WINNER = "archive.sqlite", "winner.prune"

_DRAWS = {QUICK: 1, FULL: 2, FRESH: 2}  # of text to calibrate on
_JUDGED_ON = {QUICK: 4, FULL: 8, FRESH: 16}  # sequences, of the calibration's length, beside those to calibrate on
_ON_CPU, _WITH_ACCELERATOR = (16, 512), (32, 1024)  # sequences to calibrate on, tokens in each, unless told
_BASELINES = (REFERENCE, "ria")
_PROMPT_TOKENS = {"self": 1500, "local": 2500}  # what small models make use of; others get more
_PROMPT_TOKENS_ELSEWHERE = 6000

# Seconds that a program may take at a rung: far more than any sensible one needs, by the number of weights.
_PATIENCE_S = {"probe": (60, 2e-6), QUICK: (120, 5e-6), FULL: (1200, 6e-5), FRESH: (1200, 6e-5)}


@dataclass(frozen=True, kw_only=True)
class Discovery:
    """What a search has found. `winner` is the file with the best program, None where none was measured to the end;
    `was_known` is its name where the search started from it, and has found nothing better."""

    run: str
    account: Account
    winner: str | None
    was_known: str | None


@dataclass(frozen=True, kw_only=True)
class Service:
    """How to reach a proposer behind a server, and what it costs, in US dollars for a million tokens."""

    base_url: str | None = None
    timeout_s: float = 300.0
    concurrency: int = 4
    usd_per_million_in: float | None = None
    usd_per_million_out: float | None = None


def discover(
    model: str | Path,
    *,
    run: str | Path,
    also: Sequence[str | Path] = (),
    proposer: str = "self",
    evaluations: int = 100,
    batch: int = 4,
    sparsity: float | None = None,
    pattern: str | None = None,
    calibration: str = SELF,
    sequences: int | None = None,
    length: int | None = None,
    seed: int = 0,
    freeze: str = "",
    roots: Sequence[str] | None = None,
    prompt: str = GRAPH,
    prompt_tokens: int | None = None,
    workers: int = 1,
    ray: str | None = None,
    service: Service | None = None,
    budget_usd: float | None = None,
    budget_s: float | None = None,
    budget_tokens: int | None = None,
    propagation: str = "one_pass",
    dtype: str = "auto",
    device: str = "auto",
    progress: Progress | None = None,
    watch: Watch | None = None,
) -> Discovery:
    """Search for the program that damages a model least at a sparsity or pattern, and go on where `run` ends.

    `model` is a hub id, a folder, a .gguf file or "demo". Damage is the mean over it and those in `also`; each draws
    texts of its own, so a model that comes again is measured on other texts. `proposer` is "self" (`model` itself),
    "local:MODEL", "openai:MODEL" (any server of that kind, see `service`), "exchange:FOLDER", "genetic" or "random".
    `evaluations` counts proposals, `batch` those that are made from the same knowledge. `freeze` holds options of
    programs at a value, as "update=none,allocate=uniform". `roots` are the programs to start from, names of the library
    or files; None is all of the library that leave what is frozen as it is. `prompt` is "graph", or "plain" for the
    task and the best program only. `workers` are processes on this machine, 0 measures in this one; `ray` is the
    address of a cluster
    instead. Other arguments as in `prune`.
    """
    progress, folder, service = progress or Silent(), Path(run), service or Service()
    target = Target.of(sparsity, pattern)
    space = Space.of(freeze, pattern=bool(target.group))
    begins = _roots(space, roots)
    _check(proposer, prompt, evaluations, batch, workers, propagation)
    budgets = {"--budget-usd": budget_usd, "--budget-s": budget_s, "--budget-tokens": budget_tokens}
    for name, value in (budgets | {"--prompt-tokens": prompt_tokens, "--timeout-s": service.timeout_s}).items():
        if value is not None and not 0 <= value < math.inf:
            raise AutopruneError(f"{name} cannot be {value}", remedy="give a number of at least 0")
    if sequences is not None and sequences < 2:
        raise AutopruneError(f"--sequences {sequences} is too few for a search", remedy="give at least 2")
    if calibration != SELF:
        check_source(calibration)
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with exclusive(folder / "lock", "another search is at work in this folder"), _archive(folder) as archive:
        names = [str(model), *map(str, also)]
        opened = {name: opened_model(name, None, dtype, device, progress) for name in dict.fromkeys(names)}
        sizes = _sizes(opened, target)
        drawn = [
            _tokens(opened[name], calibration, sequences, length, seed + place, progress)
            for place, name in enumerate(names)
        ]
        known = [_known(name, opened[name], text) for name, (_, text) in zip(names, drawn, strict=True)]
        _same_run(
            archive,
            {
                "model": names[0],
                "target": str(target),
                "proposer": proposer,
                "seed": seed,
                "freeze": freeze,
                "roots": None if roots is None else [root.digest for root in begins],
                "prompt": prompt,
                "prompt_tokens": prompt_tokens,
                "propagation": propagation,
                "draws": _DRAWS,
                **known[0],
                "also": known[1:],
            },
        )
        recipes = [
            ModelRecipe(
                model=name,
                dtype=dtype,
                device=device,
                target=target,
                propagation=propagation,
                seed=seed + place,
                timeout_s=_timeout_s(sizes[name]),
                **tokens,
            )
            for place, (name, (tokens, _)) in enumerate(zip(names, drawn, strict=True))
        ]
        settings = Settings(
            space=space,
            evaluations=evaluations,
            batch=batch,
            seed=seed,
            rungs=RUNGS,
            fresh=FRESH,
            budget_s=budget_s,
            budget_usd=budget_usd,
            budget_tokens=budget_tokens,
        )
        kind = proposer.partition(":")[0]
        prompter = Prompter(
            about=_about(names, opened, sizes, target),
            space=space,
            tokens=prompt_tokens or _PROMPT_TOKENS.get(kind, _PROMPT_TOKENS_ELSEWHERE),
            kind=prompt,
        )
        asked = _proposer(proposer, opened[names[0]], space, service)
        del opened  # a worker has its own
        progress.stage("measuring the unpruned model and the library's programs", 1)
        with closing(asked), closing(_executor(recipes, workers, ray, folder)) as executor:
            search = Search(settings, archive, asked, executor, prompter, alike, watch or Unwatched())
            search.run(begins, lambda graph: _baselines(graph, begins))
        told = account(archive, RUNGS, FRESH)
        winner, was_known = _write_winner(archive, folder, names, target)
    return Discovery(run=str(folder), account=told, winner=winner, was_known=was_known)


@contextmanager
def open_run(run: str | Path) -> Iterator[Archive]:
    """The archive of a search, to be read; an error where there is none, or it is damaged."""
    path = Path(run) / ARCHIVE
    if not path.is_file():
        raise AutopruneError("there is no search here", where=str(run), remedy="give the --run of autoprune search")
    with Archive.snapshot(path) as archive:
        yield archive


class Unwatched:
    """Nobody looks."""

    def started(self, graph: Graph, done: int, total: int) -> None:
        pass

    def measured(self, rung: str, outcome: Any) -> None:
        pass

    def step(self, proposal: Any, edge: Any) -> None:
        pass

    def batch(self, graph: Graph, done: int) -> None:
        pass

    def note(self, text: str) -> None:
        pass


def _check(proposer: str, prompt: str, evaluations: int, batch: int, workers: int, propagation: str) -> None:
    kind, colon, rest = proposer.partition(":")
    plain, named = ("self", "genetic", "random"), ("local", "openai", "exchange")
    if not (kind in plain and not colon) and not (kind in named and rest):
        known = ", ".join([*plain, *(f"{name}:…" for name in named)])
        raise AutopruneError(f"unknown proposer '{proposer}'", remedy=f"use {known}")
    least_of = (("--evaluations", evaluations, 0), ("--batch", batch, 1), ("--workers", workers, 0))
    for name, value, least in least_of:
        if value < least:
            raise AutopruneError(f"{name} cannot be {value}", remedy=f"give at least {least}")
    if prompt not in (GRAPH, PLAIN):
        raise AutopruneError(f"unknown prompt '{prompt}'", remedy=f"use {GRAPH} or {PLAIN}")
    check_propagation(propagation)


@contextmanager
def _archive(folder: Path) -> Iterator[Archive]:
    archive = Archive.open(folder / ARCHIVE)
    try:
        yield archive
    finally:
        archive.close()


def _same_run(archive: Archive, settings: dict[str, Any]) -> None:
    """Note the settings of a new search; refuse others where one goes on."""
    known = archive.get("settings")
    if known is None:
        archive.set("settings", settings)
        return
    before = _one_by_one(known)
    for name, value in _one_by_one(settings).items():
        if before.get(name) != value:
            raise AutopruneError(
                f"this search was begun with {name} {before.get(name)!r}, not {value!r}",
                where=str(archive.path),
                remedy="give the same, or another --run",
            )


def _known(name: str, opened: OpenModel, text: Mapping[str, Any]) -> dict[str, Any]:
    """What a model and its text are known by when a search goes on."""
    return {
        "model": name,
        "calibration": text["sha256"],
        "dtype": str(opened.model.dtype).removeprefix("torch."),
        "weights": fingerprint(opened.model)[:16],
    }


def _one_by_one(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings with those of further models, which archives from before there were any lack, by names of their own."""
    also = settings.get("also", [])
    flat = {**settings, "also": [of["model"] for of in also]}
    for number, of in enumerate(also, 2):
        flat |= {f"{name} of model {number}": value for name, value in of.items()}
    return flat


def _sizes(opened: Mapping[str, OpenModel], target: Target) -> dict[str, int]:
    """The number of prunable weights of each model; an error where a layer cannot be pruned so."""
    sizes = {}
    for name, each in opened.items():
        linears = all_linears(InMemoryBlocks(each.model))
        for linear in linears:
            target.check_layer(linear.name if len(opened) == 1 else f"{name}, {linear.name}", linear.shape[1])
        sizes[name] = sum(linear.size for linear in linears)
    return sizes


def _timeout_s(weights: int) -> dict[str, float]:
    """How long each rung may take with a model of so many prunable weights."""
    return {rung: base + by_weight * weights for rung, (base, by_weight) in _PATIENCE_S.items()}


def _about(names: Sequence[str], opened: Mapping[str, OpenModel], sizes: Mapping[str, int], target: Target) -> str:
    """What a prompt says of the task."""
    called: dict[str, list[str]] = {}
    for name, label in zip(names, labels(names), strict=True):
        called.setdefault(name, []).append(label)
    models = "; ".join(f"{' and '.join(called[name])}: {_shape(opened[name], sizes[name])}" for name in opened)
    several = len(names) > 1
    goal = f"Of every {target.group} consecutive inputs {target.keep} are kept" if target.group else (
        f"{float(target.fraction):.0%} of these weights are removed"
    )  # fmt: skip
    mean = ", the mean over the models" if several else ""
    return (
        f"The {'models are' if several else 'model is'} {models}. {goal}. Damage is the KL divergence from the "
        f"unpruned model on held-out text, in nats per token{mean}; 0 would be perfect."
    )


def _shape(opened: OpenModel, weights: int) -> str:
    source = InMemoryBlocks(opened.model)
    kinds = dict.fromkeys(linear.name.rsplit(".", 1)[-1] for linear in all_linears(source))
    return (
        f"{len(source.blocks)} decoder blocks with {weights / 1e6:.0f} million prunable weights in linear layers "
        f"({', '.join(kinds)})"
    )


def _tokens(
    opened: OpenModel, calibration: str, sequences: int | None, length: int | None, seed: int, progress: Progress
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tokens (B, L) to calibrate on and to judge on, by rung, and what is recorded of them."""
    own = _ON_CPU if opened.model.device.type == "cpu" else _WITH_ACCELERATOR
    count = own[0] if sequences is None else sequences
    more = (sum(_DRAWS.values()) - 1) * count + sum(_JUDGED_ON.values())
    tokens_BL, text = calibration_tokens(opened, calibration, sequences, length, seed, progress, more=more, chosen=own)
    left = iter(tokens_BL.numpy())

    def drawn(size: int) -> np.ndarray:
        return np.stack(list(islice(left, size)))

    calibrated_on = {rung: [drawn(count) for _ in range(draws)] for rung, draws in _DRAWS.items()}
    return {"calibrated_on": calibrated_on, "judged_on": {rung: drawn(size) for rung, size in _JUDGED_ON.items()}}, text


def _roots(space: Space, chosen: Sequence[str] | None) -> list[Program]:
    """Programs that a search starts from: those that were chosen, or all of the library that fit in."""
    fitted: list[Program] = []
    for name in algorithms.names() if chosen is None else chosen:
        program = algorithms.load(name)
        if found := space.fitted(program):
            fitted.append(found)
        elif chosen is not None:
            raise AutopruneError(
                f"a search cannot start from it: {space.refusal(program)}", where=name, remedy="name another one"
            )
    roots = list({program.digest: program for program in fitted}.values())
    if not roots:
        raise AutopruneError("no program of the library leaves all that is frozen as it is", remedy="freeze less")
    # Of two that do the same the first is the one that is kept.
    return sorted(roots, key=lambda program: (len(Method.of(program).collects), len(program.canonical), program.name))


def _baselines(graph: Graph, roots: list[Program]) -> list[Program]:
    """What the best is compared with at the end: the usual ones, whatever is frozen, and the best of the roots."""
    usual = [algorithms.load(name) for name in _BASELINES]
    known = {root.digest: root for root in roots}
    first = [known[digest] for digest in graph.ranked if digest in known][:1]
    return list({program.digest: program for program in (*usual, *first)}.values())


def _proposer(text: str, opened: OpenModel, space: Space, service: Service) -> Proposer:
    kind, _, rest = text.partition(":")
    match kind:
        case "self":
            return Local(opened.model, opened.tokenizer, space, name=opened.name)
        case "local":
            other = open_model(rest)
            return Local(other.model, other.tokenizer, space, name=rest)
        case "openai":
            return OpenAI(
                rest,
                base_url=service.base_url,
                timeout_s=service.timeout_s,
                concurrency=service.concurrency,
                usd_per_million_in=service.usd_per_million_in,
                usd_per_million_out=service.usd_per_million_out,
            )
        case "exchange":
            return Exchange(rest)
        case "genetic":
            return Genetic(space)
    return Random(space)


def _executor(recipes: Sequence[ModelRecipe], workers: int, ray: str | None, folder: Path) -> Executor:
    recipe = recipes[0] if len(recipes) == 1 else SeveralRecipe(tuple(recipes))
    if ray is not None:
        return OnRay(recipe, ray)
    return Processes(recipe, workers, logs=folder / "logs") if workers else InProcess(recipe)


def _write_winner(
    archive: Archive, folder: Path, models: Sequence[str], target: Target
) -> tuple[str | None, str | None]:
    """Write the best program to a file that `prune --algorithm` takes; its path, and its name if it was known."""
    digest = best(archive, RUNGS, FRESH)
    if digest is None:
        return None, None
    node = next(node for node in archive.nodes() if node.digest == digest)
    was_known = archive.get("names", {}).get(digest) if node.step < 0 else None
    search = f"autoprune search for {', '.join(labels(models))} at {target}"
    how = f"{was_known}: nothing better was found by {search}" if was_known else f"Found by {search}"
    path = folder / WINNER
    with writing_to(path):
        write_text(path, f'"""{how}; hash {digest}."""\n\n{node.canonical}')
    assert read_program(path.read_text("utf-8")).digest == digest
    return str(path), was_known


__all__ = ["Discovery", "Service", "discover", "open_run"]
