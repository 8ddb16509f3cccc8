"""The exact text of prompts (tests/golden), what goes first where they do not fit, and what the graph says in them.

`python tests/test_prompt.py` writes the golden files anew; read the difference before you commit it.
"""

from __future__ import annotations

import math
import random
import statistics
import tempfile
from collections import Counter
from pathlib import Path

import pytest

from autoprune.language import OPERATORS, read_program
from autoprune.language.space import Space
from autoprune.search.archive import Archive, Evaluation, Node
from autoprune.search.graph import Effect, Graph, spearman, verdict
from autoprune.search.prompt import CHARACTERS_PER_TOKEN, PLAIN, Prompter
from autoprune.search.protocol import Outcome
from autoprune.search.traits import traits
from fake_search import RUNGS, SPACE, FakeExecutor, Scripted, searched

GOLDEN = Path(__file__).parent / "golden"
ABOUT = "The model is tiny: 2 decoder blocks with 1 million prunable weights in linear layers (q, k)."


def scored(body: str, diagnosis: str, predicted: str) -> str:
    program = f"def score(weight, input_norm, input_std):\n    return {body}"
    return f"diagnosis: {diagnosis}\nhypothesis: it helps\npredicted: {predicted}\nprogram:\n```\n{program}\n```"


REPLIES = [
    scored("abs(weight) * sqrt(input_norm)", "outliers rule", "-0.1"),
    scored("abs(weight) * input_norm * input_std", "variance is ignored", "-0.2"),
    scored("abs(weight) * maximum(input_norm, input_std)", "means count twice", "-0.05"),
    scored("square(weight) * input_norm", "large weights count too little", "-0.3"),
    scored("abs(weight) * input_norm / sum(abs(weight))", "rows differ", "0.1"),
    scored('rank(abs(weight), over="rows") * input_norm', "columns differ", "-0.1"),
]


def archive(folder: Path) -> Archive:
    return searched(folder, proposer=Scripted(REPLIES), executor=FakeExecutor(), evaluations=6, batch=1)


def texts(graph: Graph) -> dict[str, str]:
    """The prompts that are kept as they are."""
    first, second = graph.ranked[:2]
    deepest = max(graph.ranked, key=lambda digest: len(graph.chain(digest)))

    def prompter(tokens: int, space: Space = SPACE, kind: str = "graph") -> Prompter:
        return Prompter(about=ABOUT, space=space, tokens=tokens, kind=kind)

    return {
        "whole": prompter(10_000).prompt(graph, "mutate", (deepest,)),
        "everything_free": prompter(10_000, Space.of("", pattern=True)).prompt(graph, "combine", (first, second)),
        "short": prompter(900).prompt(graph, "transfer", (first, second)),
        "least": prompter(1).prompt(graph, "simplify", (first,)),
        "plain": prompter(10_000, kind=PLAIN).prompt(graph, "mutate", (deepest,)),
        "repair": prompter(1).repair("The prompt.", "My reply.", "line 1, column 2: unknown name 'x'; known: weight"),
    }


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    return Graph(archive(tmp_path_factory.mktemp("search")), RUNGS)


@pytest.mark.parametrize("name", ["whole", "everything_free", "short", "least", "plain", "repair"])
def test_golden(graph: Graph, name: str):
    assert texts(graph)[name] + "\n" == (GOLDEN / f"{name}.txt").read_text("utf-8")


@pytest.mark.parametrize("tokens", [600, 900, 1200, 2000, 4000])
def test_a_prompt_keeps_to_its_budget_and_always_has_what_matters(graph: Graph, tokens: int):
    first = graph.ranked[0]
    text = Prompter(about=ABOUT, space=SPACE, tokens=tokens).prompt(graph, "mutate", (first,))
    assert len(text) <= tokens * CHARACTERS_PER_TOKEN
    for needed in (ABOUT, graph.nodes[first].canonical, "Your step: mutate", "predicted:"):
        assert needed in text


def test_more_budget_never_says_less(graph: Graph):
    lengths = [len(Prompter(about=ABOUT, space=SPACE, tokens=tokens).prompt(graph, "mutate", (graph.ranked[0],)))
               for tokens in range(100, 4000, 300)]  # fmt: skip
    assert lengths == sorted(lengths)


def test_the_tables_are_all_there_but_for_what_is_frozen(graph: Graph):
    parent = (graph.ranked[0],)
    free = Prompter(about="", space=Space.of(""), tokens=100_000).prompt(graph, "mutate", parent)
    frozen = Prompter(about="", space=SPACE, tokens=100_000).prompt(graph, "mutate", parent)
    assert all(row.signature in free for row in OPERATORS.values())
    assert "option update = none, least_squares, sparsegpt, admm" in free
    assert "allocate" in free
    assert "allocate" not in frozen
    assert "option update" not in frozen
    assert "update is 'none' and stays so" in frozen
    assert "permute" not in free  # it is for patterns only
    assert "sensitivity" not in free  # too slow for a search


def test_a_huge_reply_does_not_make_a_huge_repair():
    prompter = Prompter(about="", space=SPACE, tokens=1000)
    assert len(prompter.repair("p", "x" * 10**7, "no")) < 10_000


# ---------------------------------------------------------------- the graph


def test_rank_correlation():
    assert spearman([1, 2, 3, 4], [10, 20, 30, 400]) == pytest.approx(1)
    assert spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    assert spearman([1, 2, 2, 3], [1, 5, 5, 9]) == pytest.approx(1)  # ties share their rank
    assert spearman([1, 1, 1], [1, 2, 3]) == 0


def test_verdicts():
    assert verdict("mutate", (-0.5, 0.1)) == "confirmed"
    assert verdict("mutate", (-0.15, 0.1)) == "inconclusive"
    assert verdict("mutate", (0.5, 0.1)) == "refuted"
    assert verdict("simplify", (0.15, 0.1)) == "confirmed"  # it had to be no worse
    assert verdict("simplify", (0.25, 0.1)) == "refuted"
    assert verdict("mutate", None) == "inconclusive"


def test_traits_name_statistics_operators_axes_and_options():
    text = (
        'compare = "layer"\nstrength = 0.2\n\ndef score(weight, gram):\n'
        '    return abs(weight) * sum(abs(gram), over="rows")\n\ndef allocate(skewness):\n    return -skewness'
    )
    expected = {"weight", "gram", "abs", "multiply", "sum over rows", "allocate: skewness", "allocate: negate"}
    assert set(traits(read_program(text))) == expected | {"compare=layer", "strength"}


def test_good_and_untried_parents_are_chosen_more_often(graph: Graph):
    rng = random.Random(0)
    chosen = Counter(graph.choose(rng, {}) for _ in range(2000))
    assert set(chosen) == set(graph.ranked)  # none is out of the question
    assert chosen[graph.ranked[0]] > chosen[graph.ranked[-1]] * 2
    tried = Counter(graph.choose(rng, {graph.ranked[0]: 50}) for _ in range(2000))
    assert tried[graph.ranked[0]] < chosen[graph.ranked[0]] / 3
    assert all(graph.choose(rng, {}, graph.ranked[0]) != graph.ranked[0] for _ in range(100))


def test_effects_are_medians_over_the_steps_that_added_or_removed_a_trait(graph: Graph):
    found = {effect.trait: effect for effect in graph.effects}
    assert found
    for trait, effect in found.items():
        changes = []
        for edge in graph.edges:
            if edge.parents and edge.observed is not None:
                before, after = (trait in graph.nodes[digest].traits for digest in (edge.parents[0], edge.child))
                changes += [edge.observed * (after - before)] * (after != before)
        assert effect.steps == len(changes) >= 2
        assert effect.median == pytest.approx(statistics.median(changes))
        assert effect.helped == sum(change < 0 for change in changes)


def test_what_helps_most_often_comes_first_and_one_disaster_does_not_count_more(graph: Graph):
    shares = [effect.share for effect in graph.effects]
    assert shares == sorted(shares, reverse=True)
    known = [Effect("often", 0.0, 9, 10), Effect("twice of two", -9.0, 2, 2), Effect("half", 0.0, 5, 10)]
    assert sorted(known, key=lambda effect: -effect.share) == known


def test_figures_of_lower_rungs_are_taken_to_the_highest(graph: Graph):
    for digest in graph.ranked:
        outcome = graph.outcome(digest, "full")
        if outcome:
            assert graph.estimate(digest) == outcome.damage
    below = [digest for digest in graph.ranked if graph.rung(digest) == "probe"]
    for digest in below:
        outcome = graph.outcome(digest, "probe")
        assert outcome
        assert outcome.damage is not None
        assert graph.estimate(digest) > outcome.damage  # the fake full figures are a fifth higher


def test_what_a_lower_rung_likes_best_is_not_believed(tmp_path: Path):
    """Fifty equally good programs: the rung below the last sees differences that are not there."""
    archive, rng = Archive.open(tmp_path / "archive.sqlite"), random.Random(0)
    seen: dict[str, float] = {}
    for number in range(50):
        program = read_program(f"def score(weight):\n    return abs(weight) ** {number + 2}")
        archive.add_node(Node(digest=program.digest, canonical=program.canonical, traits=(), step=number))
        seen[program.digest] = math.exp(rng.gauss(0, 0.2))
        rungs = {"quick": seen[program.digest]} | ({"full": math.exp(rng.gauss(0.5, 0.01))} if number < 40 else {})
        for rung, damage in rungs.items():
            outcome = Outcome(damage=damage, parts=(damage, damage))
            archive.add_evaluation(Evaluation(digest=program.digest, rung=rung, outcome=outcome))
    graph = Graph(archive, RUNGS)
    archive.close()
    flattered = [digest for digest in seen if graph.rung(digest) == "quick" and seen[digest] < 0.95]
    assert flattered
    assert all(graph.estimate(digest) == pytest.approx(math.exp(0.5), rel=0.1) for digest in flattered)


def main() -> None:
    """Write the golden files."""
    GOLDEN.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for name, text in texts(Graph(archive(Path(folder)), RUNGS)).items():
            (GOLDEN / f"{name}.txt").write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()
