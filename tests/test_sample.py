"""Programs made by chance: all can be read and belong to their space, and each is what its function says.

Legend: R output rows, C input columns of the layer.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from random import Random

import pytest
import torch
from torch import Tensor

from autoprune import algorithms
from autoprune.errors import AutopruneError
from autoprune.language import FUNCTIONS, OPERATORS, STATISTICS, Program, interpret, read_program
from autoprune.language.draw import CONSTANTS, NUMBERS, OFTEN, random_tree
from autoprune.language.flaws import MAX_STEPS, flaws
from autoprune.language.program import CONSTANT, OPTIONS, Tape
from autoprune.language.sample import METHOD, Variant, crossed, grafted, mutated, random_program, simplified
from autoprune.language.space import Space
from autoprune.language.trees import tape_of, tree_of
from autoprune.language.types import Type
from autoprune.search.proposers import genetic
from autoprune.search.protocol import OPERATORS as REQUESTS
from autoprune.search.protocol import Answer, Proposer, Request
from autoprune.search.reply import parse_reply

R, C, LAYERS = 3, 7, 4
SHAPES = {Type.SCALAR: (1, 1), Type.R: (R, 1), Type.C: (1, C), Type.RC: (R, C), Type.CC: (C, C), Type.L: (1, LAYERS)}
FREE = Space()
SPACES = {
    "free": FREE,
    "score only": Space.of("update=none,allocate=uniform"),
    "pattern": Space.of("", pattern=True),
    "compare": Space.of("compare=layer"),
    "swaps": Space.of("refine=swaps,max_swaps=7"),
    "options of allocate": Space.of("strength=0.2,temperature=2"),
    "towards dense": Space.of("towards_dense=0.5"),
    "options of what is frozen": Space.of("strength=0.2,allocate=uniform", pattern=True),
}
LIBRARY = {name: algorithms.load(name) for name in ("wanda", "ria", "best", "gblm", "sdsa", "dsnot")}
MAKERS: dict[str, Callable[[Program, Program, Random, Space], Variant]] = {
    "mutated": lambda program, other, rng, space: mutated(program, rng, space),
    "simplified": lambda program, other, rng, space: simplified(program, rng, space),
    "crossed": crossed,
    "grafted": grafted,
}
DRAWN = 200


@pytest.fixture(scope="module")
def drawn() -> list[Program]:
    return [read_program(random_program(Random(seed), FREE)) for seed in range(DRAWN)]


def score(expression: str, header: str = "") -> Program:
    """A program with the statistics that occur in an expression."""
    used = ", ".join(name for name in STATISTICS if name in expression)
    return read_program(f"{header}def score({used}):\n    return {expression}\n")


def tape(program: Program) -> Tape:
    return program.require("score")


def members(program: Program) -> Counter[str]:
    """What a program consists of, in no order: steps without their arguments, and options."""
    steps = (node for tape in program.functions for _, node in tape.steps())
    found = Counter(f"{node.operator} {node.value} {node.over}" for node in steps)
    return found + Counter(f"{name} = {value}" for name, value in program.options.items())


def worlds(function: str) -> dict[str, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    shapes = {name: SHAPES[row.type] for name, row in FUNCTIONS[function].statistics.items()}
    ordinary = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return {
        "ordinary": ordinary,
        "zero": {name: torch.zeros(shape) for name, shape in shapes.items()},
        "largest": {name: value.sign() * 1e30 for name, value in ordinary.items()},
        "smallest": {name: value.sign() * 1e-45 for name, value in ordinary.items()},
    }


# ---------------------------------------------------------------- always a program of the space


def assert_of(space: Space, text: str) -> Program:
    program = read_program(text)
    assert program.canonical == text
    assert space.refusal(program) == ""
    return program


@pytest.mark.parametrize("name", SPACES)
def test_every_random_program_is_of_its_space(name: str):
    for seed in range(10):
        program = assert_of(SPACES[name], random_program(Random(seed), SPACES[name]))
        assert all(len(tape.nodes) <= MAX_STEPS for tape in program.functions)


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("maker", MAKERS)
def test_every_variant_is_of_its_space(name: str, maker: str):
    """Also where the parents are not."""
    space, changed = SPACES[name], 0
    parents = [WANDA, BEST, LIBRARY["sdsa"], read_program(random_program(Random(0), space))]
    for seed, program in enumerate(parents):
        other = Random(seed).choice(parents)
        variant = MAKERS[maker](program, other, Random(seed), space)
        child = assert_of(space, variant.text)
        longest = max(len(tape.nodes) for tape in program.functions)
        assert all(len(tape.nodes) <= max(MAX_STEPS, longest) for tape in child.functions)
        assert not variant.change or child.digest not in (program.digest, other.digest)
        changed += bool(variant.change)
    assert changed >= 2


def test_what_takes_too_long_to_measure_is_not_inherited():
    slow = read_program(f"{WANDA.canonical}\ndef allocate(sensitivity):\n    return -minmax(sensitivity)\n")
    for make in MAKERS.values():
        for seed in range(5):
            assert_of(FREE, make(slow, BEST, Random(seed), FREE).text)
            assert_of(FREE, make(BEST, slow, Random(seed), FREE).text)


def test_no_function_grows_without_end():
    long = score(
        " + ".join(f"abs(weight) ** {power} * input_norm" for power in (0.5, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5, 7.5, 8.5))
    )
    sizes = [len(tape(child).nodes) for child in children(long, 12, SPACES["score only"])]
    sizes += [len(tape(read_program(crossed(long, RIA, Random(seed), FREE).text)).nodes) for seed in range(10)]
    assert max(sizes) in (MAX_STEPS - 1, MAX_STEPS)


def test_a_space_without_programs_is_refused():
    for text in ("refine=swaps,update=admm", "towards_dense=0.5,update=none", "refine=permute"):
        with pytest.raises(AutopruneError, match="no program can have all of that together"):
            Space.of(text)


def test_a_program_is_fitted_to_what_is_frozen():
    for name, program in LIBRARY.items():
        for text in (
            "update=none,refine=none,allocate=uniform",
            "update=admm,refine=none,towards_dense=0.5",
            "strength=0.3",
        ):
            space = Space.of(text)
            made = space.fitted(program)
            assert (made is None) == (program.score is None), name
            assert made is None or space.refusal(made) == ""


WANDA, RIA, BEST = LIBRARY["wanda"], LIBRARY["ria"], LIBRARY["best"]


@pytest.mark.parametrize("step", ["t + sqrt(t)", "sqrt(t * 3)"])
@pytest.mark.parametrize("maker", MAKERS)
def test_a_long_program_that_shares_much_has_variants(step: str, maker: str):
    lines = "".join(f"    t = {step}\n" for _ in range(40))
    program = read_program(f"def score(weight):\n    t = abs(weight)\n{lines}    return t\n")
    started = time.monotonic()
    assert_of(FREE, MAKERS[maker](program, WANDA, Random(1), FREE).text)
    assert_of(FREE, MAKERS[maker](WANDA, program, Random(1), FREE).text)
    assert time.monotonic() - started < 20  # unfolded it would be 2^40 steps


def test_trees_and_tapes_are_inverse():
    for program in LIBRARY.values():
        for tape in program.functions:
            assert tape_of(tree_of(tape), tape.function) == tape


def test_the_same_seed_gives_the_same_programs():
    def made() -> list[str | Variant]:
        rng = Random(5)
        variants = [make(BEST, RIA, rng, FREE) for make in MAKERS.values()]
        return [random_program(rng, FREE), *variants]

    random.seed(0)
    first = made()
    random.seed(1)
    assert made() == first


# ---------------------------------------------------------------- random programs


def test_random_programs_are_diverse(drawn: list[Program]):
    assert len({program.digest for program in drawn}) >= 150


def test_random_programs_are_short_but_not_trivial(drawn: list[Program]):
    lengths = sorted(len(tape(program).nodes) for program in drawn)
    assert 4 <= lengths[DRAWN // 2] <= 10
    assert lengths[-1] > 10


def test_random_programs_use_all_of_the_header(drawn: list[Program]):
    assert sum(program.allocate is not None for program in drawn) in range(DRAWN // 5, DRAWN // 2)
    for name, option in OPTIONS.items():
        if name not in ("temperature", "protect", "max_swaps"):  # which go with what is rare
            values = {program.options[name] for program in drawn}
            assert len(values) >= (2 if option.choices else 3), name
    assert {program.options["update"] for program in drawn} == set(OPTIONS["update"].choices)


def test_every_operator_and_statistic_is_drawn_and_cheap_statistics_more_often():
    rng = Random(0)
    for function, budget in (("score", 3), ("allocate", 2)):
        tapes = [tape_of(random_tree(function, budget, rng), function) for _ in range(1500)]
        used = Counter(name for tape in tapes for name in tape.statistics)
        assert set(used) == {name for name, row in FUNCTIONS[function].statistics.items() if row.searched}
        if function == "score":
            assert {node.operator for tape in tapes for _, node in tape.steps()} >= set(OPERATORS)
            dear = ("gram", "inverse_gram_diagonal", "gradient", "output_norm", "output_gradient")
            assert used["input_norm"] > 2 * max(used[name] for name in dear)


def test_random_scores_order_weights_by_their_size_whatever_their_sign(drawn: list[Program]):
    """On another layer than the one they were chosen by."""
    generator = torch.Generator().manual_seed(3)
    shapes = {name: SHAPES[row.type] for name, row in STATISTICS.items()}
    layer = {name: torch.rand(shape, generator=generator) + 0.5 for name, shape in shapes.items()}
    weight_RC = torch.randn(R, C, generator=generator)
    symmetric = agree = 0
    for program in drawn:
        score_RC = interpret(tape(program), {**layer, "weight": weight_RC})
        symmetric += torch.equal(
            score_RC.argsort(), interpret(tape(program), {**layer, "weight": -weight_RC}).argsort()
        )
        ranks = torch.stack([score_RC.argsort().argsort().flatten(), weight_RC.abs().argsort().argsort().flatten()])
        agree += float(torch.corrcoef(ranks.float())[0, 1]) > 0
    assert symmetric > 0.97 * DRAWN
    assert agree > 0.9 * DRAWN


def test_random_programs_are_finite_everywhere(drawn: list[Program]):
    by_function = {function: worlds(function) for function in FUNCTIONS}
    for program in drawn:
        for tape in program.functions:
            for world in by_function[tape.function].values():
                assert interpret(tape, world).isfinite().all(), program.canonical


def test_random_programs_have_no_steps_without_effect(drawn: list[Program]):
    once = {"abs", "sign", "minmax", "standardize", "rank"}
    for program in drawn:
        nodes = tape(program).nodes
        for node in nodes:
            operands = [nodes[argument] for argument in node.arguments]
            if node.operator in once:
                assert (operands[0].operator, operands[0].over) != (node.operator, node.over), program.canonical
            if node.operator in ("subtract", "divide", "maximum", "minimum", "less", "equal"):
                assert len({*node.arguments}) == 2, program.canonical
        root = nodes[tape(program).result]
        if root.operator in ("add", "subtract", "multiply", "divide"):
            assert all(nodes[argument].operator != CONSTANT for argument in root.arguments), program.canonical


# ---------------------------------------------------------------- mutation


@pytest.fixture(scope="module")
def mutants() -> list[tuple[Program, Program]]:
    parents = list(LIBRARY.values()) + [read_program(random_program(Random(seed), FREE)) for seed in range(6)]
    pairs = [(parent, mutated(parent, Random(seed), FREE)) for seed in range(8) for parent in parents]
    return [(parent, read_program(variant.text)) for parent, variant in pairs]


def test_a_mutation_is_nearly_always_another_program(mutants: list[tuple[Program, Program]]):
    assert sum(parent.digest != child.digest for parent, child in mutants) >= 0.97 * len(mutants)


def test_a_mutation_is_mostly_a_small_change(mutants: list[tuple[Program, Program]]):
    sizes = []
    for parent, child in mutants:
        if (parent.allocate is None) == (child.allocate is None):
            before, after = members(parent), members(child)
            sizes.append(max((before - after).total(), (after - before).total()))
    assert sorted(sizes)[int(0.7 * len(sizes))] <= 3
    assert len(sizes) > 0.7 * len(mutants)


def children(program: Program, seeds: int = 50, space: Space = FREE) -> list[Program]:
    return [read_program(mutated(program, Random(seed), space).text) for seed in range(seeds)]


def test_mutation_moves_constants_by_a_factor_and_by_a_step():
    found = children(score("abs(weight) * (input_norm + 25 * gradient)"), space=SPACES["score only"])
    constants = {node.value for child in found for node in tape(child).nodes if node.operator == CONSTANT}
    assert constants & {12.5, 20.0, 31.2, 50.0}
    assert constants & {24.0, 26.0}


@pytest.mark.parametrize(
    ("parent", "child"),
    [
        ('minmax(abs(weight), over="rows") * input_norm', "minmax(abs(weight)) * input_norm"),
        ('abs(weight) * norm(weight, over="rows")', 'abs(weight) * norm(weight, over="columns")'),  # an R, not a C
        ("input_norm ** abs(weight)", "abs(weight) ** input_norm"),
    ],
)
def test_mutation_turns_axes_and_operands(parent: str, child: str):
    found = children(score(parent, 'compare = "layer"\n'), 60, SPACES["score only"])
    assert score(child, 'compare = "layer"\n').digest in {other.digest for other in found}


def test_a_shared_step_changes_at_one_place_or_at_all():
    """The magnitude in RIA, which two sums and two quotients start from."""
    starts = []
    for child in children(RIA):
        nodes = tape(child).nodes
        starts.append({nodes[node.arguments[0]].operator for node in nodes if node.operator in ("sum", "divide")})
    assert any(len(operators) == 1 and operators != {"abs"} for operators in starts)
    assert any(len(operators) == 2 and "abs" in operators for operators in starts)


def test_mutation_reaches_options_and_allocations():
    found = children(BEST)
    changed = {name for child in found for name in OPTIONS if child.options[name] != BEST.options[name]}
    assert changed >= {"update", "towards_dense", "strength", "granularity"}
    assert any(child.allocate is None for child in found)
    assert any(child.allocate and child.allocate != BEST.allocate for child in found)
    assert any(child.allocate for child in children(WANDA, 40))


def test_what_is_frozen_or_says_nothing_is_not_mutated():
    space = Space.of("update=admm", pattern=True)
    start = read_program(mutated(BEST, Random(0), space).text)
    for child in children(start, 20, space):
        assert child.options["update"] == "admm"
        assert child.options["compare"] == "row"  # groups are what competes
        assert (child.options["max_swaps"], child.options["protect"]) == (30.0, 0.0)


def test_numbers_of_options_stay_within_bounds():
    space = Space.of("refine=swaps,update=none,allocate=uniform,compare=row")
    parent = score("abs(weight)", 'refine = "swaps"\nmax_swaps = 5\nprotect = 0.9\n')
    found = [child.options for child in children(parent, 50, space)]
    assert len({options["max_swaps"] for options in found}) > 3
    assert all(options["max_swaps"] == int(float(options["max_swaps"])) for options in found)
    assert max(float(options["protect"]) for options in found) == 1


def test_an_allocation_with_a_frozen_strength_is_never_dropped():
    space = SPACES["options of allocate"]
    for seed in range(15):
        assert read_program(mutated(LIBRARY["sdsa"], Random(seed), space).text).allocate
        assert read_program(simplified(LIBRARY["sdsa"], Random(seed), space).text).allocate


def test_the_change_is_said_in_words():
    words = {mutated(WANDA, Random(seed), FREE).change for seed in range(60)}
    assert "changed compare from row to layer" in words
    assert "replaced input_norm by input_std" in words


# ---------------------------------------------------------------- simplification


@pytest.mark.parametrize("name", ["ria", "best", "gblm", "wanda"])
def test_a_simplified_program_is_shorter_or_nearer_to_the_defaults(name: str):
    parent = LIBRARY[name]
    for seed in range(12):
        variant = simplified(parent, Random(seed), FREE)
        child = read_program(variant.text)
        assert variant.change
        assert not (members(child) - members(parent)).keys() - {f"{n} = {o.default}" for n, o in OPTIONS.items()}
        steps = [sum(len(tape.nodes) for tape in program.functions) for program in (parent, child)]
        usual = [sum(p.options[name] == option.default for name, option in OPTIONS.items()) for p in (parent, child)]
        assert steps[1] < steps[0] or usual[1] > usual[0]


def test_what_cannot_be_simpler_stays():
    variant = simplified(score("abs(weight)"), Random(0), FREE)
    assert variant == Variant(score("abs(weight)").canonical, "")


# ---------------------------------------------------------------- two parents

FIRST = score("square(weight) * input_norm / (input_max + mean(input_max))", 'compare = "layer"\n')
SECOND = score('abs(weight) / sqrt(inverse_gram_diagonal) * norm(gradient, over="rows")', 'refine = "dsnot"\n')


def test_a_crossing_has_parts_of_both_parents():
    both = 0
    for seed in range(30):
        child = read_program(crossed(FIRST, SECOND, Random(seed), FREE).text)
        used = set(tape(child).statistics)
        both += bool(used & {"input_norm", "input_max"}) and bool(used & {"inverse_gram_diagonal", "gradient"})
    assert both > 20


def test_a_crossing_mixes_headers():
    found = [read_program(crossed(FIRST, BEST, Random(seed), FREE).text) for seed in range(25)]
    assert {child.options["update"] for child in found} == {"none", "admm"}
    assert {child.allocate for child in found} == {None, BEST.allocate}
    for child in found:
        assert child.options["strength"] == (0.2 if child.allocate else 1)
        assert child.options["towards_dense"] == (0.5 if child.options["update"] == "admm" else 0)
    found = [read_program(crossed(FIRST, SECOND, Random(seed), FREE).text) for seed in range(12)]
    assert {child.options["compare"] for child in found} == {"row", "layer"}


def ideas(before: Program, after: Program) -> set[str]:
    """What differs between two programs."""
    parts = {"score": lambda p: p.score, "allocate": lambda p: p.allocate, "compare": lambda p: p.compare}
    parts["method"] = lambda p: [p.options[name] for name in METHOD]
    return {name for name, part in parts.items() if part(before) != part(after)}


def test_a_graft_is_one_idea_of_the_other_program():
    found: Counter[str] = Counter()
    for seed in range(30):
        child = read_program(grafted(WANDA, BEST, Random(seed), FREE).text)
        (idea,) = ideas(WANDA, child)
        found[idea] += 1
        if idea == "score":
            assert "output_gradient" in tape(child).statistics  # the only one that is new
        else:
            assert idea not in ideas(child, BEST)
    assert set(found) == {"score", "allocate", "compare", "method"}
    assert found["score"] > 8


def test_where_the_other_has_nothing_new_a_part_is_taken():
    for seed in range(10):
        child = read_program(grafted(BEST, WANDA, Random(seed), FREE).text)
        assert ideas(BEST, child) == {"score"}  # no update and no allocation are no ideas


# ---------------------------------------------------------------- tables


def test_the_tables_name_what_there_is():
    statistics = {name for function in FUNCTIONS.values() for name in function.statistics}
    assert set(OFTEN) <= {*OPERATORS, *statistics, *Type, CONSTANT}
    assert all(weight > 0 for weight in OFTEN.values())
    assert set(CONSTANTS) <= set(OPERATORS)
    assert set(NUMBERS) == {name for name, option in OPTIONS.items() if not option.choices}
    assert all(OPTIONS[name].accepts(value) for name, values in NUMBERS.items() for value in values)
    assert set(METHOD) < {name for name, option in OPTIONS.items() if option.function == "score"}


# ---------------------------------------------------------------- proposers

PARENTS = (WANDA.canonical, BEST.canonical)


def request(operator: str = "mutate", parents: tuple[str, ...] = PARENTS, seed: int = 0) -> Request:
    return Request(step=1, round=0, operator=operator, parents=parents, prompt="", seed=seed)


def answers(proposer: Proposer, *requests: Request) -> list[Answer]:
    pairs = list(proposer.propose(requests))
    assert [asked for asked, _ in pairs] == list(requests)
    return [answer for _, answer in pairs]


def proposed(proposer: Proposer, *requests: Request) -> list[Program]:
    return [read_program(parse_reply(answer.text).program) for answer in answers(proposer, *requests)]


@pytest.mark.parametrize("operator", REQUESTS)
@pytest.mark.parametrize("name", ["free", "score only"])
def test_genetic_answers_in_the_form_of_a_reply(operator: str, name: str):
    space = SPACES[name]
    for seed in range(5):
        (answer,) = answers(genetic.Genetic(space), request(operator, seed=seed))
        reply = parse_reply(answer.text)
        program = assert_of(space, reply.program)
        assert program.digest not in (WANDA.digest, BEST.digest)
        assert reply.diagnosis
        assert (reply.predicted, reply.hypothesis, answer.model, answer.error) == (None, "", "genetic", "")
        assert answer.text.splitlines()[1] == "program:"
        assert answer.tokens_in is None
        assert answer.seconds > 0


def test_operators_of_requests_do_what_they_say():
    proposer = genetic.Genetic(FREE)
    for operator, expected in (("simplify", "by abs(weight)"), ("combine", "second program")):
        for answer in answers(proposer, *(request(operator, seed=seed) for seed in range(5))):
            assert expected in parse_reply(answer.text).diagnosis
    for program in proposed(proposer, *(request("transfer", seed=seed) for seed in range(5))):
        assert len(ideas(WANDA, program)) == 1


def test_an_answer_depends_on_its_request_only():
    requests = [request(operator, seed=seed) for seed in range(2) for operator in REQUESTS]
    for make in (genetic.Genetic, genetic.Random):
        together = [answer.text for answer in answers(make(FREE), *requests)]
        alone = [answers(make(FREE), each)[0].text for each in reversed(requests)]
        assert together == alone[::-1]
        assert len(set(together)) >= 2


def test_with_too_few_parents_or_nothing_to_simplify_genetic_mutates():
    plain = score("abs(weight)").canonical
    cases = [("combine", PARENTS[:1]), ("transfer", PARENTS[:1]), ("simplify", (plain,)), ("mutate", ())]
    for operator, parents in cases:
        (program,) = proposed(genetic.Genetic(FREE), request(operator, parents))
        assert program.canonical not in parents


def test_sometimes_two_mutations_follow_each_other():
    found = answers(genetic.Genetic(FREE), *(request(seed=seed) for seed in range(40)))
    assert 1 <= sum("; then " in answer.text for answer in found) <= 15


def test_random_ignores_its_parents():
    (first,) = answers(genetic.Random(FREE), request(seed=3))
    (second,) = answers(genetic.Random(FREE), request("simplify", (), seed=3))
    assert first.text == second.text
    assert first.model == "random"
    assert_of(FREE, parse_reply(first.text).program)


def test_neither_is_told_what_was_wrong():
    for proposer in (genetic.Genetic(FREE), genetic.Random(FREE)):
        assert not proposer.repairs
        proposer.close()


def test_a_program_may_mark_what_goes_by_the_sparsity():
    """What LLMs wrote; with a made-up share beyond 1 the mark would be the same everywhere."""
    text = (
        "def score(weight, input_norm, gram, sparsity):\n    base = abs(weight) * input_norm\n"
        '    gone = where(base <= quantile(base, sparsity, over="columns"), weight, 0)\n'
        "    return base + 0.1 * sign(weight) * (gone @ gram)"
    )
    program = read_program(text)
    assert not list(flaws(program.functions, "row"))
