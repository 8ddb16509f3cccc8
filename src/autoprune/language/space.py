"""Which programs a search is about: those that leave what is frozen as it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from autoprune.errors import AutopruneError, nearest
from autoprune.language.canonical import print_program
from autoprune.language.program import CHOOSES_MASK, OPTIONS, Option, Program, accepted
from autoprune.language.reader import read_program
from autoprune.language.statistics import FUNCTIONS

ALLOCATE, UNIFORM = "allocate", "uniform"

MAX_PRODUCTS = 4
"""Products with a gram that a program of a search has at most. Each takes as long as collecting the gram from R tokens,
and a capable model would write a whole solver out step by step (LOG.md): that is what `refine` and `update` are for."""


@dataclass(frozen=True)
class Space:
    """`frozen` holds header options at a value; `allocates` says whether a program may define allocate; `pattern`
    whether the target is n:m."""

    frozen: Mapping[str, str | float] = field(default_factory=lambda: MappingProxyType({}))
    allocates: bool = True
    pattern: bool = False

    @classmethod
    def of(cls, text: str, *, pattern: bool = False) -> Space:
        """From the text of --freeze, as "update=none,allocate=uniform"; "" freezes nothing."""
        frozen: dict[str, str | float] = {}
        allocates = True
        for part in filter(None, (part.strip() for part in text.split(","))):
            name, equals, value = (side.strip() for side in part.partition("="))
            if not equals:
                raise AutopruneError(f"'{part}' names no value", where="--freeze", remedy="write it as update=none")
            if name == ALLOCATE:
                if value != UNIFORM:
                    raise AutopruneError(
                        f"allocate cannot be '{value}'", where="--freeze", remedy="use allocate=uniform"
                    )
                allocates = False
            elif name in frozen:
                raise AutopruneError(f"{name} is given twice", where="--freeze", remedy="give it once")
            elif name in OPTIONS:
                frozen |= accepted(**{name: _value(name, value)})
            else:
                raise AutopruneError(
                    f"unknown option '{name}'", where="--freeze", remedy=nearest(name, [*OPTIONS, ALLOCATE])
                )
        space = cls(MappingProxyType(frozen), allocates, pattern)
        if not space.methods:
            raise AutopruneError("no program can have all of that together", where="--freeze", remedy="freeze fewer")
        return space

    @property
    def functions(self) -> tuple[str, ...]:
        """What a program may define; it has to define a score."""
        return tuple(name for name in FUNCTIONS if self.allocates or name != ALLOCATE)

    @property
    def methods(self) -> tuple[tuple[str, str], ...]:
        """The pairs of refine and update that a program may have: all that fit together and are not frozen."""
        refines, updates = (
            (self.frozen[name],) if name in self.frozen else OPTIONS[name].choices for name in ("refine", "update")
        )
        return tuple(
            (str(refine), str(update))
            for refine in refines
            for update in updates
            if not (refine != "none" and update in CHOOSES_MASK)
            and not (refine == "permute" and not self.pattern)
            and not (update == "none" and self.frozen.get("towards_dense"))
        )

    @staticmethod
    def idle(refine: str, update: str) -> frozenset[str]:
        """Options that do nothing beside these."""
        idle = {"max_swaps": refine != "swaps", "protect": refine != "swaps", "towards_dense": update == "none"}
        return frozenset(name for name, is_idle in idle.items() if is_idle)

    @property
    def offered(self) -> tuple[Option, ...]:
        """Options that a program may choose, and that do something."""
        idle = frozenset.intersection(*(self.idle(*method) for method in self.methods))
        return tuple(
            option
            for option in OPTIONS.values()
            if option.function in self.functions and option.name not in self.frozen and option.name not in idle
        )

    @property
    def needs_allocate(self) -> bool:
        """Whether an option is frozen, at another value than its default, that only an allocation has."""
        changed = [name for name, value in self.frozen.items() if value != OPTIONS[name].default]
        return self.allocates and any(OPTIONS[name].function == ALLOCATE for name in changed)

    def fitted(self, program: Program) -> Program | None:
        """The program with what is frozen as it is here; None where that makes none of this space."""
        tapes = [tape for tape in program.functions if tape.function in self.functions]
        defined = {tape.function for tape in tapes}
        frozen = {name: value for name, value in self.frozen.items() if OPTIONS[name].function in defined}
        options = {
            name: value if OPTIONS[name].function in defined else OPTIONS[name].default
            for name, value in {**program.options, **frozen}.items()
        }
        if options["update"] == "none":
            options["towards_dense"] = 0.0
        if "score" not in defined:
            return None
        made = read_program(print_program(options, tapes), name=program.name)
        return None if self.refusal(made) else made

    def refusal(self, program: Program) -> str:
        """Why a program is not one of them, for its author to mend; "" where it is."""
        if program.score is None:
            return "the program defines no score; add one"
        if program.allocate and not self.allocates:
            return "allocate is frozen: every layer loses the same; remove allocate and its options"
        for tape in program.functions:
            for name in tape.statistics:
                if not FUNCTIONS[tape.function].statistics[name].searched:
                    return f"{name} takes too long to measure for a search; use another statistic"
        products = sum(node.operator == "matmul" for tape in program.functions for _, node in tape.steps())
        if products > MAX_PRODUCTS:
            return f"{products} products with a gram take too long; use {MAX_PRODUCTS} at most"
        defined = {tape.function for tape in program.functions}
        for name, value in self.frozen.items():
            if OPTIONS[name].function in defined and program.options[name] != value:
                return f"{name} is frozen at {value!r}, not {program.options[name]!r}; write {name} = {value!r}"
        method = str(program.options["refine"]), str(program.options["update"])
        if method not in self.methods:
            return f"refine {method[0]!r} and update {method[1]!r} do not go together here; use refine 'none'"
        if program.options["towards_dense"] and method[1] == "none":
            return "towards_dense is for an update, not for none; remove it"
        return ""


def _value(name: str, text: str) -> str | float:
    if OPTIONS[name].choices:
        return text
    try:
        return float(text)
    except ValueError:
        raise AutopruneError(
            f"{name} cannot be '{text}'", where="--freeze", remedy=f"use {OPTIONS[name].allowed}"
        ) from None
