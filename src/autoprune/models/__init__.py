"""All that knows transformers: open a causal LM, find its blocks and linear layers, save it."""

from autoprune.models.disk import DiskBlocks, open_on_disk
from autoprune.models.facts import (
    check_finite,
    config_text,
    context_length,
    fingerprint,
    head_shape,
    input_device,
    vocabulary_size,
    weight_bytes,
)
from autoprune.models.linears import Linear, is_linear, replaced_forward, users
from autoprune.models.opening import (
    DEMO,
    OpenModel,
    copy_files,
    local_files,
    locate,
    open_model,
    read_settings,
    save,
    weight_files,
)
from autoprune.models.structure import BlockSource, InMemoryBlocks, all_linears, find_blocks, loading

__all__ = [
    "DEMO",
    "BlockSource",
    "DiskBlocks",
    "InMemoryBlocks",
    "Linear",
    "OpenModel",
    "all_linears",
    "check_finite",
    "config_text",
    "context_length",
    "copy_files",
    "find_blocks",
    "fingerprint",
    "head_shape",
    "input_device",
    "is_linear",
    "loading",
    "local_files",
    "locate",
    "open_model",
    "open_on_disk",
    "read_settings",
    "replaced_forward",
    "save",
    "users",
    "vocabulary_size",
    "weight_bytes",
    "weight_files",
]
