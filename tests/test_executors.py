"""Executors: the same outcomes everywhere, whatever candidates do to the process that measures them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

import autoprune
import fake_scorer
from autoprune.errors import AutopruneError
from autoprune.search.executors import InProcess, OnRay, Processes
from autoprune.search.executors.environment import allowed, secrets
from autoprune.search.protocol import Executor, Outcome, Task
from fake_scorer import FakeRecipe

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="worker processes need POSIX")
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")


@pytest.fixture(scope="module", autouse=True)
def light_package(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Workers find an `autoprune` whose parts are the real ones, but which does not import torch by itself."""
    folder = tmp_path_factory.mktemp("light")
    (folder / "autoprune").mkdir()
    (folder / "autoprune" / "__init__.py").write_text(f"__path__ = {list(autoprune.__path__)!r}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield os.pathsep.join([str(folder), str(Path(__file__).parent)])


def _measure(executor: Executor, *programs: str, rung: str = "long") -> dict[str, Outcome]:
    """Outcomes by program, without what differs from run to run."""
    with closing(executor):
        return {
            task.program: replace(outcome, seconds=0.0, peak_bytes=None)
            for task, outcome in executor.run(Task(rung, program) for program in programs)
        }


def _alive(pid: int) -> bool:
    """Zombies count: a process that nobody waited for is still there."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while not (holds := condition()) and time.monotonic() < end:
        time.sleep(0.02)
    return holds


PROGRAMS = [*"abcdefgh", "raise words", "print", "π \ud800", "allocate"]


@pytest.mark.parametrize("workers", [1, 3])
def test_outcomes_do_not_depend_on_where(workers: int) -> None:
    expected = _measure(InProcess(FakeRecipe()), *PROGRAMS)
    assert _measure(Processes(FakeRecipe(), workers), *PROGRAMS) == expected
    assert expected["raise words"].error == "KeyError: 'words'"
    assert expected["allocate"].error == "out of memory"
    assert expected["a"].damage == ord("a") / 7


def test_tasks_are_taken_when_there_is_room_and_workers_started_when_needed(tmp_path: Path) -> None:
    taken: list[str] = []

    def tasks() -> Iterator[Task]:
        for program in "abcdef":
            taken.append(program)
            yield Task("long", program)

    with closing(Processes(FakeRecipe(ids=tmp_path), 2)) as executor:
        assert list(executor.run([])) == []
        assert not list(tmp_path.iterdir())
        assert len(list(executor.run([Task("long", "a")]))) == 1
        assert len(list(tmp_path.iterdir())) == 1
        run = executor.run(tasks())
        next(run)
        assert taken == ["a", "b"]
        run.close()  # pyright: ignore[reportAttributeAccessIssue]
        # What was under way is not heard in a later run.
        assert [task.program for task, _ in executor.run([Task("long", "z")])] == ["z"]


def test_a_candidate_can_hang_exit_or_crash_and_others_are_measured() -> None:
    deadly = ["hang", "exit 3", f"signal {signal.SIGKILL:d}", f"signal {signal.SIGSEGV:d}"]
    with closing(Processes(FakeRecipe(), 2)) as executor:
        tasks = [Task("short" if program == "hang" else "long", program) for program in [*deadly, *"abcdef"]]
        outcomes = {task.program: outcome for task, outcome in executor.run(tasks)}
    assert [outcomes[program].error for program in deadly] == [
        "timed out after 0.5 s",
        "the worker died (exit code 3)",
        "the worker died (signal 9)",
        "the worker died (signal 11)",
    ]
    assert 0.5 <= outcomes["hang"].seconds < 5
    assert [outcomes[program].damage for program in "abcdef"] == [ord(program) / 7 for program in "abcdef"]


def test_a_death_that_does_not_happen_again_is_not_held_against_the_candidate(tmp_path: Path) -> None:
    outcomes = _measure(Processes(FakeRecipe(note=tmp_path / "died"), 2), "once", "b", "c")
    assert [outcomes[program].error for program in ("once", "b", "c")] == ["", "", ""]


def test_a_dead_worker_is_noticed_though_its_child_holds_on_to_the_connection() -> None:
    assert _measure(Processes(FakeRecipe(), 1), "fork")["fork"].error == "the worker died (exit code 4)"


def test_a_worker_killed_between_two_tasks_is_replaced(tmp_path: Path) -> None:
    with closing(Processes(FakeRecipe(ids=tmp_path), 1)) as executor:
        list(executor.run([Task("long", "a")]))
        (worker,) = (int(file.name) for file in tmp_path.iterdir())
        os.kill(worker, signal.SIGKILL)
        ((_, outcome),) = executor.run([Task("long", "b")])
        assert not outcome.error
        assert not _alive(worker)


@linux_only
def test_memory_is_limited_above_what_the_scorer_takes(tmp_path: Path) -> None:
    executor = Processes(FakeRecipe(ids=tmp_path), 1, memory_bytes=300 << 20)
    outcomes = _measure(executor, "hoard 200000000", "hoard 200000001", "hoard 400000000", "a")
    # The second is refused for what the first has left behind, and is granted in a fresh worker.
    assert [outcome.error for outcome in outcomes.values()] == ["", "", "out of memory", ""]
    assert len(list(tmp_path.iterdir())) == 3


@linux_only
def test_peak_memory_is_that_of_the_task() -> None:
    with closing(Processes(FakeRecipe(), 1)) as executor:
        tasks = [Task("long", program) for program in ("hoard 1", "hoard 200000000", "hoard 2")]
        small, large, after = (outcome.peak_bytes or 0 for _, outcome in executor.run(tasks))
    assert 5 << 20 < small < 150 << 20
    assert large - small > 190_000_000
    assert abs(after - large) < 20 << 20  # it is still there


def test_secrets_do_not_reach_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "HF_TOKEN", "AUTOPRUNE_API_KEY", "SOMETHING"):
        monkeypatch.setenv(name, "hush-hush")
    monkeypatch.setenv("AUTOPRUNE_CACHE", "/cache")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    figures = _measure(Processes(FakeRecipe(), 1, threads=2), "environment")["environment"].figures
    assert "hush-hush" not in str(figures)
    assert figures["names"]["AUTOPRUNE_CACHE"] == "/cache"
    assert figures["names"]["OMP_NUM_THREADS"] == "2"
    assert figures["path"][: len(sys.path)] == [path or os.getcwd() for path in sys.path]
    assert figures["group"] != os.getpgid(0)


def test_what_is_allowed() -> None:
    environment = {"HOME": "/h", "LC_ALL": "C", "CUDA_VISIBLE_DEVICES": "1", "AUTOPRUNE_SECRET": "s", "EDITOR": "vi"}
    assert set(allowed(environment)) == {"HOME", "LC_ALL", "CUDA_VISIBLE_DEVICES"}
    assert secrets(["HF_TOKEN", "db_password", "HOME"]) == ["HF_TOKEN", "db_password"]


def test_what_libraries_print_is_in_the_log(tmp_path: Path) -> None:
    assert not _measure(Processes(FakeRecipe(), 1, logs=tmp_path / "logs"), "print")["print"].error
    log = (tmp_path / "logs" / "worker-0.log").read_text()
    assert "being loaded" in log
    assert "more words" in log


def test_figures_that_are_no_json_are_an_error_of_the_outcome() -> None:
    assert "not plain JSON" in _measure(Processes(FakeRecipe(), 1), "tensor")["tensor"].error


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        ("mendable", "m: no such model; give another"),
        ("bug", "the scorer cannot be made here (TypeError: cannot add things); make it in process to see where"),
        ("death", "workers die while they make their scorer (signal 9); "),
    ],
)
def test_a_scorer_that_cannot_be_made_is_one_error(failure: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(AutopruneError) as caught:
        _measure(Processes(FakeRecipe(failure=failure, ids=tmp_path), 1), "a")
    assert str(caught.value).startswith(message)
    assert not any(_alive(int(file.name)) for file in tmp_path.iterdir())


def test_a_recipe_that_cannot_be_sent_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AutopruneError, match="cannot be sent"):
        Processes(fake_scorer.Unpicklable(), 1)
    monkeypatch.setattr(FakeRecipe, "__module__", "__main__")
    with pytest.raises(AutopruneError, match="define it in a module"):
        Processes(FakeRecipe(), 1)
    with pytest.raises(AutopruneError, match="at least 1"):
        Processes(FakeRecipe(), 0)


@pytest.mark.parametrize("death", [signal.SIGKILL, signal.SIGINT])
def test_no_worker_outlives_the_search(death: signal.Signals, tmp_path: Path, light_package: str) -> None:
    script = f"import fake_scorer; fake_scorer.measure({str(tmp_path)!r})"
    environment = {**os.environ, "PYTHONPATH": light_package}
    with subprocess.Popen([sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, text=True) as parent:
        try:
            assert parent.stdout is not None
            assert {parent.stdout.readline() for _ in "ab"} == {'"a"\n', '"b"\n'}
            assert _wait_until(lambda: len(list(tmp_path.iterdir())) == 2)
            time.sleep(0.2)  # both hang now
            workers = [int(file.name) for file in tmp_path.iterdir()]
            assert all(map(_alive, workers))
            parent.send_signal(death)
            if death == signal.SIGINT:
                assert parent.stdout.readline() == "interrupted\n"
                assert not any(map(_alive, workers))
            else:
                assert _wait_until(lambda: not any(map(_alive, workers)))
        finally:
            parent.kill()


def test_an_error_of_whoever_makes_the_tasks_leaves_no_worker(tmp_path: Path) -> None:
    def tasks() -> Iterator[Task]:
        yield from (Task("long", "a"), Task("long", "hang"))
        raise RuntimeError("no more")

    executor = Processes(FakeRecipe(ids=tmp_path), 2)
    with pytest.raises(RuntimeError, match="no more"):
        list(executor.run(tasks()))
    assert not any(_alive(int(file.name)) for file in tmp_path.iterdir())


RAY_NODE = {"num_cpus": 1, "object_store_memory": 100 << 20}


def test_a_cluster_measures_the_same_and_survives_the_loss_of_a_node(
    light_package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster  # pyright: ignore[reportMissingImports]

    monkeypatch.setenv("OPENAI_API_KEY", "hush-hush")
    cluster = Cluster(initialize_head=True, head_node_args={**RAY_NODE, "num_cpus": 0, "include_dashboard": False})
    lost, _ = cluster.add_node(**RAY_NODE), cluster.add_node(**RAY_NODE)
    on_ray = {"address": cluster.address, "runtime_env": {"env_vars": {"PYTHONPATH": light_package}}}
    recipe = FakeRecipe(timeout_s={"short": 0.5})
    programs = ["a", "raise words", "allocate", *(f"sleep 0.{tenths}" for tenths in range(1, 9))]

    def tasks() -> Iterator[Task]:
        yield from (Task("long", program) for program in programs[:6])
        cluster.remove_node(lost, allow_graceful=False)
        yield from (Task("long", program) for program in programs[6:])

    try:
        with closing(OnRay(recipe, **on_ray)) as executor:
            outcomes = dict(executor.run(tasks()))
            deadly = [Task("short", "hang"), Task("long", "exit 3"), Task("long", "environment")]
            errors = [outcome.error for _, outcome in executor.run(deadly[:2])]
            ((_, seen),) = executor.run(deadly[2:])
        expected = _measure(InProcess(recipe), *programs)
        assert {
            task.program: replace(outcome, seconds=0.0, peak_bytes=None) for task, outcome in outcomes.items()
        } == expected
        assert errors[0] == "timed out after 0.5 s"
        assert errors[1].startswith("the worker died (The actor")
        assert "hush-hush" not in str(seen.figures)
        with pytest.raises(AutopruneError, match="no such model; give another"):
            _measure(OnRay(FakeRecipe(failure="mendable"), **on_ray), "a")
        with pytest.raises(AutopruneError, match="No module named"):
            _measure(OnRay(recipe, cluster.address), "a")
    finally:
        cluster.shutdown()


def test_ray_is_asked_for_when_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(AutopruneError, match="pip install 'autoprune\\[ray\\]'"):
        OnRay(FakeRecipe())
