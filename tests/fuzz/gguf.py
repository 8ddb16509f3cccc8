"""Target: a GGUF file → a model with its tokenizer, opened by transformers and the gguf package."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy
import torch
from gguf import GGUFValueType, GGUFWriter
from gguf.gguf_writer import GGUFValue

from autoprune.errors import AutopruneError
from autoprune.models import open_model
from fuzz.outcome import ACCEPTED, refused

_TOKENS, _WIDTH, _INNER, _HEADS = 96, 8, 16, 2
_LENGTHS = (0, 1, 7, 255, 256, 65_536, 2**31 - 1, 2**31, 2**32, 2**40, 2**60, 2**63, 2**64 - 1)
_ARCHITECTURES = ("llama", "qwen2")
_VALUES: tuple[Any, ...] = (
    *(0, 1, 2, 3, -1, 7, 8, 97, 4_096, 10_001, 2**31 - 1, 2**31, 2**32 - 1, 2**60, 2**63),
    *(
        0.0,
        -1.0,
        0.5,
        1e-45,
        3e38,
        float("inf"),
        float("nan"),
        True,
        False,
        "",
        "llama",
        "gpt2",
        "x" * 5_000,
        "\x1b]0;x\x07",
    ),
    *([0], [1, 2], [-1] * 96, ["a"], ["a b", "a b"], ["a"] * 96, [""] * 96, ["ab c", "a b c d", " "], [0.0] * 96),
)


@cache
def seeds() -> list[bytes]:
    """A Llama and a Qwen of one block, with a byte-pair tokenizer, and a file of a header alone."""
    return [*map(_made, _ARCHITECTURES), b"GGUF" + (3).to_bytes(4, "little") + bytes(16)]


def _made(architecture: str, change: Callable[[dict[str, GGUFValue]], None] = lambda values: None) -> bytes:
    """A file whose values, by key, `change` has changed."""
    rng = numpy.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "model.gguf")
        writer = GGUFWriter(file, architecture)
        writer.add_block_count(1)
        writer.add_context_length(64)
        writer.add_embedding_length(_WIDTH)
        writer.add_feed_forward_length(_INNER)
        writer.add_head_count(_HEADS)
        writer.add_head_count_kv(_HEADS)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_rope_freq_base(10_000.0)
        writer.add_vocab_size(_TOKENS)
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list([chr(33 + number) for number in range(_TOKENS - 4)] + ["ab", "cd", "<s>", "</s>"])
        writer.add_token_types([1] * (_TOKENS - 2) + [3, 3])
        writer.add_token_merges(["a b", "c d"])
        writer.add_bos_token_id(_TOKENS - 2)
        writer.add_eos_token_id(_TOKENS - 1)

        def add(name: str, *shape: int) -> None:
            writer.add_tensor(name, rng.normal(size=shape).astype(numpy.float32))

        add("token_embd.weight", _TOKENS, _WIDTH)
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(f"blk.0.{name}.weight", _WIDTH, _WIDTH)
        if architecture == "qwen2":
            for name in ("attn_q", "attn_k", "attn_v"):
                add(f"blk.0.{name}.bias", _WIDTH)
        add("blk.0.ffn_gate.weight", _INNER, _WIDTH)
        add("blk.0.ffn_up.weight", _INNER, _WIDTH)
        add("blk.0.ffn_down.weight", _WIDTH, _INNER)
        for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
            add(f"{name}.weight", _WIDTH)
        add("output.weight", _TOKENS, _WIDTH)
        change(writer.kv_data[0])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return file.read_bytes()


def mutated(data: bytes, rng: Random) -> bytes:
    """Another value of the configuration or tokenizer; or other bits, other lengths, bytes more or less, most of them
    in the header."""
    if rng.random() < 0.5:
        return _made(rng.choice(_ARCHITECTURES), lambda values: _change(values, rng))
    made = bytearray(data)
    end = len(made) if rng.random() < 0.1 else min(len(made), _header(data))
    for _ in range(rng.choice((1, 1, 2, 5))):
        place = rng.randrange(end + 1)
        match rng.randrange(8):
            case 0:
                made[place : place + 8] = rng.choice(_LENGTHS).to_bytes(8, "little")
            case 1:
                made[place : place + 4] = rng.choice((*range(14), 2**31, 2**32 - 1)).to_bytes(4, "little")
            case 2:
                del made[place : place + rng.choice((1, 4, 8))]
            case 3:
                del made[rng.randrange(len(made) + 1) :]
            case _:
                made[place : place + 1] = bytes([made[place] ^ 1 << rng.randrange(8)]) if place < len(made) else b""
    return bytes(made)


def _change(values: dict[str, GGUFValue], rng: Random) -> None:
    for _ in range(rng.choice((1, 1, 2))):
        key = rng.choice(list(values))
        if rng.random() < 0.1:
            del values[key]
            continue
        value = rng.choice(_VALUES)
        kind = GGUFValueType.get_type(value)
        if kind == GGUFValueType.INT32 and not -(2**31) <= value < 2**31:
            kind = GGUFValueType.UINT64
        inner = values[key].sub_type if isinstance(value, list) else None
        values[key] = GGUFValue(value, kind, inner)


def _header(data: bytes) -> int:
    """About where the tensors begin."""
    name = b"output.weight"
    return data.rfind(name) + len(name) + 32


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="autoprune-fuzz-")


def check(data: bytes) -> str:
    """What is accepted is a whole model."""
    file = Path(_folder().name, "model.gguf")
    file.write_bytes(data)
    try:
        opened = open_model(file, device="cpu")
    except AutopruneError as error:
        return refused(error)
    parameters = list(opened.model.parameters())
    assert parameters
    assert all(torch.isfinite(parameter).all() for parameter in parameters)
    return ACCEPTED
