"""Target: a safetensors file, or the index of several → places of tensors, and the tensors."""

from __future__ import annotations

import json
import os
import tempfile
from functools import cache
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import torch

from autoprune.errors import AutopruneError
from autoprune.models.shards import INDEX, SINGLE, Shards
from fuzz import texts
from fuzz.outcome import ACCEPTED, refused

_INDEX_MARK = b'{"'  # a header's length never begins so: it would be beyond the longest
_SHARD = "model-00001-of-00001.safetensors"

_VALUES: tuple[Any, ...] = (
    *(0, 1, -1, 2, 3, 2**31, 2**63 - 1, 2**63, 2**64, 10**30, -(2**63), 1.0, 2.5, 1e30, float("inf"), float("nan")),
    *(
        True,
        None,
        "",
        "2",
        "12",
        "F32",
        "BF16",
        "U64",
        "BOOL",
        "F8_E4M3",
        "F4",
        "\ud800",
        "\x00",
        "../x",
        "/etc/passwd",
    ),
    *([], [0], [1, 2], [2, 1], [0, 10**6], ["0", "4"], [0.0, 4.0], [[0], [4]], [0] * 70, [2**40, 0], {}, {"a": []}),
)
_NAMES = ("a", "b", "c", "", "__metadata__", "dtype", "shape", "data_offsets", "x" * 500, "a.b", "é", "\ud800")
_FILES = (
    *(
        _SHARD,
        "../" + _SHARD,
        "/etc/passwd",
        "..",
        ".",
        "",
        "./" + _SHARD,
        "sub/" + _SHARD,
        "model.bin",
        "x.safetensors",
    ),
    *("folder.safetensors", "pipe.safetensors", "a\x00.safetensors", "\ud800.safetensors", "é.safetensors", INDEX),
    *("x" * 300 + ".safetensors", _SHARD.upper(), "~/x.safetensors", "C:\\x.safetensors", "\n.safetensors"),
)


def seeds() -> list[bytes]:
    """Files of a few tensors in several types, and an index."""
    made = [_file(_header(1)), _file(_header(4)), _file({}), _file({"__metadata__": {"format": "pt"}} | _header(2))]
    made.append(json.dumps({"metadata": {"total_size": 1}, "weight_map": {"a": _SHARD, "b": _SHARD}}).encode())
    return made


def _header(count: int) -> dict[str, Any]:
    sizes = {"F32": 4, "BF16": 2, "I8": 1, "BOOL": 1}
    header, start = {}, 0
    for (dtype, size), name in zip(list(sizes.items())[:count], "abcd", strict=False):
        header[name] = {"dtype": dtype, "shape": [2, 3], "data_offsets": [start, start + 6 * size]}
        start += 6 * size
    return header


def _file(header: Any, data: bytes = bytes(range(64)), text: bytes | None = None) -> bytes:
    text = json.dumps(header).encode() if text is None else text
    return len(text).to_bytes(8, "little") + text + data


def _parts(data: bytes) -> tuple[bytes, bytes]:
    """Header's text and tensors of a file, as far as it has them."""
    length = int.from_bytes(data[:8], "little")
    return data[8 : 8 + length], data[8 + length :]


def mutated(data: bytes, rng: Random) -> bytes:
    if data.startswith(_INDEX_MARK) or rng.random() < 0.05:
        return _changed_index(data, rng)
    text, tensors = _parts(data)
    try:
        header = json.loads(text)
        assert isinstance(header, dict)
    except (ValueError, AssertionError, RecursionError):
        header, tensors = _header(rng.randrange(5)), bytes(64)
    match rng.randrange(10):
        case 0:
            return _changed_bytes(data, rng)
        case 1:
            return _file(header, tensors, texts.mutated(texts.decoded(text), rng).encode("utf-8", "surrogatepass"))
        case 2:
            return _file(header, tensors, _odd_text(header, rng))
        case 3:
            length = rng.choice((0, 1, 7, 8, len(text) - 1, len(text) + 1, 10**8, 10**8 + 1, 2**63, 2**64 - 1))
            return max(length, 0).to_bytes(8, "little") + data[8:]
        case 4:
            tensors = tensors[: rng.randrange(len(tensors) + 1)] + bytes(rng.choice((0, 1, 8)))
        case 5:
            return _file(_header(rng.randrange(5)), bytes(rng.choice((0, 6, 12, 24, 36, 42, 48, 64))))
    _change(header, rng)
    return _file(header, tensors if rng.random() < 0.5 else bytes(_needed(header)))


def _needed(header: dict[str, Any]) -> int:
    """Bytes that the tensors of a header end at, so that files of the right length are frequent."""
    ends = [entry["data_offsets"][-1:] for entry in header.values() if isinstance(entry, dict)
            and isinstance(entry.get("data_offsets"), list)]  # fmt: skip
    return max((end for found in ends for end in found if type(end) is int and 0 <= end < 10_000), default=0)


def _change(header: dict[str, Any], rng: Random) -> None:
    """One entry, name or number of a header becomes another."""
    if not header or rng.random() < 0.2:
        name = rng.choice(_NAMES)
        shape = [rng.choice((0, 1, 2, 3, 2**40)) for _ in range(rng.choice((0, 1, 2, 3, 70)))]
        start = _needed(header)
        size = 4
        for length in shape:
            size *= length
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, start + size]}
        return
    name = rng.choice(list(header))
    entry = header[name]
    if not isinstance(entry, dict) or rng.random() < 0.1:
        header[name] = rng.choice(_VALUES)
        return
    key = rng.choice(("dtype", "shape", "data_offsets", rng.choice(_NAMES)))
    value = entry.get(key)
    if isinstance(value, list) and value and rng.random() < 0.7:
        value[rng.randrange(len(value))] = rng.choice(_VALUES)
    elif rng.random() < 0.1:
        entry.pop(key, None)
    else:
        entry[key] = rng.choice(_VALUES)


def _odd_text(header: dict[str, Any], rng: Random) -> bytes:
    text = json.dumps(header)
    return rng.choice(
        (
            b"[" * rng.choice((10, 2_000, 20_000)),
            b'{"a":' * rng.choice((10, 2_000)) + b"1" + b"}" * 10,
            text[:-1].encode() + b"," + text[1:].encode(),  # every key twice
            text.encode("utf-16"),
            b"\xef\xbb\xbf" + text.encode(),
            b"\xff" + text.encode(),
            text.replace("2", "9" * 5_000, 1).encode(),
            text.replace("2", "1e400", 1).encode(),
            text.replace("2", "NaN", 1).encode(),
            text.encode() + b" " * rng.choice((1, 7, 1000)),
            text.encode() + b"\x00",
            (
                text[:-1] + ',"z":{"dtype":"F32","shape":[' + "9" * 18 + ",9" * 3_000 + '],"data_offsets":[0,0]}}'
            ).encode(),
        )
    )


def _changed_bytes(data: bytes, rng: Random) -> bytes:
    made = bytearray(data)
    for _ in range(rng.choice((1, 2, 8))):
        made[rng.randrange(len(made) + 1) :][:1] = bytes([rng.randrange(256)])
        if made:
            made[rng.randrange(len(made))] = rng.randrange(256)
    return bytes(made[: rng.choice((len(made), len(made), rng.randrange(len(made) + 1)))])


def _changed_index(data: bytes, rng: Random) -> bytes:
    index: Any = {"weight_map": {name: rng.choice(_FILES) for name in rng.sample("abcd", rng.randrange(1, 4))}}
    if rng.random() < 0.3:
        index["weight_map"] = dict.fromkeys("abcd", _SHARD)
    if rng.random() < 0.2:
        index["weight_map"] = rng.choice(_VALUES)
    if rng.random() < 0.1:
        index["weight_map"] = {"a": rng.choice(_VALUES)}
    text = json.dumps(index)
    return texts.encoded(texts.mutated(text, rng) if rng.random() < 0.2 else text)


@cache
def _folders() -> tuple[tempfile.TemporaryDirectory[str], Path, Path]:
    """One folder for a single file, and one for an index, with an honest shard, a folder and a pipe of such names."""
    root = tempfile.TemporaryDirectory(prefix="autoprune-fuzz-")
    single, sharded = Path(root.name, "single"), Path(root.name, "sharded")
    single.mkdir()
    (sharded / "folder.safetensors").mkdir(parents=True)
    os.mkfifo(sharded / "pipe.safetensors")
    (sharded / _SHARD).write_bytes(_file(_header(4), bytes(48)))
    (Path(root.name) / _SHARD).write_bytes(_file(_header(4), bytes(48)))  # what ../ would reach
    return root, single, sharded


def check(data: bytes) -> str:
    """Every tensor that is accepted can be read, in both ways, from bytes of its own within the folder."""
    _, single, sharded = _folders()
    is_index = data.startswith(_INDEX_MARK)
    folder = sharded if is_index else single
    (folder / (INDEX if is_index else SINGLE)).write_bytes(data)
    try:
        shards = Shards(folder)
    except AutopruneError as error:
        return refused(error)
    taken: dict[str, list[tuple[int, int]]] = {}
    for name, place in shards.places.items():
        assert Path(place.file).name == place.file
        size = (folder / place.file).stat().st_size
        assert 8 < place.start <= place.end <= size
        taken.setdefault(place.file, []).append((place.start, place.end))
        read, mapped = shards.read(name), shards.mapped(name)
        assert read.dtype == mapped.dtype == place.dtype
        assert tuple(read.shape) == tuple(mapped.shape) == place.shape
        assert torch.equal(read.reshape(-1).view(torch.uint8), mapped.reshape(-1).view(torch.uint8))
    for ranges in taken.values():
        assert all(first[1] <= second[0] for first, second in pairwise(sorted(ranges)))
    return ACCEPTED
