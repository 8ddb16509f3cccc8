"""Programs measured on the machines of a Ray cluster. `ray` is imported only here, when it is used."""

from __future__ import annotations

import os
import pickle
import signal
import threading
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

from autoprune.errors import AutopruneError
from autoprune.search.executors.attempt import attempt, cannot_make, limit_memory
from autoprune.search.executors.environment import secrets
from autoprune.search.executors.pool import Died, Event, Failed, Pool, Ready, Scored, Worker, pickled
from autoprune.search.protocol import Outcome, Scorer, ScorerRecipe, Task

_HEARTBEAT_S = 1.0


class OnRay(Pool["_Actor"]):
    """Actors of a cluster at `address` ("auto": the one this machine belongs to; "local": one made here), each with a
    scorer of its own, `cpus` cores that torch computes with, and `gpus`; as many as the nodes have room for, unless
    `workers` says how many. `memory_bytes` is what each may use above what its scorer takes.

    All nodes need autoprune and whatever module the recipe is from, installed or by Ray's own `runtime_env`. Variables
    whose names say that they are secret are blank for the scorer, but for Ray's own; those that only a node has can
    still be read in /proc there. Tasks wait for room in a cluster that is full, or has lost all of its nodes.
    """

    TRIES = 4

    def __init__(
        self,
        recipe: ScorerRecipe,
        address: str = "auto",
        *,
        workers: int | None = None,
        cpus: int = 1,
        gpus: float = 0.0,
        memory_bytes: int | None = None,
        runtime_env: Mapping[str, Any] | None = None,
    ):
        self._ray, self._memory_bytes = _import_ray(), memory_bytes
        self._recipe = pickled(recipe, self._ray.cloudpickle.dumps)
        self._connected_here = not self._ray.is_initialized()
        if self._connected_here:
            self._connect(address)
        super().__init__(recipe, _room(self._ray.nodes(), cpus, gpus) if workers is None else workers)
        self._make_actor = self._ray.remote(
            num_cpus=cpus,
            num_gpus=gpus,
            max_restarts=0,
            scheduling_strategy="SPREAD",
            runtime_env=_without_secrets(runtime_env or {}, threads=cpus),
        )(_Scoring)

    def _connect(self, address: str) -> None:
        on_sigterm = signal.getsignal(signal.SIGTERM)
        try:
            self._ray.init(address=address, log_to_driver=False, logging_level="warning")
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise AutopruneError(
                f"no Ray cluster answers ({str(error).splitlines()[0]})",
                where=address,
                remedy="start one with `ray start --head`, and give its address",
            ) from None
        if on_sigterm is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)  # Ray puts its own in place

    def close(self) -> None:
        super().close()
        if self._connected_here:
            self._ray.shutdown()

    def _start(self) -> _Actor:
        return _Actor(self._ray, self._make_actor.remote(), self._recipe, self._memory_bytes)

    def _listen(self, patience_s: float) -> Iterator[tuple[_Actor, Event]]:
        asked = {worker.reply: worker for worker in self._workers if worker.reply is not None}
        self._ray.wait(list(asked), timeout=min(patience_s, _HEARTBEAT_S))
        answered, _ = self._ray.wait(list(asked), num_returns=len(asked), timeout=0)
        for reply in answered:
            yield asked[reply], asked[reply].hear()

    def _may_retry(self, worker: _Actor) -> bool:
        return True  # a fresh one may never find room, after a node was lost


class _Actor(Worker):
    """A `_Scoring` on some node, seen from here; `reply` is what it was asked for last."""

    def __init__(self, ray: ModuleType, actor: Any, recipe: bytes, memory_bytes: int | None):
        self._ray, self._actor = ray, actor
        self.reply: Any = actor.make.remote(recipe, memory_bytes)

    def send(self, task: Task) -> None:
        self.reply = self._actor.score.remote(task)

    def hear(self) -> Event:
        reply, self.reply = self.reply, None
        try:
            answer = self._ray.get(reply)
        except self._ray.exceptions.RayError as error:
            return Died(str(error).strip().splitlines()[-1].split(". ")[0])  # the rest is ids and advice
        match answer:
            case Outcome():
                return Scored(answer)
            case (what, where, remedy):
                return Failed(AutopruneError(what, where=where, remedy=remedy))
            case _:
                return Ready()

    def kill(self) -> None:
        self._ray.kill(self._actor)


class _Scoring:
    """What runs on a node."""

    def __init__(self) -> None:
        for name in _secrets():
            del os.environ[name]
        self._scorer: Scorer | None = None

    def make(self, recipe: bytes, memory_bytes: int | None) -> tuple[str, str, str] | None:
        """None, or what to tell the user."""
        try:
            self._scorer = pickle.loads(recipe).make()
        except Exception as failure:
            error = cannot_make(failure)
            return error.what, error.where, error.remedy
        if memory_bytes is not None:
            limit_memory(memory_bytes)
        return None

    def score(self, task: Task) -> Outcome:
        assert self._scorer is not None
        return attempt(self._scorer, task)


def _import_ray() -> ModuleType:
    try:
        import ray  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise AutopruneError("measuring on a cluster needs ray", remedy="run: pip install 'autoprune[ray]'") from None
    return ray


def _room(nodes: list[dict[str, Any]], cpus: int, gpus: float) -> int:
    """How many actors the nodes can hold."""
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    needs = {"CPU": cpus, "GPU": gpus}
    room = sum(min(int(resources.get(name, 0) // need) for name, need in needs.items() if need) for resources in alive)
    if room == 0:
        raise AutopruneError(
            f"no node of the Ray cluster has {cpus} CPUs and {gpus:g} GPUs", remedy="ask for fewer, or add nodes"
        )
    return room


def _secrets() -> list[str]:
    """But for what lets an actor speak to its own cluster."""
    return [name for name in secrets(os.environ) if not name.startswith("RAY_")]


def _without_secrets(runtime_env: Mapping[str, Any], *, threads: int) -> dict[str, Any]:
    """Ray starts workers in the environment of its node, which is ours where it was started from here."""
    variables = {**dict.fromkeys(_secrets(), ""), "OMP_NUM_THREADS": str(threads)}
    return {**runtime_env, "env_vars": {**variables, **runtime_env.get("env_vars", {})}}
