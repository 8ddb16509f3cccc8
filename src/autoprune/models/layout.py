"""Which tensors of a checkpoint make which parameters of a model, and back: transformers' own rules, applied to some
parameters at a time."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
    revert_weight_conversion,
)

from autoprune.errors import AutopruneError
from autoprune.models.facts import incomplete
from autoprune.models.shards import Shards


@dataclass(frozen=True)
class _Rule:
    """Tensors of the checkpoint, by name with the pattern that matched each, that make one or several parameters."""

    first: str
    sources: tuple[tuple[str, str], ...]
    converter: Any = None

    def apply(self, model: Any, read: Callable[[str], Tensor]) -> dict[str, Tensor]:
        """The parameters by name."""
        if self.converter is None:
            return {self.first: read(self.sources[0][0])}
        converter = deepcopy(self.converter)
        for name, pattern in self.sources:
            converter.add_tensor(self.first, name, pattern, read(name))
        found = converter.convert(self.first, model=model, config=model.config)
        return {name: value[0] if isinstance(value, list) else value for name, value in found.items()}


class Layout:
    """How the tensors of `shards` and the parameters and buffers of a model belong together."""

    def __init__(self, model: Any, shards: Shards, where: str):
        self.model, self.where = model, where
        transforms = get_model_conversion_mapping(model)
        renamings = [each for each in transforms if isinstance(each, WeightRenaming)]
        converters = [each for each in transforms if isinstance(each, WeightConverter)]
        by_pattern = {pattern: each for each in converters for pattern in each.source_patterns}
        state = model.state_dict()
        prefix = model.base_model_prefix
        sources: dict[str, list[tuple[str, str]]] = {}
        for name in sorted(shards.places, key=dot_natural_key):
            target, pattern = rename_source_key(name, renamings, converters, prefix, state)
            if target not in state and name in state:
                target, pattern = rename_source_key(name, [], [], prefix, state)
            if target in state:
                sources.setdefault(target, []).append((name, pattern or ""))
        model._weight_conversions = [each for each in transforms if each.was_used()]  # what goes back the same way
        self._rule: dict[str, _Rule] = {}

        def shape(name: str) -> Tensor:
            place = shards.places[name]
            return torch.empty(place.shape, dtype=place.dtype, device="meta")

        for first, names in sources.items():
            rule = _Rule(first, tuple(names), by_pattern.get(names[0][1]))
            for target, value in self._guarded(first, lambda rule=rule: rule.apply(model, shape)).items():
                if target in state and value.shape == state[target].shape:
                    self._rule[target] = rule
        ignored = [re.compile(pattern) for pattern in model._keys_to_ignore_on_load_missing or ()]
        tied = model.all_tied_weights_keys
        absent = [name for name in state if name not in self._rule and name not in tied]
        self.left_out = [name for name in absent if any(pattern.search(name) for pattern in ignored)]
        missing = [name for name in absent if name not in self.left_out]
        if missing:
            raise incomplete(missing, where)

    def __contains__(self, parameter: str) -> bool:
        return parameter in self._rule

    def tensors(self, parameters: Iterable[str]) -> list[str]:
        """Names of the tensors that make some parameters."""
        return sorted({name for parameter in parameters for name, _ in self._rule[parameter].sources})

    def is_single(self, parameter: str) -> bool:
        """Whether a parameter is one tensor of the checkpoint as it is."""
        return self._rule[parameter].converter is None

    def load(self, parameters: Iterable[str], read: Callable[[str], Tensor]) -> dict[str, Tensor]:
        """Parameters by name, from the tensors that `read` gives."""
        wanted = set(parameters)
        found: dict[str, Tensor] = {}
        for rule in {id(self._rule[name]): self._rule[name] for name in sorted(wanted)}.values():
            made = self._guarded(rule.first, lambda rule=rule: rule.apply(self.model, read))
            found |= {name: value for name, value in made.items() if name in wanted}
        return found

    def store(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of the checkpoint that parameters make; all of those that share one must be there."""
        return self._guarded("", lambda: revert_weight_conversion(self.model, dict(parameters)))

    def _guarded(self, name: str, convert: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        try:
            return convert()
        except AutopruneError:
            raise
        except Exception as error:
            raise AutopruneError(
                f"{name or 'a tensor'} cannot be converted ({' '.join(str(error).split())[:200]})",
                where=self.where,
                remedy="use a complete checkpoint of a causal LM",
            ) from error
