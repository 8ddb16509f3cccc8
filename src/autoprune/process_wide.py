"""Settings of the whole process that several threads may need at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class ProcessWide:
    """A setting that the first of those who need it makes, and the last takes back. `make` returns what takes it
    back."""

    def __init__(self, make: Callable[[], Callable[[], None]]):
        self._make, self._lock = make, threading.Lock()
        self._holders = 0
        self._take_back: Callable[[], None] = lambda: None

    @contextmanager
    def held(self) -> Iterator[None]:
        with self._lock:
            if not self._holders:
                self._take_back = self._make()
            self._holders += 1
        try:
            yield
        finally:
            with self._lock:
                self._holders -= 1
                if not self._holders:
                    self._take_back()
