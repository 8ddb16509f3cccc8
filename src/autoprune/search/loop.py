"""The search: batches of steps, each asked for, checked, measured as far as it deserves, and written down.

All steps of a batch start from what was known before it, so it makes no difference in which order answers and figures
come, or how many workers there are. What comes is kept at once (`Archive.add_call`, `add_evaluation`), and a step draws
its chances from the seed and its own number. So a search that was killed goes on by doing its last batch again, with
the answers and figures that are there: it ends where it would have ended.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from autoprune.errors import AutopruneError
from autoprune.language import Program, read_program
from autoprune.language.space import Space
from autoprune.search.archive import Archive, Call, Edge, Evaluation, Node, Proposal
from autoprune.search.graph import Graph, verdict
from autoprune.search.prompt import Prompter
from autoprune.search.protocol import Answer, Executor, Outcome, Proposer, Request, Task
from autoprune.search.reply import Reply, parse_reply, sound
from autoprune.search.traits import traits

MEASURED, DUPLICATE, REFUSED, FAILED, SILENT = "measured", "duplicate", "refused", "failed", "silent"
"""What becomes of a proposal: it was measured; it does what an earlier one does; the checker refused it; measuring
failed; no answer came."""

_WEIGHTS = {"mutate": 3, "combine": 3, "simplify": 1, "transfer": 3}  # about as often as each has helped (LOG.md)
_TWO_PARENTS = ("combine", "transfer")

_BETTER_HALF = 0.5  # of what the first rung has measured goes on to the second
_BEST_OF_BATCH = 1 / 8  # of a batch may go on to the last rung, which takes a prune,
_TOP = 3  # if only so few that have been there are better on the rung before
_ANYWAY = (1 / 8, 1 / 24)  # share that goes on all the same, to learn what a rung's figures are worth
_TRUSTED = 0.3  # a rung whose rank correlation with the next is less decides nothing


@dataclass(frozen=True, kw_only=True)
class Settings:
    """`evaluations` proposals in all, `batch` of them from the same knowledge. `rungs` go from the cheapest to the
    real one; `fresh` is the last again, on tokens that chose nothing, for the `finalists`. A budget of None is no
    limit."""

    space: Space
    evaluations: int
    seed: int = 0
    batch: int = 4
    rungs: tuple[str, ...] = ("probe", "quick", "full")
    fresh: str = "fresh"
    finalists: int = 3
    budget_s: float | None = None
    budget_usd: float | None = None
    budget_tokens: int | None = None


class Watch(Protocol):
    """Told how a search goes."""

    def started(self, graph: Graph, done: int, total: int) -> None: ...

    def measured(self, rung: str, outcome: Outcome) -> None: ...

    def step(self, proposal: Proposal, edge: Edge | None) -> None: ...

    def batch(self, graph: Graph, done: int) -> None: ...

    def note(self, text: str) -> None: ...


@dataclass
class _Step:
    """A proposal on its way."""

    number: int
    operator: str = "root"
    parents: tuple[str, ...] = ()
    prompt: str = ""
    reply: Reply = field(default_factory=Reply)
    program: Program | None = None
    same_as: str | None = None
    outcome: str = ""
    detail: str = ""

    def end(self, outcome: str, detail: str) -> None:
        self.outcome, self.detail, self.program = outcome, detail, None

    @property
    def is_new(self) -> bool:
        return self.program is not None and self.same_as is None and not self.outcome


class Search:
    """One search on one archive. `alike` says whether two signatures are of programs that do the same."""

    def __init__(
        self,
        settings: Settings,
        archive: Archive,
        proposer: Proposer,
        executor: Executor,
        prompter: Prompter,
        alike: Callable[[str, str], bool],
        watch: Watch,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.settings, self.archive, self.proposer, self.executor = settings, archive, proposer, executor
        self.prompter, self.alike, self.watch, self.clock = prompter, alike, watch, clock

    def run(self, roots: Sequence[Program], baselines: Callable[[Graph], Sequence[Program]] = lambda graph: ()) -> None:
        """Search until the evaluations or a budget are spent, then measure the best, and `baselines`, once more on
        fresh tokens. Goes on where the archive ends."""
        settings, since = self.settings, self.clock()
        spent_before = float(self.archive.get("seconds", 0.0))

        def seconds() -> float:
            return spent_before + self.clock() - since

        done = 1 + max((proposal.step for proposal in self.archive.proposals()), default=-len(roots) - 1)
        self.watch.started(self._graph(), max(done, 0), settings.evaluations)
        if done < 0:
            self.archive.set("names", {root.digest: root.name for root in reversed(roots)})
            self._batch([_Step(done + index, program=root) for index, root in enumerate(roots)], seconds)
            done = 0
        while done < settings.evaluations and not self._spent(seconds()):
            numbers = range(done, min(done + settings.batch, settings.evaluations))
            self._batch(self._asked(numbers), seconds)
            done = numbers.stop
        self._finals(baselines, done)
        with self.archive.transaction():
            self.archive.set("seconds", seconds())

    def _graph(self) -> Graph:
        return Graph(self.archive, self.settings.rungs)

    def _spent(self, seconds: float) -> bool:
        """Whether a budget is used up; says so."""
        tokens, usd = self.archive.cost()
        for name, used, budget in (
            ("seconds", seconds, self.settings.budget_s),
            ("US dollars", usd, self.settings.budget_usd),
            ("tokens", tokens, self.settings.budget_tokens),
        ):
            if budget is not None and used >= budget:
                self.watch.note(f"the budget of {budget:g} {name} is used up ({used:.6g})")
                return True
        return False

    # ---------------------------------------------------------------- asking

    def _asked(self, numbers: range) -> list[_Step]:
        """Steps with their programs, as far as replies have any that pass the check."""
        graph = self._graph()
        visits = graph.visits()
        steps = []
        for number in numbers:
            rng = self._rng(number)
            operator = rng.choices(list(_WEIGHTS), list(_WEIGHTS.values()))[0]
            parents = (graph.choose(rng, visits),)
            if operator in _TWO_PARENTS:
                parents += (graph.choose(rng, {}, parents[0]),)
            visits[parents[0]] = visits.get(parents[0], 0) + 1
            prompt = self.prompter.prompt(graph, operator, parents)
            steps.append(_Step(number, operator, parents, prompt))
        answers = self._answers(graph, steps, [step.prompt for step in steps], 0)
        for step in steps:
            self._read(step, answers[step.number])
        for step in steps:
            if step.program and step.program.digest in graph.nodes:
                step.detail = self.prompter.known(graph, step.program.digest)
        wrong = [step for step in steps if step.outcome == REFUSED or (step.program and step.detail)]
        wrong = wrong if self.proposer.repairs else []
        prompts = [self.prompter.repair(step.prompt, answers[step.number].text, step.detail) for step in wrong]
        for number, answer in self._answers(graph, wrong, prompts, 1).items():
            step = next(step for step in wrong if step.number == number)
            first = step.detail
            if answer.error:
                continue  # the refusal stands
            self._read(step, answer)
            step.detail = f"{step.detail}; before its repair: {first}" if step.outcome else f"repaired: {first}"
        return steps

    def _rng(self, number: int, purpose: str = "") -> random.Random:
        return random.Random(f"{self.settings.seed}:{number}:{purpose}")

    def _answers(self, graph: Graph, steps: Sequence[_Step], prompts: Sequence[str], turn: int) -> dict[int, Answer]:
        """By step; from the archive where the same has been asked before (with another batch, a step may ask else)."""
        asked = {step.number: sound(prompt) for step, prompt in zip(steps, prompts, strict=True)}
        calls = [call for step in steps for call in self.archive.calls(step.number) if call.round == turn]
        known = frozenset(graph.nodes)
        answers = {call.step: call.answer for call in calls if call.prompt == asked[call.step]}
        requests = [
            Request(
                step=step.number,
                round=turn,
                operator=step.operator,
                parents=tuple(graph.nodes[digest].canonical for digest in step.parents),
                prompt=prompt,
                seed=self._rng(step.number, f"answer {turn}").getrandbits(48),
                known=known,
            )
            for step, prompt in zip(steps, prompts, strict=True)
            if step.number not in answers
        ]
        for request, answer in self.proposer.propose(requests) if requests else ():
            answers[request.step] = answer
            self.archive.add_call(Call(step=request.step, round=turn, prompt=request.prompt, answer=answer))
        return answers

    def _read(self, step: _Step, answer: Answer) -> None:
        """Take the program out of an answer and check it."""
        step.outcome = step.detail = ""
        if answer.error:
            step.end(SILENT, answer.error)
            return
        step.reply = parse_reply(answer.text)
        if not step.reply.program:
            step.end(REFUSED, "no program was found in the reply")
            return
        try:
            step.program = read_program(step.reply.program)
        except AutopruneError as error:
            step.end(REFUSED, str(error))
            return
        if refusal := self.settings.space.refusal(step.program):
            step.end(REFUSED, refusal)

    # ---------------------------------------------------------------- measuring

    def _batch(self, steps: list[_Step], seconds: Callable[[], float]) -> None:
        graph, (probe, quick, full) = self._graph(), self.settings.rungs
        self._same_text(graph, steps)
        measured = self._measure(probe, [step for step in steps if step.is_new])
        self._same_behaviour(graph, steps, measured)
        going = [step for step in steps if step.is_new and self._goes_on(graph, probe, quick, step, measured)]
        measured |= self._measure(quick, going)
        going = [step for step in going if step.is_new]
        going.sort(key=lambda step: (measured[_digest(step), quick].damage, step.number))
        best = going[: max(1, round(_BEST_OF_BATCH * len(steps)))]
        drawn = [step for step in going[len(best) :] if self._is_drawn(step, full)]
        best = [step for step in best if self._goes_on(graph, quick, full, step, measured)]
        measured |= self._measure(full, [*best, *drawn])
        self._write(steps, seconds())

    def _same_text(self, graph: Graph, steps: Sequence[_Step]) -> None:
        known = set(graph.nodes)
        for step in steps:
            if step.program and step.program.digest in known:
                step.same_as, step.outcome, step.detail = step.program.digest, DUPLICATE, "the same program was there"
            elif step.program:
                known.add(step.program.digest)

    def _measure(self, rung: str, steps: Sequence[_Step]) -> dict[tuple[str, str], Outcome]:
        """Outcomes by digest and rung; from the archive where they have come before. A step that fails has ended."""
        known = self.archive.evaluations()
        programs = {step.program.canonical: step for step in steps if step.program}
        found: dict[tuple[str, str], Outcome] = {}
        waiting = []
        for text, step in programs.items():
            assert step.program
            key = step.program.digest, rung
            if key in known:
                found[key] = known[key]
            else:
                waiting.append(Task(rung, text))
        for task, outcome in self.executor.run(waiting) if waiting else ():
            digest = _digest(programs[task.program])
            self.archive.add_evaluation(Evaluation(digest=digest, rung=rung, outcome=outcome))
            self.watch.measured(rung, outcome)
            found[digest, rung] = outcome
        for step in steps:
            if (outcome := found[_digest(step), rung]).error:
                step.outcome, step.detail = FAILED, f"{rung}: {outcome.error}"
        return found

    def _same_behaviour(self, graph: Graph, steps: Sequence[_Step], measured: dict[tuple[str, str], Outcome]) -> None:
        """Find those that do what an earlier program does: one of the graph, or one before them in the batch."""
        probe = self.settings.rungs[0]
        known = [(digest, found.signature) for digest in graph.distinct if (found := graph.outcome(digest, probe))]
        for step in steps:
            if not step.is_new:
                continue
            signature = measured[_digest(step), probe].signature
            same = next((digest for digest, other in known if other and self.alike(signature, other)), None)
            if same:
                step.same_as, step.outcome = same, DUPLICATE
                step.detail = f"it keeps the same weights as {same}"
            else:
                known.append((_digest(step), signature))

    def _is_drawn(self, step: _Step, following: str) -> bool:
        """Whether a program goes on to a rung whatever its figures."""
        return self._rng(step.number, following).random() < _ANYWAY[self.settings.rungs.index(following) - 1]

    def _goes_on(
        self, graph: Graph, rung: str, following: str, step: _Step, measured: dict[tuple[str, str], Outcome]
    ) -> bool:
        """Whether a program deserves the next rung."""
        low = self.settings.rungs.index(rung) == 0
        if low and not step.parents:
            return True  # what is known from elsewhere is worth knowing here
        if self._is_drawn(step, following):
            return True
        correlation, _ = graph.correlation(rung, following)
        if low and correlation is not None and correlation < _TRUSTED:
            return True
        own = measured[_digest(step), rung].damage
        assert own is not None
        if low:
            batch = [outcome.damage for (_, of), outcome in measured.items() if of == rung]
            others = [found.damage for digest in graph.distinct if (found := graph.outcome(digest, rung))] + batch
            better = sum(other < own for other in others if other is not None)
            return better < _BETTER_HALF * len(others)
        others, _ = graph.both(rung, following)
        return sum(other < own for other in others) < _TOP

    # ---------------------------------------------------------------- writing down

    def _write(self, steps: Sequence[_Step], seconds: float) -> None:
        with self.archive.transaction():
            known = {node.digest for node in self.archive.nodes()}
            for step in steps:
                if step.program and step.program.digest not in known:
                    known.add(step.program.digest)
                    node = Node(
                        digest=step.program.digest,
                        canonical=step.program.canonical,
                        traits=traits(step.program),
                        step=step.number,
                        same_as=step.same_as,
                    )
                    self.archive.add_node(node)
            self.archive.set("seconds", seconds)
            # Effects need all nodes of the batch: a duplicate's may be a later one's.
            graph = self._graph()
            for step in steps:
                edge = _edge(graph, step)
                if edge:
                    self.archive.add_edge(edge)
                outcome = step.outcome or MEASURED
                digest = _digest(step) if step.program else None
                proposal = Proposal(step=step.number, outcome=outcome, detail=step.detail, digest=digest)
                self.archive.add_proposal(proposal)
                self.watch.step(proposal, edge)
        self.watch.batch(self._graph(), max(steps[-1].number + 1, 0))

    # ---------------------------------------------------------------- the last word

    def _finals(self, baselines: Callable[[Graph], Sequence[Program]], done: int) -> None:
        """Measure the best on the last rung, if they have not been there, then all finalists on fresh tokens."""
        full, graph = self.settings.rungs[-1], self._graph()
        # Written down first: half of the figures must not change the choice when a killed search goes on.
        name = f"chosen after {done}"
        chosen = self.archive.get(name)
        if chosen is None:
            compared = {program.name: program.canonical for program in baselines(graph)}
            chosen = {"promoted": graph.ranked[: self.settings.finalists], "baselines": compared}
            self.archive.set(name, chosen)
        waiting = [digest for digest in chosen["promoted"] if not graph.outcome(digest, full)]
        self._measure(full, [self._stored(graph, digest) for digest in waiting])
        finalists = self.finalists(self._graph())
        compared = {name: read_program(text) for name, text in chosen["baselines"].items()}
        steps = [self._stored(graph, digest) for digest in finalists]
        steps += [_Step(0, program=program) for program in compared.values() if program.digest not in finalists]
        self._measure(self.settings.fresh, steps)
        with self.archive.transaction():
            self.archive.set("finalists", finalists)
            self.archive.set("baselines", {name: program.digest for name, program in compared.items()})

    def finalists(self, graph: Graph) -> list[str]:
        """The best by the last rung."""
        full = self.settings.rungs[-1]
        measured = [digest for digest in graph.ranked if graph.outcome(digest, full)]
        return measured[: self.settings.finalists]

    def _stored(self, graph: Graph, digest: str) -> _Step:
        return _Step(0, program=read_program(graph.nodes[digest].canonical))


def _digest(step: _Step) -> str:
    assert step.program
    return step.program.digest


def _edge(graph: Graph, step: _Step) -> Edge | None:
    if step.program is None:
        return None
    observed = graph.observed(_digest(step), step.parents[0]) if step.parents else None
    return Edge(
        step=step.number,
        child=_digest(step),
        parents=step.parents,
        operator=step.operator,
        diagnosis=step.reply.diagnosis,
        hypothesis=step.reply.hypothesis,
        predicted=step.reply.predicted,
        observed=observed[0] if observed else None,
        noise=observed[1] if observed else None,
        verdict=verdict(step.operator, observed),
    )
