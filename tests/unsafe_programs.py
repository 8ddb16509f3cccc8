"""What the language has to refuse, with the reason, and what it has to take: the table that a mutant of the checker is
judged by (`make mutants`), and an ordinary test reads (`test_unsafe_programs.py`).

Limits are written out as numbers: a name from the checker would move together with it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator


def score(expression: str, parameters: str = "weight", header: str = "") -> str:
    return f"{header}def score({parameters}):\n    return {expression}\n"


def allocate(expression: str, parameters: str = "depth", header: str = "") -> str:
    return f"{header}def allocate({parameters}):\n    return {expression}\n"


def lines(*body: str, parameters: str = "weight") -> str:
    return f"def score({parameters}):\n" + "".join(f"    {line}\n" for line in body)


def alive(matrices: int) -> str:
    """Every t is needed before and after their sum."""
    names = [f"t{number}" for number in range(matrices - 2)]  # and two sums of them
    made = [f"{name} = weight + {number + 2}" for number, name in enumerate(names)]
    return lines(*made, f"u = {' + '.join(names)}", *(f"u = u * {name}" for name in names), "return u")


def alive_pairs(matrices: int) -> str:
    """The same of CC, which are not of the result's type."""
    names = [f"t{number}" for number in range(matrices - 2)]  # and two sums of them
    made = [f"{name} = gram + {number + 2}" for number, name in enumerate(names)]
    last = "return weight * sum(u)"
    return lines(
        *made, f"u = {' + '.join(names)}", *(f"u = u * {name}" for name in names), last, parameters="weight, gram"
    )


def steps(count: int) -> str:
    """weight, constants that differ, and as many sums."""
    pairs = (count - 1) // 2
    made = [f"t = t + {number + 2}" for number in range(pairs)]
    more = ["t = sqrt(t)"] * (count - 1 - 2 * pairs)
    return lines("t = weight", *made, *more, "return t")


def chain(count: int) -> str:
    """weight, its size, a constant, and products that make no difference."""
    return lines("t = abs(weight)", *["t = 2 * t"] * (count - 3), "return t")


def long_names(links: int) -> str:
    """Local names that are shorter than what they stand for."""
    chain = "    t = where(t, a, a)\n" * links + "    return t\n"
    first = f"def score(inverse_gram_diagonal, weight):\n    a = inverse_gram_diagonal\n    t = weight\n{chain}"
    return first + f"def allocate(wanda_l_skewness):\n    a = wanda_l_skewness\n    t = a\n{chain}"


PLAIN = score("weight")

REFUSED: dict[str, tuple[str, str]] = {
    # what would be something else than arithmetic
    "import": ("import os\n" + PLAIN, "'Import' is not part"),
    "import in a function": (lines("import os", "return weight"), "'Import' is not part"),
    "class": ("class A: pass\n" + PLAIN, "'ClassDef' is not part"),
    "async function": ("async " + PLAIN, "'AsyncFunctionDef' is not part"),
    "nested function": (lines("def f(): return 1", "return weight"), "'FunctionDef' is not part"),
    "loop": (lines("for i in weight: t = i", "return weight"), "'For' is not part"),
    "condition": (lines("if depth: t = 1", "return weight"), "'If' is not part"),
    "call as a statement": (lines("exec(weight)", "return weight"), "'Expr' is not part"),
    "call at the top": ("print(1)\n" + PLAIN, "'Expr' is not part"),
    "attribute": (score("weight.T"), "'Attribute' is not part"),
    "method": (score("weight.abs()"), "'Attribute' is not part"),
    "subscript": (score("weight[0]"), "'Subscript' is not part"),
    "call of a call": (score("abs(weight)(weight)"), "'Call' is not part"),
    "lambda": (score("(lambda: weight)()"), "'Lambda' is not part"),
    "comprehension": (score("[x for x in weight]"), "'ListComp' is not part"),
    "walrus": (score("(x := weight)"), "'NamedExpr' is not part"),
    "conditional expression": (score("weight if depth else weight"), "'IfExp' is not part"),
    "and": (score("weight and weight"), "'BoolOp' is not part"),
    "not": (score("not weight"), "'Not' is not part"),
    "invert": (score("~weight"), "'Invert' is not part"),
    "modulo": (score("weight % 2"), "'Mod' is not part"),
    "floor division": (score("weight // 2"), "'FloorDiv' is not part"),
    "shift": (score("weight << 2"), "'LShift' is not part"),
    "bits": (score("weight ^ 2"), "'BitXor' is not part"),
    "tuple": (score("weight, weight"), "'Tuple' is not part"),
    "star": (score("maximum(*weight, weight)"), "'Starred' is not part"),
    "star alone": (score("maximum(*weight)"), "maximum takes 2 arguments, not 1"),
    "double star": (score("sum(**weight)"), "sum has no option '**'"),
    "is": (score("weight is weight"), "'Is' is not part"),
    "is not": (score("weight is not weight"), "'IsNot' is not part"),
    "in": (score("weight in weight"), "'In' is not part"),
    "not in": (score("weight not in weight"), "'NotIn' is not part"),
    "chained comparison": (score("weight < 1 < 2"), "comparisons cannot be chained"),
    "chained comparison of other kinds": (score("weight < 1 in weight"), "comparisons cannot be chained"),
    "string": (score('weight * "weight"'), "'Constant' is not part"),
    "bytes": (score('weight * b"x"'), "'Constant' is not part"),
    "None": (score("weight * None"), "'Constant' is not part"),
    "True": (score("weight * True"), "'Constant' is not part"),
    "minus True": (score("weight * -True"), "'Constant' is not part"),
    "ellipsis": (score("weight * ..."), "'Constant' is not part"),
    "imaginary number": (score("weight * 2j"), "'Constant' is not part"),
    "minus an imaginary number": (score("weight * -2j"), "'Constant' is not part"),
    "plus an imaginary number": (score("weight * +2j"), "'Constant' is not part"),
    # functions and their parameters
    "no function": ('"""x"""\n', "defines no score"),
    "another function": ("def run(weight):\n    return weight\n", "unknown function 'run'"),
    "another function beside": (PLAIN + "def run(weight):\n    return weight\n", "unknown function 'run'"),
    "two scores": (PLAIN + PLAIN, "score is defined twice"),
    "two allocations": (allocate("depth") * 2, "allocate is defined twice"),
    "decorator": ("@abs\n" + PLAIN, "plain names of statistics"),
    "default": (score("weight", "weight=1"), "plain names of statistics"),
    "default of a keyword": (score("weight", "*, weight=1"), "plain names of statistics"),
    "keyword only": (score("weight", "*, weight"), "plain names of statistics"),
    "positional only": (score("weight", "weight, /"), "plain names of statistics"),
    "many": (score("weight", "*weight"), "plain names of statistics"),
    "many more": (score("weight", "weight, *rest"), "plain names of statistics"),
    "many keywords": (score("weight", "**weight"), "plain names of statistics"),
    "many more keywords": (score("weight", "weight, **rest"), "plain names of statistics"),
    "annotation": (score("weight", "weight: 1"), "plain names of statistics"),
    "annotation of one of two": (score("weight", "weight, gram: 1"), "plain names of statistics"),
    "annotated result": ("def score(weight) -> 1:\n    return weight\n", "plain names of statistics"),
    "unknown parameter": (score("weight", "weight, secret"), "unknown statistic 'secret'"),
    "parameter of the other function": (score("weight", "weight, skewness"), "'skewness' is a statistic of allocate"),
    "parameter twice": (score("weight", "weight, weight"), "'weight' is named twice"),
    "statistic that is no parameter": (score("weight * gram"), "'gram' is not a parameter"),
    "unknown name": (score("secret"), "unknown name 'secret'"),
    "name of a later line": (lines("t = u", "u = weight", "return t"), "unknown name 'u'"),
    # statements of a function
    "no return": (lines("t = weight"), "score returns nothing"),
    "only a description": (lines('"weight"'), "score returns nothing"),
    "return of nothing": (lines("return"), "'Return' is not part"),
    "after return": (lines("return weight", "t = weight"), "nothing may follow return"),
    "two returns": (lines("return weight", "return weight"), "nothing may follow return"),
    "two descriptions": (lines('"a"', '"b"', "return weight"), "'Expr' is not part"),
    "two targets": (lines("a = b = weight", "return a"), "'Assign' is not part"),
    "unpacking": (lines("a, b = weight", "return a"), "'Assign' is not part"),
    "attribute as a target": (lines("weight.data = weight", "return weight"), "'Assign' is not part"),
    "subscript as a target": (lines("weight[0] = weight", "return weight"), "'Assign' is not part"),
    "augmented assignment": (lines("weight += 1", "return weight"), "'AugAssign' is not part"),
    "operator as a name": (lines("sum = weight", "return sum"), "'sum' is an operator"),
    "name beyond ASCII": (lines("wеight = weight", "return weight"), "beyond ASCII"),
    "operator as a value": (score("abs"), "'abs' is an operator"),
    # calls
    "unknown operator": (score("eval(weight)"), "unknown operator 'eval'"),
    "call of a statistic": (score("weight(weight)"), "unknown operator 'weight'"),
    "call of itself": (score("score(weight)"), "unknown operator 'score'"),
    "no argument": (score("abs()"), "abs takes 1 argument, not 0"),
    "too few arguments": (score("maximum(weight)"), "maximum takes 2 arguments, not 1"),
    "too many arguments": (score("abs(weight, weight)"), "abs takes 1 argument, not 2"),
    "axis by position": (score('sum(weight, "rows")'), "sum takes 1 argument, not 2"),
    "axis of what has none": (score('abs(weight, over="rows")'), "abs has no option 'over'"),
    "axis by another name": (score('rank(weight, axis="rows")'), "rank has no option 'axis'"),
    "axis twice": (score('rank(weight, over="rows", over="rows")'), "more than one option"),
    "two options": (score('rank(weight, over="rows", out="x")'), "more than one option"),
    "axis that does not exist": (score('rank(weight, over="cols")'), "over names an axis"),
    "axis as a number": (score("rank(weight, over=0)"), "over names an axis"),
    "axis as a name": (score("rank(weight, over=rows)"), "over names an axis"),
    "axis as bytes": (score('rank(weight, over=b"rows")'), "over names an axis"),
    # options
    "unknown option": ('speed = "fast"\n' + PLAIN, "unknown option 'speed'"),
    "dunder option": ("__name__ = 1\n" + PLAIN, "unknown option '__name__'"),
    "options at once": ('compare = update = "none"\n' + PLAIN, "an option is a name and a plain value"),
    "unpacked options": ('compare, update = "row", "none"\n' + PLAIN, "an option is a name and a plain value"),
    "attribute as an option": ("weight.data = 1\n" + PLAIN, "an option is a name and a plain value"),
    "call as an option": ("protect = abs(1)\n" + PLAIN, "an option is a name and a plain value"),
    "sum as an option": ("protect = 0 + 0\n" + PLAIN, "an option is a name and a plain value"),
    "name as an option": ("compare = row\n" + PLAIN, "an option is a name and a plain value"),
    "plus as an option": ("protect = +0.5\n" + PLAIN, "an option is a name and a plain value"),
    "invert as an option": ("strength = ~1\n" + allocate("depth"), "an option is a name and a plain value"),
    "minus True as an option": ("strength = -True\n" + allocate("depth"), "an option is a name and a plain value"),
    "minus a string": ('strength = -"1"\n' + allocate("depth"), "an option is a name and a plain value"),
    "minus an imaginary option": ("strength = -1j\n" + allocate("depth"), "an option is a name and a plain value"),
    "annotated option": ('compare: str = "row"\n' + PLAIN, "'AnnAssign' is not part"),
    "augmented option": ("strength += 1\n" + allocate("depth"), "'AugAssign' is not part"),
    "option of what is not defined": ("strength = 1\n" + PLAIN, "strength goes with allocate"),
    "option of a score that is not defined": ('compare = "row"\n' + allocate("depth"), "compare goes with score"),
    "imaginary option": ("protect = 1j\n" + PLAIN, "protect cannot be complex"),
    "None as an option": ("protect = None\n" + PLAIN, "protect cannot be NoneType"),
    "True as an option": ("protect = True\n" + PLAIN, "protect cannot be True"),
    "False as an option": ("protect = False\n" + PLAIN, "protect cannot be False"),
    "bytes as an option": ('compare = b"row"\n' + PLAIN, "compare cannot be bytes"),
    "endless option": ("max_swaps = 1e999\n" + PLAIN, "max_swaps cannot be inf"),
    "huge option": (f"max_swaps = 0x{'f' * 5000}\n" + PLAIN, "max_swaps cannot be int"),
    "string for a number": ('protect = "1"\n' + PLAIN, "protect cannot be '1'"),
    "number for a choice": ("compare = 0\n" + PLAIN, "compare cannot be 0"),
    # constants
    "constant too large": (score("weight * 1000001"), "the constant is beyond"),
    "constant too small": (score("weight * -1000001"), "the constant is beyond"),
    "constant a little too large": (score("weight * 1000000.01"), "the constant is beyond"),
    "infinity": (score("weight * 1e999"), "the constant is beyond"),
    "minus infinity": (score("weight * -1e999"), "the constant is beyond"),
    "huge integer": (score(f"weight * {'9' * 4000}"), "the constant is beyond"),
    "huge negative integer": (score(f"weight * -{'9' * 4000}"), "the constant is beyond"),
    "constant too large alone": (lines("t = 1e7", "return weight * t"), "the constant is beyond"),
    # sizes
    "one character too many": (PLAIN.ljust(20_001), "the text has 20,001 characters"),
    "one step too many": (steps(257), "more than 256 steps"),
    "far too many steps": (steps(900), "more than 256 steps"),
    "too many steps of which none counts": (
        lines(*(f"t = exp(weight) + {number}" for number in range(2, 300)), "return weight"),
        "more than 256 steps",
    ),
    "too many constants": (lines(*(f"t = {number}" for number in range(300)), "return weight"), "more than 256 steps"),
    "nested too deeply": (score("abs(" * 64 + "weight" + ")" * 64), "nested more than 64 deep"),
    "nested too deeply on the left": (score("weight" + " + 1" * 64), "nested more than 64 deep"),
    "nested too deeply in a local": (
        lines(f"t = {'abs(' * 64}weight{')' * 64}", "return t"),
        "nested more than 64 deep",
    ),
    "too many signs": (score("-" * 64 + "weight"), "nested more than 64 deep"),
    "too many plus signs": (score("+" * 64 + "weight"), "nested more than 64 deep"),
    "too many matrices": (alive(13), "13 matrices are alive at once"),
    "too many matrices of pairs": (alive_pairs(13), "13 matrices are alive at once"),
    "too long once it is written out": (long_names(240), "written out, the program has"),
    # texts that are none
    "empty": ("", "defines no score"),
    "open bracket": ("def score(weight:\n    return weight\n", "not valid syntax"),
    "NUL": (PLAIN + "\0", ""),
    "half a surrogate": (PLAIN + "# \ud800", "unreadable characters"),
    "too deep for Python": (score("-" * 15_000 + "weight"), "nested too deeply"),
    "brackets too deep for Python": (score("(" * 5000 + "weight" + ")" * 5000), "not valid syntax"),
    "powers too deep for Python": (score("weight" + "**1" * 6000), "nested too deeply"),
    "sums too deep for Python": (score("weight" + "+1" * 9000), "nested too deeply"),
    # types
    "scalar": (score("depth", "depth"), "score is scalar"),
    "constant": (score("1", ""), "score is scalar"),
    "R": (score("output_norm", "output_norm"), "score is R"),
    "C": (score("input_norm", "input_norm"), "score is C"),
    "CC": (score("gram", "gram"), "score is CC"),
    "scalar allocation": (allocate("mean(depth)"), "allocate is scalar"),
    "constant allocation": (allocate("1", ""), "allocate is scalar"),
    "folded to a score": (score("weight * softmax(1)"), "softmax over"),
    "folded over rows": (score('weight * sum(1, over="rows")'), "sum over"),
    "folded quantile": (score("weight * quantile(1, 1)"), "quantile over"),
    "folded diagonal": (score("weight * diagonal(1)"), "diagonal does not take"),
    "folded product": (score("weight * (1 @ 1)"), "matmul does not take"),
}


def _bounds() -> Iterator[tuple[str, tuple[str, str]]]:
    """Every number of an option just beyond what it may be, every choice misspelled."""
    for name, (low, high) in NUMBERS.items():
        body = allocate("depth") if name in OF_ALLOCATE else PLAIN
        for value in (math.nextafter(low, -math.inf), low - 1, math.nextafter(high, math.inf), high + 1):
            yield f"{name} = {value!r}", (f"{name} = {value!r}\n{body}", f"{name} cannot be")
    for name, choices in CHOICES.items():
        body = allocate("depth") if name in OF_ALLOCATE else PLAIN
        for choice in (*choices, "other", ""):
            yield f"{name} = {choice} x", (f'{name} = "{choice}x"\n{body}', f"{name} cannot be '{choice}x'")
    for other, choices in CHOICES.items():
        for name, own in CHOICES.items():
            for choice in sorted({*choices} - {*own}):
                body = allocate("depth") if name in OF_ALLOCATE else PLAIN
                yield f"{name} = {choice} of {other}", (f'{name} = "{choice}"\n{body}', f"{name} cannot be '{choice}'")


NUMBERS = {
    "max_swaps": (0, 10_000),
    "protect": (0, 1),
    "towards_dense": (0, 1),
    "strength": (-10, 10),
    "max_shift": (0, 1),
    "least_kept": (0.1, 1),
    "temperature": (0.01, 100),
}
CHOICES = {
    "compare": ("row", "layer"),
    "refine": ("none", "swaps", "dsnot", "permute"),
    "update": ("none", "least_squares", "sparsegpt", "admm"),
    "granularity": ("block", "linear"),
}
OF_ALLOCATE = frozenset({"strength", "max_shift", "least_kept", "temperature", "granularity"})

REFUSED |= dict(_bounds())

# What is exactly allowed.
ACCEPTED: dict[str, str] = {
    "wanda": score("abs(weight) * input_norm", "weight, input_norm"),
    "all characters": PLAIN.ljust(20_000),
    "all steps": steps(256),
    "all of the depth": score("abs(" * 63 + "weight" + ")" * 63),
    "all of the depth in a local": lines(f"t = {'abs(' * 63}weight{')' * 63}", "return t"),
    "all matrices": alive(12),
    "all matrices of pairs": alive_pairs(12),
    "the largest constants": score("weight * 1000000 + -1000000"),
    "long names": long_names(180),
    "a name that an operator with a sign has": lines("power = weight", "return power"),
    "a local for a statistic": lines("gram = weight", "return gram"),
    "a sign before a name": score("+weight - -weight"),
    "an axis": score('rank(weight, over="rows") + rank(weight, over="columns") + rank(weight, over="all")'),
    "a text between": lines('"""x"""', "return weight"),
    "half a surrogate in a text": '"""\\ud800"""\n' + PLAIN,
    "an odd escape in a text": '"""\\d"""\n' + PLAIN,
    "both functions": '"""x"""\n' + PLAIN + allocate("depth"),
    "an option after its function": PLAIN + "protect = 0.5\n",
} | {
    f"{name} = {value}": f"{name} = {value!r}\n{allocate('depth') if name in OF_ALLOCATE else PLAIN}"
    for name, values in (NUMBERS | CHOICES).items()
    for value in values
}

# ---------------------------------------------------------------------------------------------------------------------
# programs that a search does not take: what is frozen, whether the target is n:m, the program, the reason

TOO_MANY_PRODUCTS = score("weight" + " @ gram" * 5, "weight, gram")
TWO_TIMES_PRODUCTS = lines(
    "a = gram @ gram", "b = a @ a", "c = b @ b", "d = c @ c", "return weight @ d", parameters="weight, gram"
)
SLOW = PLAIN + allocate("sensitivity", "sensitivity")

OUTSIDE: dict[str, tuple[str, bool, str, str]] = {
    "no score": ("", False, allocate("depth"), "the program defines no score"),
    "allocation where it is frozen": ("allocate=uniform", False, PLAIN + allocate("depth"), "allocate is frozen"),
    "what takes minutes": ("", False, SLOW, "sensitivity takes too long"),
    "products": ("", False, TOO_MANY_PRODUCTS, "5 products with a gram"),
    "products of products": ("", False, TWO_TIMES_PRODUCTS, "5 products with a gram"),
    "another choice": ("compare=layer", False, PLAIN, "compare is frozen at 'layer'"),
    "another number": ("protect=0.5", False, 'refine = "swaps"\n' + PLAIN, "protect is frozen at 0.5"),
    "another number of allocate": ("strength=2", False, PLAIN + allocate("depth"), "strength is frozen at 2.0"),
    "another update": ("update=admm", False, PLAIN, "update is frozen at 'admm'"),
    "permutation without a pattern": ("", False, 'refine = "permute"\n' + PLAIN, "do not go together"),
    "permutation with a mask chosen": (
        "",
        True,
        'refine = "permute"\nupdate = "admm"\n' + PLAIN,
        "do not go together",
    ),
    "no update towards anything": ("", False, "towards_dense = 0.5\n" + PLAIN, "towards_dense is for an update"),
} | {
    f"{refine} beside {update}": (
        "",
        True,
        f'refine = "{refine}"\nupdate = "{update}"\n' + PLAIN,
        "do not go together",
    )
    for refine in ("swaps", "dsnot")
    for update in ("sparsegpt", "admm")
}

INSIDE: dict[str, tuple[str, bool, str]] = {
    "four products": ("", False, score("weight" + " @ gram" * 4, "weight, gram")),
    "what is frozen": ("compare=layer", False, 'compare = "layer"\n' + PLAIN),
    "what is frozen of what is not defined": ("strength=2", False, PLAIN),
    "permutation": ("", True, 'refine = "permute"\n' + PLAIN),
    "update": ("", False, 'refine = "swaps"\nupdate = "least_squares"\ntowards_dense = 0.5\n' + PLAIN),
    "mask chosen": ("", False, 'update = "admm"\n' + PLAIN),
    "allocation": ("", False, PLAIN + allocate("marginal_damage", "marginal_damage")),
}

TOWARDS = 'update = "admm"\ntowards_dense = 0.5\n' + PLAIN
BOTH = PLAIN + allocate("depth")

# What is made of a program to have what is frozen: a digest, or nothing.
UNFITTING: dict[str, tuple[str, bool, str]] = {
    "no score": ("", False, allocate("depth")),
    "no score where allocations are frozen": ("allocate=uniform", False, allocate("depth")),
    "products": ("", False, TOO_MANY_PRODUCTS),
    "what takes minutes": ("", False, SLOW),
    "permutation": ("", False, 'refine = "permute"\n' + PLAIN),
    "swaps beside a mask chosen": ("update=admm", False, 'refine = "swaps"\n' + PLAIN),
}
FITTING: dict[str, tuple[str, bool, str, str]] = {
    "another choice": ("compare=layer", False, PLAIN, 'compare = "layer"\n' + PLAIN),
    "an option that it has": ("compare=row", False, 'compare = "layer"\n' + PLAIN, PLAIN),
    "without its allocation": ("allocate=uniform", False, "strength = 2\n" + BOTH, PLAIN),
    "with its allocation": ("compare=row", False, BOTH, BOTH),
    "what is frozen of what is not defined": ("strength=2", False, PLAIN, PLAIN),
    "what is frozen of what is": (
        "strength=2",
        False,
        PLAIN + allocate("depth"),
        "strength = 2\n" + PLAIN + allocate("depth"),
    ),
    "towards nothing": ("update=none", False, TOWARDS, PLAIN),
    "towards something": (
        "",
        False,
        f'update = "admm"\ntowards_dense = 0.5\n{PLAIN}',
        f'update = "admm"\ntowards_dense = 0.5\n{PLAIN}',
    ),
    "what takes minutes": ("allocate=uniform", False, SLOW, PLAIN),
}

# Texts of --freeze that are refused, and why.
FREEZES: dict[str, str] = {
    "update": "'update' names no value",
    "update none": "'update none' names no value",
    "allocate": "'allocate' names no value",
    "allocate=block": "allocate cannot be 'block'",
    "allocate=": "allocate cannot be ''",
    "update=none,update=none": "update is given twice",
    "update=none, update=admm": "update is given twice",
    "speed=1": "unknown option 'speed'",
    "=1": "unknown option ''",
    "update=fast": "update cannot be 'fast'",
    "update=": "update cannot be ''",
    "protect=2": "protect cannot be 2",
    "protect=-0.001": "protect cannot be -0.001",
    "protect=much": "protect cannot be 'much'",
    "protect=nan": "protect cannot be nan",
    "protect=inf": "protect cannot be inf",
    "protect=True": "protect cannot be 'True'",
    "update=none=none": "update cannot be 'none=none'",
    "refine=swaps,update=admm": "no program can have all of that together",
    "refine=dsnot,update=sparsegpt": "no program can have all of that together",
    "towards_dense=0.5,update=none": "no program can have all of that together",
    "refine=permute": "no program can have all of that together",
}

# ---------------------------------------------------------------------------------------------------------------------
# valid programs that make no sense: the function's text, where weights compete, the flaw; and some without one

SENSELESS: dict[str, tuple[str, str, str]] = {
    "small weights stay": (score("-abs(weight)"), "row", "large weights have low scores"),
    "size less an input's": (
        score("abs(weight) - input_norm", "weight, input_norm"),
        "layer",
        "large weights have low scores",
    ),
    "inputs of both signs": (
        score("abs(weight) * input_mean", "weight, input_mean"),
        "row",
        "large weights have low scores",
    ),
    "no weights": (score("output_norm * input_norm", "output_norm, input_norm"), "row", "weights do not matter"),
    "signs": (score("weight"), "row", "the sign of weights matters"),
    "signs of some": (
        score("abs(weight) + 0.3 * weight * input_norm", "weight, input_norm"),
        "row",
        "the sign of weights matters",
    ),
    "ties": (score("abs(weight) > 0.1"), "row", "many weights have the same score"),
    "few ties": (score("maximum(abs(weight), 0.5)"), "row", "many weights have the same score"),
    "ties of more than two thirds": (
        score("maximum(abs(weight), 0.168581)"),
        "row",
        "many weights have the same score",
    ),
    "a step and the next": (score("-(-abs(weight))"), "row", "negate makes no difference"),
    "steps as many as are looked at": (chain(40), "row", "multiply makes no difference"),
    "layers alike": (allocate("0 * depth"), "row", "all layers are alike"),
    "layers by the sparsity": (
        allocate("rank(abs(sparsity) * standardize(depth))", "depth, sparsity"),
        "row",
        "multiply makes no difference",
    ),
    "constant step": (
        score("abs(weight) * (input_norm >= 0)", "weight, input_norm"),
        "row",
        "greater_equal is the same everywhere",
    ),
    "square of a size": (score("square(abs(weight))"), "row", "square makes no difference"),
    "factor": (score("2 * abs(weight)"), "row", "multiply makes no difference"),
    "factor of the layer": (score("abs(weight) * depth", "weight, depth"), "layer", "multiply makes no difference"),
    "factor of a row": (
        score("abs(weight) * output_norm", "weight, output_norm"),
        "row",
        "multiply makes no difference",
    ),
    "shift of an allocation": (allocate("depth + 1"), "row", "add makes no difference"),
    "bottom": (score("maximum(abs(weight), 0)"), "row", "maximum makes no difference"),
}

SENSIBLE: dict[str, tuple[str, str]] = {
    "more steps than are looked at": (chain(41), "row"),
    "magnitude": (score("abs(weight)"), "row"),
    "wanda": (score("abs(weight) * input_norm", "weight, input_norm"), "row"),
    "factor of a row": (score("abs(weight) * output_norm", "weight, output_norm"), "layer"),
    "few ties": (score("maximum(abs(weight), 0.05)"), "row"),
    "inputs that go together": (score("abs(weight) @ gram", "weight, gram"), "row"),
    "depth": (allocate("depth"), "row"),
    "a multiple of an allocation": (allocate("2 * depth"), "row"),
}

# ---------------------------------------------------------------------------------------------------------------------
# the type of an expression: it is told by what takes that type only

PROBES: dict[str, str] = {
    "scalar": "weight * quantile(weight, {})",
    "R": 'weight * quantile(weight, mean({}, over="rows"))',
    "C": 'weight * quantile(weight, mean({}, over="columns"))',
    "RC": "{}",
    "CC": "weight * diagonal({})",
}
_OF_TYPE = {"scalar": "depth", "R": "output_norm", "C": "input_norm", "RC": "weight", "CC": "gram"}
_PARAMETERS = (
    "weight, depth, sparsity, input_norm, input_mean, input_std, input_max, output_norm, gram, inverse_gram_diagonal, "
    "gradient, output_gradient"
)
TYPES: dict[str, str] = {
    **{text: kind for kind, text in _OF_TYPE.items()},
    "2": "scalar",
    "sparsity": "scalar",
    "output_gradient": "R",
    "gradient": "RC",
    "inverse_gram_diagonal": "C",
    "input_mean": "C",
    "input_std": "C",
    "input_max": "C",
    # elementwise: R and C spread to RC; a CC takes scalars only
    **{f"depth + {text}": kind for kind, text in _OF_TYPE.items()},
    **{f"{text} - depth": kind for kind, text in _OF_TYPE.items()},
    **{f"{text} / {text}": kind for kind, text in _OF_TYPE.items()},
    **{f"sqrt({text})": kind for kind, text in _OF_TYPE.items()},
    **{f"{a} > {b}": "RC" for a in ("output_norm", "weight") for b in ("input_norm", "weight")},
    **{f"{a} * {b}": "RC" for a in ("input_norm", "weight") for b in ("output_norm", "weight")},
    "where(depth, output_norm, input_norm)": "RC",
    "where(output_norm, depth, output_norm)": "R",
    "clip(input_norm, 0, depth)": "C",
    "where(gram, gram, depth)": "CC",
    # along an axis
    "sum(weight)": "scalar",
    'sum(weight, over="rows")': "C",
    'sum(weight, over="columns")': "R",
    "sum(gram)": "scalar",
    'sum(gram, over="rows")': "C",
    "sum(output_norm)": "scalar",
    'sum(output_norm, over="rows")': "scalar",
    "sum(input_norm)": "scalar",
    'sum(input_norm, over="columns")': "scalar",
    'quantile(weight, depth, over="rows")': "C",
    "quantile(gram, depth)": "scalar",
    **{f'rank(weight, over="{axis}")': "RC" for axis in ("rows", "columns", "all")},
    **{f'rank(gram, over="{axis}")': "CC" for axis in ("rows", "columns", "all")},
    **{f'rank(output_norm, over="{axis}")': "R" for axis in ("rows", "all")},
    **{f'rank(input_norm, over="{axis}")': "C" for axis in ("columns", "all")},
    # with a CC
    "weight @ gram": "RC",
    "input_norm @ gram": "C",
    "gram @ gram": "CC",
    "diagonal(gram)": "C",
}
UNTYPED: tuple[str, ...] = (
    *(f"{text} * gram" for kind, text in _OF_TYPE.items() if kind not in ("scalar", "CC")),
    *(f"gram * {text}" for kind, text in _OF_TYPE.items() if kind not in ("scalar", "CC")),
    *(f"where({text}, gram, gram)" for kind, text in _OF_TYPE.items() if kind not in ("scalar", "CC")),
    "clip(weight, 0, gram)",
    "clip(weight, gram, 0)",
    *(f"{text} @ gram" for text in ("depth", "output_norm", "2")),
    *(f"{text} @ {other}" for text in _OF_TYPE.values() for other in _OF_TYPE.values() if other != "gram"),
    *(f"diagonal({text})" for text in _OF_TYPE.values() if text != "gram"),
    *(
        f'{operator}({text}, over="{axis}")'
        for operator in ("sum", "rank")
        for text, axes in {
            "depth": ("rows", "columns", "all"),
            "2": ("rows", "columns", "all"),
            "output_norm": ("columns",),
            "input_norm": ("rows",),
        }.items()
        for axis in axes
    ),
    'sum(gram, over="columns")',
    *(f"quantile(weight, {text})" for text in _OF_TYPE.values() if text != "depth"),
    'quantile(depth, 0.5, over="rows")',
)


def typed(text: str) -> str:
    return score(text, _PARAMETERS)


REFUSED |= {
    f"{text} is no {probe}": (typed(PROBES[probe].format(text)), "")
    for text, kind in TYPES.items()
    for probe in PROBES
    if probe != kind
}
REFUSED |= {
    f"{text} for a {probe}": (typed(PROBES[probe].format(text)), "does not take")
    for text in UNTYPED
    for probe in PROBES
}
ACCEPTED |= {f"{text} is {kind}": typed(PROBES[kind].format(text)) for text, kind in TYPES.items()}

LAYERS = (
    *("depth", "size", "skewness", "l_skewness", "kurtosis", "wanda_skewness", "wanda_l_skewness", "wanda_kurtosis"),
    *("wanda_mean", "wanda_median", "outlier_ratio", "spectral_alpha", "sensitivity", "marginal_damage"),
)
ACCEPTED |= {f"allocate by {name}": allocate(name, name) for name in LAYERS}
ACCEPTED |= {f"allocate by {name} of all": allocate(f"{name} / sum({name})", name) for name in LAYERS}
REFUSED |= {f"allocate by {name}": (allocate(name, name), "allocate is scalar") for name in ("sparsity", "temperature")}
REFUSED |= {
    f"allocate by {text}": (allocate(text, "depth, temperature"), "does not take")
    for text in (
        *(f'{name}(depth, over="{axis}") * depth' for name in ("sum", "rank") for axis in ("rows", "columns")),
        *("depth * sum(temperature)", "depth @ depth", "diagonal(depth)", "depth * quantile(depth, depth)"),
    )
}

# Each operator with as many arguments as it takes, with one less and with one more.
ARGUMENTS: dict[str, int] = {
    **dict.fromkeys(("negate", "abs", "sign", "sqrt", "square", "log1p", "exp", "tanh", "sum", "mean", "std"), 1),
    **dict.fromkeys(("min", "max", "median", "norm", "standardize", "minmax", "softmax", "rank", "cumulative_sum"), 1),
    **dict.fromkeys(("add", "subtract", "multiply", "divide", "power", "greater", "less", "greater_equal"), 2),
    **dict.fromkeys(("less_equal", "equal", "not_equal", "maximum", "minimum", "quantile", "matmul"), 2),
    **dict.fromkeys(("where", "clip"), 3),
    "diagonal": 1,
}
_FITTING = {"quantile": ("weight", "depth"), "matmul": ("weight", "gram"), "diagonal": ("gram",)}
WITH_AXIS = frozenset(
    {"sum", "mean", "std", "min", "max", "median", "quantile", "norm"}
    | {"standardize", "minmax", "softmax", "rank", "cumulative_sum"}
)


def called(name: str, more: int = 0, axis: str = "") -> str:
    first = [*_FITTING.get(name, ("weight", "depth", "input_norm")), "1", "1"]
    arguments = [*first[: ARGUMENTS[name] + more], *([f'over="{axis}"'] if axis else [])]
    return typed(f"weight * {name}({', '.join(arguments)})")


ACCEPTED |= {f"call of {name}": called(name) for name in ARGUMENTS}
REFUSED |= {
    f"call of {name} with {count:+d}": (called(name, count), f"{name} takes {ARGUMENTS[name]} argument")
    for name in ARGUMENTS
    for count in (-1, 1)
}
REFUSED |= {
    f"axis of {name}": (called(name, axis="rows"), f"{name} has no option 'over'")
    for name in ARGUMENTS
    if name not in WITH_AXIS
}
ACCEPTED |= {
    f"{name} over {axis}": called(name, axis=axis) for name in sorted(WITH_AXIS) for axis in ("rows", "columns", "all")
}

# Signs, brackets, folding and order.
ACCEPTED |= {
    text: typed(text)
    for text in (
        *(f"weight {sign} (input_norm {sign} depth)" for sign in ("+", "-", "*", "/", "**", ">", "<", ">=", "<=")),
        *(f"(weight {sign} input_norm) {sign} depth" for sign in ("+", "-", "*", "/", "**", ">", "<", "==", "!=")),
        *(f"2 {sign} 3 + weight" for sign in ("+", "-", "*", "/", "**", ">", "<", ">=", "<=", "==", "!=")),
        *(
            "weight * abs(-2)",
            "weight * where(1, 2, 3)",
            "weight * sqrt(2)",
            "weight * (1 / 0)",
            "weight * (1e6 * 1e6)",
        ),
        *("-weight ** 2", "(-weight) ** 2", "(-2) ** weight", "-2 ** weight", "weight ** -2", "-(weight + 1)"),
        *(
            "weight + 0.1",
            "weight - -0.0",
            "1e-45 * weight",
            "weight * 1e-50",
            "depth + weight + 1",
            "1 + weight + depth",
        ),
        *("weight * (weight @ gram @ gram)", "weight @ (gram @ gram)", "maximum(1, weight) + maximum(weight, 1)"),
        *("sqrt(abs(weight)) * sqrt(abs(weight)) + abs(weight)", "weight" + " * sqrt(1 + weight" * 18 + ")" * 18),
    )
}

# ---------------------------------------------------------------------------------------------------------------------
# whatever is no operator, no number and no assignment, wherever it stands

_OPERANDS = ("2", "2.5", "-2", "weight", "abs(weight)", "(weight + 1)")
_NO_VALUES = ("True", "False", "None", "...", "2j", '"x"', 'b"x"', 'f"x"', "[]", "{}", "(1, 2)", "[2]", "{2}", "{2: 2}")
_NO_VALUES += ("weight.T", "weight[0]", "weight[:]", "abs(weight).T", "(lambda: 2)", "(x := 2)", "[x for x in weight]")
_NO_VALUES += (
    "(2 if 1 else 2)",
    "(1 and 2)",
    "(not 2)",
    "~2",
    "(1 in 2)",
    "(1 is 2)",
    "(1 < 2 < 3)",
    "(yield)",
    "print",
)
_NO_STATEMENTS = ("pass", "2", "weight", "del weight", "global x", "import os", "from os import path", "assert 1")
_NO_STATEMENTS += ("raise weight", "if 1: x = 1", "while 1: x = 1", "for x in weight: y = 1", "with weight: x = 1")
_NO_STATEMENTS += (
    "def f(): x = 1",
    "class A: x = 1",
    "x += 1",
    "x: int = 1",
    "x = y = 1",
    "x, y = 1",
    "[x] = 1",
    "x.y = 1",
)
_NO_STATEMENTS += ("x[0] = 1", "*x, = 1", "exec(1)", "lambda: 1", "await weight", "try: x = 1\n    finally: x = 1")

_BY_CHANCE = {f"{sign}{operand}": f"{sign}{operand}" for sign in ("~", "not ", "*", "await ") for operand in _OPERANDS}
_BY_CHANCE |= {
    f"{left} {sign} {right}": f"{left} {sign} {right}"
    for sign in (
        "//",
        "%",
        "<<",
        ">>",
        "|",
        "&",
        "^",
        "and",
        "or",
        "is",
        "is not",
        "in",
        "not in",
        "if 1 else",
        ":=",
        "=",
    )
    for left, right in (("weight", "2"), ("2", "weight"), ("2", "3"), ("weight", "weight"), ("abs(2)", "-3"))
}
_BY_CHANCE |= {
    f"{value} in {place}": place.format(value)
    for value in _NO_VALUES
    for place in (
        "{}",
        "-{}",
        "+{}",
        "weight * {}",
        "{} - weight",
        "{} < weight",
        "abs({})",
        "clip(weight, 0, {})",
        "{}()",
    )
}
REFUSED |= {f"return {name}": (score(text), "") for name, text in _BY_CHANCE.items()}
REFUSED |= {f"local {name}": (lines(f"x = {text}", "return weight"), "") for name, text in _BY_CHANCE.items()}
REFUSED |= {f"inside: {text}": (lines(text, "return weight"), "") for text in _NO_STATEMENTS}
REFUSED |= {f"after: {text}": (lines("return weight", text), "") for text in _NO_STATEMENTS}
REFUSED |= {f"before it: {text}": (text.replace("    ", "") + "\n" + PLAIN, "") for text in _NO_STATEMENTS}
REFUSED |= {
    f"{name} = {value}": (f"{name} = {value}\n" + (allocate("depth") if name in OF_ALLOCATE else PLAIN), "")
    for name in (*NUMBERS, *CHOICES)
    for value in (
        *_NO_VALUES,
        *(f"-{value}" for value in _NO_VALUES),
        "+1",
        "1 + 1",
        "weight",
        "abs(1)",
        "1e999",
        "-1e999",
    )
}
ACCEPTED |= {
    f"{sign}{operand}": score(f"weight * {sign}{operand}") for sign in ("+", "-", "--") for operand in _OPERANDS
}
