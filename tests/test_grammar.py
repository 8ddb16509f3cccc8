"""Whatever the grammar derives is a valid reply, and a language model of any size writes only that."""

from __future__ import annotations

import json
import random
import re
import sys
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, GPTNeoConfig, MptConfig

import tiny
from autoprune.algorithms import load, names
from autoprune.errors import AutopruneError
from autoprune.language import OPERATORS, Program, read_program
from autoprune.language.canonical import print_program
from autoprune.language.check import MAX_LIVE
from autoprune.language.grammar import _DEPTH, _LOCAL_DEPTH, _NUMBER, MAX_CHARACTERS, _numbers, grammar
from autoprune.language.parse import MAX_CONSTANT
from autoprune.language.program import CONSTANT, OPTIONS, STATISTIC, Tape
from autoprune.language.space import Space
from autoprune.language.statistics import STATISTICS
from autoprune.language.types import Type
from autoprune.search.proposers.local import Local, _shared_start
from autoprune.search.protocol import Answer, Request
from autoprune.search.reply import parse_reply

llguidance = pytest.importorskip("llguidance")
from llguidance.hf import from_tokenizer  # noqa: E402

FREEZES = (
    "",
    "allocate=uniform,update=none",
    "strength=0.2",
    "refine=swaps,max_swaps=55.5",
    "towards_dense=0.25,granularity=linear",
    "compare=layer,update=admm,protect=0.125",
)
OPENING = "diagnosis: a\nhypothesis: b\npredicted: -0.1\nprogram:\n```python\n"


def space(freeze: str = "") -> Space:
    return Space.of(freeze, pattern="swaps" not in freeze)


@cache
def vocabulary() -> Any:
    return from_tokenizer(tiny.tokenizer())


@cache
def _compiled(freeze: str) -> Any:
    text = llguidance.LLMatcher.grammar_from_lark(grammar(space(freeze)))
    return llguidance.LLMatcher(vocabulary(), text)


def matcher(freeze: str = "", begun: str = "") -> Any:
    made = _compiled(freeze).deep_copy()
    assert made.consume_tokens(vocabulary().tokenize_str(begun)), made.get_error()
    return made


def allowed(matcher: Any) -> np.ndarray:
    bits = np.frombuffer(matcher.compute_bitmask(), np.uint8)
    return np.flatnonzero(np.unpackbits(bits, bitorder="little"))


def walk(matcher: Any, rng: random.Random) -> str:
    """What comes of tokens that are drawn from the allowed ones until none is left."""
    tokens = []
    while not matcher.is_stopped():
        tokens.append(int(rng.choice(allowed(matcher))))
        assert matcher.consume_token(tokens[-1]), matcher.get_error()
    assert not matcher.is_error(), matcher.get_error()
    return vocabulary().decode_str(tokens)


def deep_walk(matcher: Any, rng: random.Random, words: list[str], hurry: float = 0.02) -> str:
    """The same, but the first of `words` that is allowed is taken, with little chance of others."""
    text = ""
    while not matcher.is_stopped():
        order = [word for word in words if rng.random() > hurry]
        tokens = next(
            (tokens for word in order if (tokens := vocabulary().tokenize_str(word)) and fits(matcher, tokens)),
            [int(rng.choice(allowed(matcher)))],
        )
        assert matcher.consume_tokens(tokens), matcher.get_error()
        text += vocabulary().decode_str(tokens)
    return text


def fits(matcher: Any, tokens: list[int]) -> bool:
    return matcher.validate_tokens(tokens) == len(tokens)


def derives(text: str, freeze: str = "") -> bool:
    made = _compiled(freeze).deep_copy()
    return made.validate_tokens(vocabulary().tokenize_str(text)) == len(vocabulary().tokenize_str(text))


def valid(text: str, freeze: str = "") -> Program:
    """The program of a reply, which is refused neither by the language nor by the space."""
    reply = parse_reply(text)
    assert reply.diagnosis
    assert reply.hypothesis
    assert reply.predicted is not None
    program = read_program(reply.program)
    assert space(freeze).refusal(program) == ""
    return program


def height(tape: Tape) -> int:
    heights: dict[int, int] = {}
    for index, node in tape.steps():
        heights[index] = 1 + max((heights[argument] for argument in node.arguments), default=-1)
    return heights[tape.result]


# ---------------------------------------------------------------------------------------------------------------------
# what the grammar derives


@pytest.mark.parametrize("freeze", FREEZES)
def test_every_walk_is_a_valid_reply(freeze: str):
    rng = random.Random(len(freeze))
    for _ in range(25):
        program = valid(walk(matcher(freeze), rng), freeze)
        assert any(STATISTICS[name].type is Type.RC for name in program.require("score").statistics)


def test_walks_meet_all_operators_and_both_functions():
    rng = random.Random(1)
    grams = f"{OPENING}def score(weight, gram):\n    "
    programs = [valid(begun + walk(matcher(begun=begun), rng)) for begun in ["", grams] * 75]
    nodes = [node for program in programs for tape in program.functions for _, node in tape.steps()]
    assert {node.operator for node in nodes} - {CONSTANT, STATISTIC} == set(OPERATORS)
    assert {len(program.functions) for program in programs} == {1, 2}
    assert any("t1 = " in program.text for program in programs)


@pytest.mark.parametrize("parameters", ["weight", "gradient", "weight, gram", "input_norm, weight", "depth, gradient"])
def test_what_has_begun_can_be_ended_whatever_the_parameters_are(parameters: str):
    rng = random.Random(2)
    for _ in range(20):
        begun = f"{OPENING}def score({parameters}):\n    "
        valid(begun + walk(matcher(begun=begun), rng))


@pytest.mark.parametrize("start", ["return ", "t1 = "])
def test_the_deepest_programs_are_valid(start: str):
    """Trees of two-sided operators on matrices, as full as the grammar allows: most steps and most memory."""
    rng = random.Random(3)
    begun = f"{OPENING}def score(weight, gradient, gram):\n    {start}"
    heights = []
    for _ in range(40):
        words = ["maximum(", "minimum(", "maximum(gram, ", ", ", *rng.sample(["weight", "gradient", "t1"], 3), ")"]
        program = valid(begun + deep_walk(matcher(begun=begun), rng, words))
        heights.append(height(program.require("score")))
    assert max(heights) == _DEPTH["score"] + (_LOCAL_DEPTH["score"] if start == "t1 = " else 0)


def test_no_program_can_need_too_many_matrices():
    """The bound that is proved where the depths are defined."""
    matrices = sum(row.type in (Type.RC, Type.CC) for row in STATISTICS.values())
    deepest, local = 2 ** (_DEPTH["score"] - 1), 2 ** (_LOCAL_DEPTH["score"] - 1)
    assert int(deepest + local + matrices / 2) + 1 <= MAX_LIVE
    assert int(deepest + (matrices + 1) / 2) + 1 <= MAX_LIVE


@pytest.mark.parametrize("freeze", FREEZES)
def test_no_program_is_longer_than_stated(freeze: str):
    assert longest(grammar(space(freeze)), "program") <= MAX_CHARACTERS


def longest(text: str, rule: str) -> int:
    """Length of the longest string that a rule derives."""
    rules = dict(re.findall(r"^(\w+)(?:::_)?: (.*)$", text, re.MULTILINE))
    lengths: dict[str, int] = {}

    def of_rule(name: str) -> int:
        if name not in lengths:
            if rules[name].startswith("/"):
                lengths[name] = {"FIELD": 160}.get(name, 8)
            elif name.endswith("_rest"):  # the only rule that calls itself: once for each of six parameters at most
                repeated, last = rules[name].split(r' | "):')
                parameter = max(map(len, re.findall(r'"[^"]*"', repeated)))
                lengths[name] = 6 * parameter + of_alternatives(f'"):{last}')
            else:
                lengths[name] = of_alternatives(rules[name])
        return lengths[name]

    def of_alternatives(text: str) -> int:
        tokens = re.findall(r'"(?:[^"\\]|\\.)*"|[A-Za-z_]\w*|[()|]', re.sub(r"::\w+(\(\d+\))?|%if[^|]*|\?", "", text))
        totals = [[0]]
        for token in tokens:
            match token:
                case "(":
                    totals.append([0])
                case "|":
                    totals[-1].append(0)
                case ")":
                    inner = max(totals.pop())
                    totals[-1][-1] += inner
                case _:
                    totals[-1][-1] += len(json.loads(token)) if token.startswith('"') else of_rule(token)
        return max(totals[0])

    return of_rule(rule)


# Forty steps are more than the grammar lets a small model ramble on for.
@pytest.mark.parametrize("name", [name for name in names("score") if name != "cancel"])
def test_models_can_write_what_they_are_shown(name: str):
    assert derives(f"{OPENING}{load(name).canonical.rstrip()}\n```")


@pytest.mark.parametrize("name", ["sdsa", "owl", "dlp", "atp", "alpha"])
def test_models_can_write_allocations_that_they_are_shown(name: str):
    program = load(name)
    text = print_program(program.options, [load("wanda").require("score"), program.require("allocate")])
    assert derives(f"{OPENING}{text.rstrip()}\n```")


@pytest.mark.parametrize(
    "program",
    [
        "def score(weight):\n    return input_norm",  # not a parameter
        "def score(input_norm):\n    return",  # nothing to score
        "def score(weight, input_norm):\n    return input_norm\n```",  # not a matrix
        "def score(weight):\n    return weight + 2 * 3\n",  # a number in two parts
        "def score(weight):\n    return weight ** weight",
        "def score(weight):\n    return weight @",  # no CC
        "def score(weight):\n    return t1",
        "def score(weight, weight",
        "def score(weight):\n    return weight > weight > weight",
        'refine = "permute"',
        "max_swaps = 20",  # of a refinement that is not there
        "towards_dense = 0.5",
        "strength = 11",
    ],
)
def test_there_is_no_way_to_write(program: str):
    assert not derives(OPENING + program, "refine=none,update=none")


def test_all_options_can_be_set():
    header = (
        'compare = "layer"\nrefine = "swaps"\nmax_swaps = 80\nprotect = 0.25\nupdate = "least_squares"\n'
        'towards_dense = 0.5\ngranularity = "linear"\nstrength = -0.06\nmax_shift = 1\nleast_kept = 0.1\n'
        "temperature = 2.5\n"
    )
    functions = "def score(weight):\n    return weight\n\ndef allocate(size):\n    return size"
    text = f"{OPENING}{header}\n{functions}\n```"
    assert derives(text)
    assert all(value != OPTIONS[name].default for name, value in valid(text).options.items())


def test_prose_holds_no_fence_and_no_json():
    assert derives("diagnosis: rows differ (by 3.5%), so one threshold is wrong; x*y\n")
    for text in ("```", '{"program"', "<|im_end|>", "a\n\n", "größe", " a"):
        assert not derives(f"diagnosis: {text}")


@pytest.mark.parametrize("freeze", ["refine=swaps,update=admm", "towards_dense=0.5,update=none"])
def test_a_space_without_programs_is_refused(freeze: str):
    with pytest.raises(AutopruneError, match="--freeze"):
        grammar(Space.of(freeze))


@pytest.mark.parametrize("option", [option for option in OPTIONS.values() if not option.choices], ids=lambda o: o.name)
def test_numbers_of_options_are_in_range(option):
    texts = [
        f"{value / 100:.{digits}f}"
        for value in [*range(-1100, 1100), *range(1100, 1_100_000, 997)]
        for digits in (0, 2)
    ]
    texts += [f"{bound:g}" for bound in (option.low, option.high)]
    written = [text for text in texts if re.fullmatch(_numbers(option), text)]
    assert all(option.accepts(float(text)) for text in written)
    assert {option.high, max(option.low, 0.0)} <= set(map(float, written))
    assert len(set(written)) > 20


def test_constants_are_in_range():
    assert re.fullmatch(_NUMBER, "999.999")
    assert not any(re.fullmatch(_NUMBER, text) for text in ("1000", "01", "1e3", ".5", "1."))
    assert MAX_CONSTANT >= 999.999


# ---------------------------------------------------------------------------------------------------------------------
# a language model that is held to it


def request(seed: int, prompt: str = "Prune this. " * 5) -> Request:
    return Request(step=seed, round=0, operator="mutate", parents=(), prompt=prompt, seed=seed)


def local(architecture: str = "llama", kind: str = "adds_bos", **options: Any) -> Local:
    model = tiny.model(architecture, **({} if architecture in ("bloom",) else {"max_position_embeddings": 4096}))
    return Local(model, tiny.tokenizer(kind), Space(), name="tiny", **{"max_field": 8} | options)


def texts(local: Local, *requests: Request) -> list[str]:
    return [answer.text for _, answer in local.propose(requests)]


@pytest.mark.parametrize(
    ("architecture", "kind"),
    [("llama", "adds_bos"), ("gpt2", "has_bos"), ("gemma3_text", "no_bos"), ("bloom", "adds_bos")],
)
def test_a_random_model_writes_valid_replies(architecture: str, kind: str):
    requests = [request(seed, "Prune. " * (1 + seed)) for seed in range(2)]
    answers = list(local(architecture, kind).propose(requests))
    assert [asked for asked, _ in answers] == requests
    for _, answer in answers:
        valid(answer.text)
        assert answer.model == "tiny"
        assert answer.tokens_in
        assert answer.tokens_out
        assert not answer.error


def test_an_answer_depends_on_its_own_seed_only():
    made = local()
    first = texts(made, request(1), request(2), request(3))
    again = texts(made, request(4), request(2), request(5))
    assert first[1] == again[1]
    assert len({*first, *again}) == 5


@pytest.mark.parametrize(
    ("architecture", "shares"), [("llama", True), ("gpt2", True), ("bloom", True), ("gemma3_text", False)]
)
def test_what_prompts_begin_with_is_read_once(architecture: str, shares: bool, monkeypatch: pytest.MonkeyPatch):
    made = local(architecture)
    vain = iter([True, False, True] + [False] * 9)  # so two are asked again, from the same start
    monkeypatch.setattr(Local, "_is_in_vain", lambda *_: next(vain))
    asked = [request(seed, "Prune this. " * 5 + "Mutate it. " * seed) for seed in range(3)]
    prompts = [made._tokens(one.prompt) for one in asked]
    assert len(_shared_start(prompts)) > 50
    common = made._common(prompts)
    assert (common is not None) == shares
    assert common is None or common.get_seq_length() == len(_shared_start(prompts))
    found = texts(made, *asked)
    vain = iter([True, False, True] + [False] * 9)
    made._shares = False
    assert texts(made, *asked) == found
    assert len({*found}) == 3


_SMALL = {"vocab_size": tiny.VOCABULARY, "num_layers": 2, "num_heads": 2, "hidden_size": 32}
_MPT = {"vocab_size": tiny.VOCABULARY, "n_layers": 2, "n_heads": 2, "d_model": 32}
_WINDOW = {"attention_types": [[["local", "global"], 1]], "window_size": 64}


@pytest.mark.parametrize(
    "config",
    [GPTNeoConfig(**_SMALL, **_WINDOW), MptConfig(vocab_size=tiny.VOCABULARY, d_model=32, n_layers=2, n_heads=2)],
)
def test_models_that_measure_distance_by_the_place_in_the_row_read_every_prompt(config: Any):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    made = Local(model, tiny.tokenizer(), Space(), name="tiny")
    made._context = None
    prompts = [made._tokens("Prune this. " * 5 + "Mutate it. " * more) for more in range(3)]
    assert made._common(prompts) is None


def test_one_token_of_a_prompt_is_left_to_begin_with():
    assert _shared_start([[1, 2, 3], [1, 2, 3]]) == [1, 2]
    assert _shared_start([[1, 2, 3], [1, 2], [1, 2, 4]]) == [1]
    assert _shared_start([[1, 2, 3]]) == [1, 2]
    assert _shared_start([[1], [1, 2]]) == []


def test_more_requests_than_fit_side_by_side():
    answers = texts(local(batch=2), *map(request, range(3)))
    assert len(set(answers)) == 3


def test_the_model_and_the_random_state_are_left_as_they_were():
    made = local()
    own, state = made.model.generation_config, torch.random.get_rng_state()
    made.model.train()
    weights = {name: tensor.clone() for name, tensor in made.model.state_dict().items()}
    texts(made, request(1))
    assert made.model.generation_config is own
    assert made.model.training
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.is_grad_enabled()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in made.model.state_dict().items())


def test_the_models_own_generation_settings_are_not_used():
    plain = texts(local(), request(1))
    made = local()
    made.model.generation_config.max_length = 3
    made.model.generation_config.repetition_penalty = 5.0
    made.model.generation_config.eos_token_id = list(range(2, tiny.VOCABULARY))
    assert texts(made, request(1)) == plain


def test_a_reply_has_the_words_of_the_prompt_as_its_chat_template_wants_them():
    made = local()
    plain = next(made.propose([request(1)]))[1]
    made.tokenizer.chat_template = (
        "{% for m in messages %}{{ '[' + m['role'] + ']' + m['content'] }}{% endfor %}[reply]"
    )
    chat = next(made.propose([request(1)]))[1]
    valid(chat.text)
    assert plain.tokens_in is not None
    assert chat.tokens_in is not None
    assert chat.tokens_in > plain.tokens_in


def test_a_prompt_that_leaves_no_room_is_refused():
    made = Local(tiny.model(), tiny.tokenizer(), Space(), name="tiny")
    with pytest.raises(AutopruneError, match="--prompt-tokens"):
        texts(made, request(1))


def test_a_reply_that_is_cut_off_is_an_answer_too():
    made = local()
    made._most_tokens = 3
    answer: Answer = next(made.propose([request(1)]))[1]
    assert answer.tokens_out == 3
    assert answer.text.startswith("diagnosis: ")


def test_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "llguidance.hf", None)
    with pytest.raises(AutopruneError, match=r"pip install autoprune\[search\]"):
        local()
