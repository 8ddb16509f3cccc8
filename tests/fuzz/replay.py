"""Inputs that a campaign has kept, once more: `python -m fuzz.replay FOLDER...`, a folder being that of a part.

Under `coverage run --source=autoprune` it tells which lines they reach; after a mended defect, that they all pass.
"""

from __future__ import annotations

import importlib
import sys
from collections import Counter
from pathlib import Path


def main() -> None:
    for folder in map(Path, sys.argv[1:]):
        target = importlib.import_module(f"fuzz.{folder.name.rpartition('-')[0]}")
        files = sorted((folder / "corpus").iterdir()) + sorted(folder.glob("crash-*"))
        print(folder, dict(Counter(target.check(file.read_bytes()) for file in files)))


if __name__ == "__main__":
    main()
