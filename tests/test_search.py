"""The search as a whole: what it keeps, in which order it measures, and that killing it makes no difference."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import time
from contextlib import closing
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from autoprune import algorithms
from autoprune.errors import AutopruneError
from autoprune.language import read_program
from autoprune.search.account import account, best, reasoning
from autoprune.search.archive import Archive, Call
from autoprune.search.graph import Graph
from autoprune.search.protocol import Answer, Outcome, Task
from fake_search import ROOTS, RUNGS, FakeExecutor, Scripted, contents, searched

WANDA = algorithms.load("wanda")


def reply(body: str, **fields: str) -> str:
    lines = [f"{name}: {text}" for name, text in fields.items()]
    return "\n".join([*lines, "program:", "```python", f"def score(weight, input_norm):\n    return {body}", "```"])


# ---------------------------------------------------------------- what it does


def test_every_proposal_has_an_outcome_and_every_program_an_edge(tmp_path: Path):
    archive = searched(tmp_path)
    proposals, edges = archive.proposals(), {edge.step: edge for edge in archive.edges()}
    assert [proposal.step for proposal in proposals] == list(range(-len(ROOTS), 24))
    assert {proposal.step for proposal in proposals if proposal.digest} == set(edges)
    assert all(edge.parents and edge.operator in ("mutate", "combine", "simplify", "transfer")
               for step, edge in edges.items() if step >= 0)  # fmt: skip
    assert archive.is_sound()


def test_it_goes_on_only_with_what_is_promising_or_drawn(tmp_path: Path):
    executor = FakeExecutor()
    searched(tmp_path, executor=executor, evaluations=60)
    count = {rung: sum(task.rung == rung for task in executor.asked) for rung in RUNGS}
    assert count["probe"] > count["quick"] > count["full"] >= 3


def test_no_program_is_measured_twice(tmp_path: Path):
    executor = FakeExecutor()
    searched(tmp_path, executor=executor, evaluations=60)
    assert len(executor.asked) == len(set(executor.asked))


def test_what_does_the_same_inherits_the_figures_and_is_told_as_a_duplicate(tmp_path: Path):
    archive = searched(tmp_path, evaluations=60)
    duplicates = [node for node in archive.nodes() if node.same_as]
    assert duplicates
    graph = Graph(archive, RUNGS)
    for node in duplicates:
        assert graph.nodes[node.same_as or ""].same_as is None
        assert graph.outcome(node.digest, "probe") == archive.evaluations()[node.same_as or "", "probe"]
        assert (node.digest, "quick") not in archive.evaluations()
    details = {proposal.detail for proposal in archive.proposals() if proposal.outcome == "duplicate"}
    assert any("keeps the same weights as" in detail for detail in details)


def test_what_a_search_started_from_may_be_what_it_recommends(tmp_path: Path):
    class Sobering(FakeExecutor):
        """On fresh tokens all that was found is worse than Wanda."""

        def run(self, tasks: Any) -> Any:
            for task, found in super().run(tasks):
                better = task.rung == "fresh" and task.program == WANDA.canonical
                yield task, replace(found, damage=0.1, parts=(0.1,) * 4) if better else found

    archive = searched(tmp_path, executor=Sobering())
    assert WANDA.digest not in archive.get("finalists")
    assert best(archive, RUNGS, "fresh") == WANDA.digest


def test_the_finalists_and_the_baselines_are_measured_on_fresh_tokens(tmp_path: Path):
    archive = searched(tmp_path)
    fresh = {digest for digest, rung in archive.evaluations() if rung == "fresh"}
    assert fresh == {*archive.get("finalists"), WANDA.digest}
    told = account(archive, RUNGS, "fresh")
    first = told.rows[0]
    assert first.digest == archive.get("finalists")[0]
    difference = first.differences[0]
    outcomes = archive.evaluations()
    own, other = outcomes[first.digest, "fresh"], outcomes[WANDA.digest, "fresh"]
    assert own.damage is not None
    assert other.damage is not None
    assert difference.mean == pytest.approx(own.damage - other.damage)
    assert difference.low <= difference.mean <= difference.high


def test_a_failing_rung_is_an_outcome(tmp_path: Path):
    class Failing(FakeExecutor):
        def run(self, tasks: Any) -> Any:
            for task, found in super().run(tasks):
                yield task, Outcome(error="timed out after 5 s") if "abs" not in task.program else found

    bad = "def score(weight):\n    return square(weight)"
    archive = searched(tmp_path, proposer=Scripted([f"```\n{bad}\n```"]), executor=Failing(), evaluations=1)
    assert archive.proposals()[-1].outcome == "failed"
    assert "timed out" in archive.proposals()[-1].detail


def test_the_order_of_answers_and_figures_changes_nothing(tmp_path: Path):
    first, second = (searched(tmp_path / str(order), executor=FakeExecutor(order=order)) for order in (1, 2))
    assert contents(first) == contents(second)


def test_another_seed_is_another_search(tmp_path: Path):
    first, second = (searched(tmp_path / str(seed), seed=seed) for seed in (1, 2))
    assert contents(first) != contents(second)


# ---------------------------------------------------------------- replies


def test_a_reply_is_read_measured_and_judged(tmp_path: Path):
    text = reply(
        "square(abs(weight)) * input_norm", diagnosis="Too flat.", hypothesis="Squares help.", predicted="-0.1"
    )
    archive = searched(tmp_path, proposer=Scripted([text]), evaluations=1)
    edge = archive.edges()[-1]
    assert (edge.diagnosis, edge.hypothesis, edge.predicted) == ("Too flat.", "Squares help.", -0.1)
    outcomes = archive.evaluations()
    child, parent = (outcomes[digest, "probe"] for digest in (edge.child, edge.parents[0]))
    assert child.damage is not None
    assert parent.damage is not None
    if (edge.child, "quick") not in outcomes:
        assert edge.observed == pytest.approx(child.damage - parent.damage)
    assert edge.verdict in ("confirmed", "refuted", "inconclusive")


def test_a_program_that_is_known_goes_back_once(tmp_path: Path):
    new = "def score(weight, input_std):\n    return abs(weight) * input_std"
    proposer = Scripted([f"program:\n```\n{algorithms.load('wanda').canonical}```"], [f"program:\n```\n{new}\n```"])
    archive = searched(tmp_path, proposer=proposer, evaluations=1, batch=1)
    first, second = proposer.requests
    assert (first.round, second.round) == (0, 1)
    assert "was there before (damage" in second.prompt
    assert algorithms.load("wanda").digest in first.known
    (proposal,) = [proposal for proposal in archive.proposals() if proposal.step == 0]
    assert (proposal.outcome, proposal.digest) == ("measured", read_program(new).digest)


def test_a_program_that_is_sent_again_after_that_is_a_duplicate(tmp_path: Path):
    reply = f"program:\n```\n{algorithms.load('wanda').canonical}```"
    archive = searched(tmp_path, proposer=Scripted([reply], [reply]), evaluations=1, batch=1)
    (proposal,) = [proposal for proposal in archive.proposals() if proposal.step == 0]
    assert (proposal.outcome, proposal.digest) == ("duplicate", algorithms.load("wanda").digest)


def test_an_answer_is_used_again_for_the_same_question_only(tmp_path: Path):
    """A search that goes on with another batch asks some steps from other parents."""
    searched(tmp_path, evaluations=8, batch=8)
    archive = Archive.open(tmp_path / "archive.sqlite")
    archive._connection.execute("DELETE FROM proposal WHERE step >= 0")
    archive._connection.execute("DELETE FROM parent WHERE step >= 0")
    archive._connection.execute("DELETE FROM edge WHERE step >= 0")
    archive._connection.execute("DELETE FROM node WHERE step >= 0")
    archive._connection.commit()
    archive.close()
    archive = searched(tmp_path, evaluations=8, batch=2)
    graph = Graph(archive, RUNGS)
    parents = {edge.step: edge.parents[0] for edge in graph.edges if edge.step >= 0}
    for call in archive.calls():
        if call.step in parents:
            assert f"```python\n{graph.nodes[parents[call.step]].canonical}```" in call.prompt


def test_a_refused_reply_is_repaired_once_with_the_checkers_words(tmp_path: Path):
    proposer = Scripted(
        [reply("abs(weight) * input_nrm"), "no idea"], [reply("abs(weight) * sqrt(input_norm)"), "still none"]
    )
    archive = searched(tmp_path, proposer=proposer, evaluations=2)
    first, second = archive.proposals()[-2:]
    assert first.digest is not None
    assert first.detail.startswith("repaired: ")
    assert second.outcome == "refused"
    repair = next(request for request in proposer.requests if request.round == 1)
    assert "unknown name 'input_nrm'" in repair.prompt
    assert "did you mean 'input_norm'?" in repair.prompt
    assert [request.round for request in proposer.requests].count(1) == 2


def test_what_is_frozen_is_refused(tmp_path: Path):
    frozen = '```\nupdate = "admm"\n\ndef score(weight, input_norm):\n    return abs(weight) * input_norm\n```'
    archive = searched(tmp_path, proposer=Scripted([frozen]), evaluations=1)
    assert archive.proposals()[-1].outcome == "refused"
    assert "update is frozen at 'none'" in archive.proposals()[-1].detail


def test_no_answer_is_an_outcome(tmp_path: Path):
    archive = searched(tmp_path, proposer=Scripted([]), evaluations=2)
    assert [proposal.outcome for proposal in archive.proposals()[-2:]] == ["silent", "silent"]


# ---------------------------------------------------------------- budgets


@pytest.mark.parametrize(
    ("budget", "expected"), [({"budget_tokens": 700}, 6), ({"budget_usd": 0.0}, 0), ({"budget_s": 0.0}, 0)]
)
def test_a_budget_ends_a_search_between_batches(tmp_path: Path, budget: dict[str, Any], expected: int):
    replies = [reply(f"abs(weight) * input_norm ** {1 + step / 100}") for step in range(12)]
    archive = searched(tmp_path, proposer=Scripted(replies), evaluations=12, **budget)
    assert archive.proposals()[-1].step == expected - 1
    assert archive.get("finalists")  # it ends as any other


def test_a_search_that_a_budget_stopped_chooses_its_finalists_anew(tmp_path: Path):
    searched(tmp_path / "stopped", evaluations=24, budget_s=0.0).close()
    assert contents(searched(tmp_path / "stopped", evaluations=24))["proposals"]
    names = Archive.open(tmp_path / "stopped" / "archive.sqlite")
    whole = searched(tmp_path / "whole", evaluations=24)
    assert len(names.proposals()) == len(whole.proposals())
    assert names.get("finalists") != names.get("names")
    assert set(names.get("finalists")) <= {node.digest for node in names.nodes()}
    assert names.get("chosen after 0") != names.get("chosen after 24")


def test_where_nothing_can_be_measured_it_says_why(tmp_path: Path):
    class Broken(FakeExecutor):
        def run(self, tasks: Any) -> Any:
            yield from ((task, Outcome(error="out of memory")) for task in tasks)

    with pytest.raises(AutopruneError, match=r"no program could be measured \(out of memory\)"):
        searched(tmp_path, executor=Broken())


def test_more_evaluations_go_on_where_it_stopped(tmp_path: Path):
    searched(tmp_path, evaluations=12).close()
    executor = FakeExecutor()
    archive = searched(tmp_path, evaluations=24, executor=executor)
    assert archive.proposals()[-1].step == 23
    assert len(executor.asked) == len(set(executor.asked))


def test_a_search_that_is_done_does_nothing_more(tmp_path: Path):
    before = contents(searched(tmp_path))
    executor = FakeExecutor()
    assert contents(searched(tmp_path, executor=executor)) == before
    assert executor.asked == []


# ---------------------------------------------------------------- killed


def killed_after(folder: Path, seconds: float) -> bool:
    """Run the search in a process that is killed after a while; whether it was."""
    child = os.fork()
    if child == 0:
        try:
            searched(folder, executor=FakeExecutor(pause_s=0.001))
        finally:
            os._exit(0)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_killed_fifty_times_it_ends_with_the_same_archive(tmp_path: Path):
    whole = contents(searched(tmp_path / "whole"))
    rng, kills, run = random.Random(0), 0, 0
    while kills < 50:
        folder, longest = tmp_path / str(run), 0.15
        while killed_after(folder, rng.uniform(0.0, longest)):
            kills, longest = kills + 1, 1.05 * longest  # on a slow machine nothing might ever be done in time
            if folder.exists():  # a busy machine may have killed it before its first line
                assert Archive.open(folder / "archive.sqlite").is_sound()
        assert contents(searched(folder)) == whole
        run += 1


def test_a_killed_search_asks_and_measures_nothing_again(tmp_path: Path):
    class Dies(FakeExecutor):
        def run(self, tasks: Any) -> Any:
            for task, found in super().run(tasks):
                yield task, found
                if len(self.asked) == 12:
                    raise KeyboardInterrupt

    replies = [reply(f"abs(weight) * input_norm ** {1 + step / 100}") for step in range(12)]
    first, executor = Scripted(replies), Dies()
    with pytest.raises(KeyboardInterrupt):
        searched(tmp_path, proposer=first, executor=executor, evaluations=12)
    again, rest = Scripted(replies), FakeExecutor()
    archive = searched(tmp_path, proposer=again, executor=rest, evaluations=12)
    assert not {request.step for request in first.requests} & {request.step for request in again.requests}
    assert not set(executor.asked) & set(rest.asked)
    assert archive.proposals()[-1].step == 11


# ---------------------------------------------------------------- the archive


def test_a_file_that_is_no_archive_is_refused(tmp_path: Path):
    file = tmp_path / "archive.sqlite"
    file.write_bytes(b"not a database, " * 100)
    with pytest.raises(AutopruneError, match="cannot be used as an archive"):
        Archive.open(file)


def test_another_database_is_refused(tmp_path: Path):
    file = tmp_path / "archive.sqlite"
    with sqlite3.connect(file) as other:
        other.execute("CREATE TABLE t (x)")
    other.close()
    with pytest.raises(AutopruneError, match="an archive of format 0"):
        Archive.open(file)


def test_a_flipped_bit_is_noticed_or_makes_no_difference(tmp_path: Path):
    with closing(searched(tmp_path)) as archive:
        whole = contents(archive)
    file, rng, refused = tmp_path / "archive.sqlite", random.Random(0), 0
    content = file.read_bytes()
    for _ in range(100):
        bit = rng.randrange(8 * len(content))
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        file.write_bytes(changed)
        try:
            with closing(Archive.open(file)) as archive:
                assert contents(archive) == whole
        except AutopruneError as error:
            refused += 1
            assert error.remedy  # noqa: PT017  it may also go on
        for log in ("archive.sqlite-wal", "archive.sqlite-shm"):
            (tmp_path / log).unlink(missing_ok=True)
    assert refused > 50


def test_nothing_that_is_written_hangs_on_the_log(tmp_path: Path):
    """SQLite silently drops what follows a flipped bit in a write-ahead log."""
    log, sizes = tmp_path / "archive.sqlite-wal", []

    class Looks(FakeExecutor):
        def run(self, tasks: Any) -> Any:
            for task, found in super().run(tasks):
                yield task, found
                sizes.append(log.stat().st_size)  # all that was found before is written

    searched(tmp_path, executor=Looks())
    assert len(sizes) > 20
    assert not any(sizes)


def test_a_reader_does_not_keep_it_waiting(tmp_path: Path):
    with closing(searched(tmp_path)) as archive, closing(sqlite3.connect(tmp_path / "archive.sqlite")) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM node").fetchall()
        said: list[str] = []
        archive._connection.set_trace_callback(said.append)
        call = Call(step=1000, round=0, prompt="", answer=Answer(text="x", model="", seconds=0))
        archive.add_call(call)
        assert said[-3:-1] == ["PRAGMA busy_timeout = 0", "PRAGMA wal_checkpoint(TRUNCATE)"]
        assert (tmp_path / "archive.sqlite-wal").stat().st_size
        reader.execute("COMMIT")
        archive.add_call(call)
        assert not (tmp_path / "archive.sqlite-wal").stat().st_size
        assert archive._rows("PRAGMA busy_timeout") == [(10_000,)]


def test_an_archive_from_before_there_were_checksums_gets_them(tmp_path: Path):
    with closing(searched(tmp_path)) as archive:
        whole = contents(archive)
        archive._connection.execute("DROP TABLE seal")
    with closing(Archive.open(tmp_path / "archive.sqlite")) as archive:
        assert contents(archive) == whole
        assert archive.is_sound()
        archive._connection.execute("UPDATE evaluation SET damage = damage + 0.5 WHERE rung = 'full'")
        assert not archive.is_sound()


def test_a_full_disk_is_one_line_and_the_search_goes_on_when_there_is_room(tmp_path: Path):
    whole = contents(searched(tmp_path / "whole"))
    open_ = Archive.open.__func__
    for pages in (24, 26, 28, 30):

        def small(cls: type[Archive], path: Path, pages: int = pages) -> Archive:
            archive = open_(cls, path)
            archive._connection.execute(f"PRAGMA max_page_count = {pages}")
            return archive

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Archive, "open", classmethod(small))
            with pytest.raises(AutopruneError, match="disk is full") as caught:
                searched(tmp_path / "small")
            assert "free space" in caught.value.remedy
    assert contents(searched(tmp_path / "small")) == whole


def test_half_a_surrogate_pair_can_be_stored(tmp_path: Path):
    archive = searched(tmp_path, proposer=Scripted(["\ud83d no program"]), evaluations=1)
    assert archive.proposals()[-1].outcome == "refused"


# ---------------------------------------------------------------- what it tells


def test_the_reasoning_leads_from_a_root_to_the_program(tmp_path: Path):
    archive = searched(tmp_path, evaluations=40)
    graph = Graph(archive, RUNGS)
    deepest = max(graph.nodes, key=lambda digest: len(graph.chain(digest)))
    chain = graph.chain(deepest)
    assert len(chain) >= 2
    lines = reasoning(archive, RUNGS, deepest[:10])
    assert lines[0].startswith("root ")
    assert [line for line in lines if line.startswith("step ")] == [
        line for edge in chain for line in lines if line.startswith(f"step {edge.step}: ")
    ]
    assert all(before.child == after.parents[0] for before, after in pairwise(chain))


def test_an_unknown_hash_is_one_clear_line(tmp_path: Path):
    archive = searched(tmp_path, evaluations=1)
    with pytest.raises(AutopruneError, match="no program 'zzz'"):
        reasoning(archive, RUNGS, "zzz")
    with pytest.raises(AutopruneError, match="no program ''"):
        reasoning(archive, RUNGS, "")


def test_outcomes_are_what_they_were(tmp_path: Path):
    archive = searched(tmp_path, evaluations=1)
    found = archive.evaluations()[WANDA.digest, "probe"]
    from fake_search import outcome

    assert found == outcome(Task("probe", WANDA.canonical))
