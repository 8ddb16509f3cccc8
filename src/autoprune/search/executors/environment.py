"""What of the environment a worker may see: enough to find Python, the models and the devices, and no secret."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

_NAMES = frozenset(
    [
        "PATH",
        "HOME",
        "USER",
        "LOGNAME",
        "LANG",
        "LANGUAGE",
        "TZ",
        "TMPDIR",
        "TEMP",
        "TMP",
        "VIRTUAL_ENV",
        "CONDA_PREFIX",
        "LD_LIBRARY_PATH",
        "LD_PRELOAD",
        "DYLD_LIBRARY_PATH",
        "THP_MEM_ALLOC_ENABLE",
        "XDG_CACHE_HOME",
        "HF_HOME",
        "HF_HUB_CACHE",
        "HF_HUB_OFFLINE",
        "HF_DATASETS_CACHE",
        "HF_DATASETS_OFFLINE",
    ]
)
_PREFIXES = (
    "LC_",
    "PYTHON",
    "AUTOPRUNE_",
    "OMP_",
    "CUDA_",
    "CUBLAS_",
    "NVIDIA_",
    "HIP_",
    "ROCR_",
    "TORCH_",
    "PYTORCH_",
    "TRANSFORMERS_",
)
_SECRETS = ("KEY", "TOKEN", "SECRET", "PASSWORD", "PASSWD", "CREDENTIAL")


def allowed(environment: Mapping[str, str]) -> dict[str, str]:
    """Those variables that are known to be needed and harmless."""
    secret = set(secrets(environment))
    return {
        name: value
        for name, value in environment.items()
        if name not in secret and (name in _NAMES or name.startswith(_PREFIXES))
    }


def secrets(names: Iterable[str]) -> list[str]:
    """Those names that say that their value is a secret."""
    return [name for name in names if any(word in name.upper() for word in _SECRETS)]
