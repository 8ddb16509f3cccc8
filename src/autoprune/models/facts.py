"""What the rest of the package asks about a model as a whole."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from autoprune.errors import AutopruneError


def check_finite(model: nn.Module) -> None:
    """Refuse a model with NaN or infinite weights, naming the tensor."""
    for name, parameter in model.named_parameters():
        require_finite(parameter.data, name)


def require_finite(weight: Tensor, name: str) -> None:
    """The same for one tensor."""
    if weight.dtype.itemsize == 1:  # 8-bit floats have no isfinite of their own
        weight = weight.float()
    if weight.is_floating_point() and weight.numel() and not torch.isfinite(torch.stack(weight.aminmax())).all():
        raise AutopruneError(
            "the weights hold NaN or infinite values", where=name, remedy="use an undamaged checkpoint"
        )


def incomplete(missing: Sequence[str], where: str) -> AutopruneError:
    """The refusal of a checkpoint that lacks tensors of the model, by name."""
    return AutopruneError(
        f"the checkpoint lacks, or has in another shape, {len(missing)} of the model's tensors, "
        f"among them {min(missing)}",
        where=where,
        remedy="use a complete checkpoint of a causal LM",
    )


def fingerprint(model: nn.Module) -> str:
    """SHA-256 (hex) of all parameters, names, shapes and dtypes included."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        content: Any = parameter.data.cpu().contiguous().view(-1).view(torch.uint8).numpy()
        digest.update(content)
    return digest.hexdigest()


def input_device(model: nn.Module) -> torch.device:
    """Where token ids have to be."""
    return next(model.parameters()).device


def config_text(model: Any) -> str:
    """The model's configuration, as JSON."""
    return model.config.to_json_string()


def vocabulary_size(model: Any) -> int:
    """The number of tokens the model has embeddings for."""
    return model.get_input_embeddings().num_embeddings


def head_shape(model: Any) -> tuple[int, int]:
    """Tokens by width of the matrix that makes logits."""
    head = model.get_output_embeddings()
    weight = head.weight if head is not None else model.get_input_embeddings().weight
    return weight.shape[0], weight.shape[1]


def context_length(model: Any) -> int | None:
    """The number of positions the model was made for, if its config says."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def weight_bytes(model: nn.Module) -> int:
    """Bytes of all parameters, shared ones counted once."""
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
