"""Write a checkpoint with random weights in the shape of Llama-2-7B (13.5 GB bfloat16, two shards), and a tokenizer.

python benchmarks/large_checkpoint.py FOLDER --text articles.txt [--blocks 32]
"""

from __future__ import annotations

import argparse
import json
import zlib
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import LlamaConfig, PreTrainedTokenizerFast

WIDTH, INNER, VOCABULARY, HEADS = 4096, 11008, 32000, 32
SHARD = 9_900_000_000  # bytes, as the original's first


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--text", required=True, help="what the tokenizer is made from")
    parser.add_argument("--blocks", type=int, default=32)
    options = parser.parse_args()
    options.folder.mkdir(parents=True)
    config = LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=options.blocks,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        vocab_size=VOCABULARY,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
    )
    config.dtype = torch.bfloat16
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(options.folder)
    tokenizer(Path(options.text)).save_pretrained(options.folder)
    weights(options.folder, options.blocks)


def shapes(blocks: int) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, WIDTH)}
    for index in range(blocks):
        block = f"model.layers.{index}"
        found[f"{block}.input_layernorm.weight"] = (WIDTH,)
        found |= {f"{block}.self_attn.{name}_proj.weight": (WIDTH, WIDTH) for name in "qkvo"}
        found[f"{block}.post_attention_layernorm.weight"] = (WIDTH,)
        found |= {f"{block}.mlp.{name}_proj.weight": (INNER, WIDTH) for name in ("gate", "up")}
        found[f"{block}.mlp.down_proj.weight"] = (WIDTH, INNER)
    return found | {"model.norm.weight": (WIDTH,), "lm_head.weight": (VOCABULARY, WIDTH)}


def weights(folder: Path, blocks: int) -> None:
    wanted = shapes(blocks)
    sizes = {name: 2 * torch.Size(shape).numel() for name, shape in wanted.items()}
    shards, room = [[]], SHARD
    for name, size in sizes.items():
        if size > room:
            shards.append([])
            room = SHARD
        shards[-1].append(name)
        room -= size
    pool, where = torch.randn(1 << 26, generator=torch.Generator().manual_seed(0)).mul_(0.02).bfloat16(), {}
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_file({name: made(name, wanted[name], pool) for name in names}, folder / file, {"format": "pt"})
        where |= dict.fromkeys(names, file)
        print(file, flush=True)
    index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), "utf-8")


def made(name: str, shape: tuple[int, ...], pool: torch.Tensor) -> torch.Tensor:
    """Norms are ones; others are a piece of a pool of random numbers, for speed, each from another place."""
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    size = torch.Size(shape).numel()
    start = zlib.crc32(name.encode()) % len(pool)
    return torch.cat([pool[start:], pool.repeat(size // len(pool) + 1)])[:size].reshape(shape).clone()


def tokenizer(text: Path) -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=8000,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([text.read_text("utf-8")[:2_000_000]], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>")


if __name__ == "__main__":
    main()
