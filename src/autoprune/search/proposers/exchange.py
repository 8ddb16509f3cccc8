"""Prompts and replies as files in a folder: a person, an agent or another program answers.

A prompt is `00012-0.prompt.txt`, of step 12, round 0; its reply is `00012-0.reply.txt`. Both stay, so that a
search that was interrupted finds the replies it had.
"""

from __future__ import annotations

import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from autoprune.errors import AutopruneError
from autoprune.files import write_text, writing_to
from autoprune.search.protocol import Answer, Request
from autoprune.search.reply import sound

MAX_BYTES = 1_000_000

README = """autoprune writes prompts here and waits for replies.

Answer NNNNN-R.prompt.txt (step and round) with NNNNN-R.reply.txt, as plain text in UTF-8, in any order.
Write a reply under another name and rename it when it is whole, as in

    mv draft.txt 00012-0.reply.txt

A reply that is written in place is read once its size has stopped changing. Of each, 1 MB is read.
Nothing in a reply is ever run. A search that is resumed takes the replies that are here.
"""


class Exchange:
    """Whoever answers in a folder. Without `timeout_s` a prompt may wait for ever."""

    repairs = True

    def __init__(
        self,
        folder: Path | str,
        poll_s: float = 0.5,
        sleep: Callable[[float], None] = time.sleep,
        *,
        timeout_s: float | None = None,
    ):
        self.folder, self._poll_s, self._sleep, self._timeout_s = Path(folder), poll_s, sleep, timeout_s
        if self.folder.exists() and not self.folder.is_dir():
            raise AutopruneError("is a file, not a folder", where=str(folder), remedy="choose another folder")
        with writing_to(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            if not _holds(readme := self.folder / "README.txt", README):
                write_text(readme, README)

    def propose(self, requests: Sequence[Request]) -> Iterator[tuple[Request, Answer]]:
        """All answers, as replies are found; those that are there already come first."""
        pending = {self._ask(request): request for request in requests}
        assert len(pending) == len(requests), "two requests of the same step and round"
        sizes = {path: self._settled_size(path) for path in pending}
        start = time.monotonic()
        while True:
            for path, request in list(pending.items()):
                size = self._size(path)
                if size and size == sizes[path]:
                    del pending[path]
                    yield request, _answer(start, text=self._read(path))
                sizes[path] = size
            if not pending:
                return
            if self._timeout_s is not None and time.monotonic() - start > self._timeout_s:
                break
            self._sleep(self._poll_s)
        for request in pending.values():
            yield request, _answer(start, error=f"no reply within {self._timeout_s:g} s")

    def close(self) -> None:
        """Nothing is held open."""

    def _ask(self, request: Request) -> Path:
        """Write the prompt, unless it is there; the path where its reply is awaited."""
        prompt, reply = (self.folder / f"{request.step:05d}-{request.round}.{kind}.txt" for kind in ("prompt", "reply"))
        text = sound(request.prompt)
        with writing_to(self.folder):
            if not _holds(prompt, text):
                if prompt.exists() and reply.exists():  # a reply to another prompt than this one
                    reply.replace(reply.with_suffix(".old.txt"))
                write_text(prompt, text)
        return reply

    def _settled_size(self, path: Path) -> int:
        """The size of a reply that nobody has written to for two polls; 0 where it is younger, or not there."""
        size = self._size(path)
        with _reading(path):
            return size if size and time.time() - path.stat().st_mtime > 2 * self._poll_s else 0

    def _size(self, path: Path) -> int:
        with _reading(path):
            try:
                status = path.stat()
            except FileNotFoundError:
                if not self.folder.is_dir():
                    raise
                return 0
        if not stat.S_ISREG(status.st_mode):  # reading a pipe or a device might never end
            raise AutopruneError("is not a plain file", where=str(path), remedy="remove it")
        return status.st_size

    def _read(self, path: Path) -> str:
        with _reading(path), path.open("rb") as file:
            return file.read(MAX_BYTES).decode("utf-8-sig", errors="replace")


def _holds(path: Path, text: str) -> bool:
    return path.exists() and path.read_bytes() == text.encode()


def _answer(start: float, *, text: str = "", error: str = "") -> Answer:
    return Answer(text=text, model="exchange", seconds=time.monotonic() - start, error=error)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise AutopruneError(
            f"cannot read: {error.strerror or error}", where=str(path), remedy="see to the folder and its permissions"
        ) from error


__all__ = ["Exchange"]
