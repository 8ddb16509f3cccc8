"""What long work tells whoever watches it."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Told about long work: `stage` names a phase and its total, `advance` counts within it."""

    def stage(self, name: str, total: float) -> None: ...

    def advance(self, amount: float) -> None: ...

    def note(self, text: str) -> None: ...


class Silent:
    """No progress shown."""

    def stage(self, name: str, total: float) -> None:
        pass

    def advance(self, amount: float) -> None:
        pass

    def note(self, text: str) -> None:
        pass
