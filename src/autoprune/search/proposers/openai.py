"""Chat completions from whatever speaks OpenAI's protocol: providers, vLLM, llama.cpp, Ollama, `transformers serve`.

The key comes from the environment only (OPENAI_API_KEY) and leaves this file only towards the server: texts and errors
that come back are stripped of it. Keys of less than eight characters are placeholders, not secrets.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
import warnings
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from autoprune.errors import AutopruneError
from autoprune.search.protocol import Answer, Request
from autoprune.search.reply import beginning, sound

if TYPE_CHECKING:
    import openai

MAX_CHARACTERS = 1_000_000
THREADS = "autoprune asks"
_MAX_BYTES = 32_000_000
_MIN_KEY = 8
_CONNECT_TIMEOUT_S = 10.0
_HIDDEN = "[key]"
_PAUSE_S = 0.5  # before the second attempt; then twice as long each time
_OUTAGE = 3  # requests in a row, each tried several times
_OF_THE_REQUEST = (400, 413, 422)  # what a server says of a request, not of itself

# Servers that know only the newer name of max_tokens refuse the older one, and say so; servers that know only the older
# one may ignore the newer, and then nothing would bound a reply. So the older goes first.
_INSTEAD = {"max_tokens": "max_completion_tokens", "seed": "", "temperature": ""}
"""What to send in place of a setting that the server refuses; "" for nothing."""

_LOOKS_LIKE_A_KEY = re.compile(
    r"\b[Bb]earer\s+\S+|\b(?:sk|pk|rk|gsk|hf|xai|nvapi)[-_][\w.*…-]{2,}|\beyJ[\w.-]{20,}|[\w-]{0,64}\*{3,}[\w-]{0,64}|\b\w{32,}"
)
_UNKNOWN_MODEL = re.compile(r"(?i)model\b.*\b(?:not (?:exist|found|a valid)|unknown)|\b(?:invalid|unknown) model")


class _NoText(ValueError):
    """The server replied, but not with a text; the message says with what."""


class _NoReply(_NoText):
    """What came is no reply of such a server."""


class _NoEnd(_NoReply):
    """It took too long."""


@dataclass(frozen=True)
class _Unanswered:
    """A request of which the server, or the way there, made nothing; what to tell of it if others are answered."""

    answer: Answer


class OpenAI:
    """A language model behind a server of chat completions, asked with several requests at a time.

    `timeout_s` bounds the wait for a reply to begin, at each of `retries` + 1 attempts, and the time from there to its
    end. What the server says a request has cost counts before the prices given here.

    A request that failed has an answer with an error; where several in a row did, it is the server, and an
    AutopruneError: whoever asks again later has lost nothing.
    """

    repairs = True

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        timeout_s: float = 300.0,
        concurrency: int = 4,
        retries: int = 4,
        max_tokens: int = 8192,
        temperature: float | None = None,
        usd_per_million_in: float | None = None,
        usd_per_million_out: float | None = None,
    ):
        openai = _package()
        base_url = base_url or os.environ.get("OPENAI_BASE_URL") or None
        self.model = model
        self._server = _shown(base_url) if base_url else "the OpenAI API"
        self._key = _key_of_environment(needed=not base_url)
        self._timeout_s, self._concurrency, self._retries = timeout_s, concurrency, retries
        self._prices = usd_per_million_in, usd_per_million_out
        self._values = {"max_tokens": max_tokens, "max_completion_tokens": max_tokens, "temperature": temperature}
        self._names = ("max_tokens", "seed") if temperature is None else ("max_tokens", "seed", "temperature")
        self._reached = self._succeeded = False
        self._unanswered = 0  # requests in a row
        # A broken reply raises errors of the HTTP library under the client: httpx2, and before openai 3 httpx.
        self._http: Any = sys.modules[openai.DefaultHttpxClient.__mro__[1].__module__.partition(".")[0]]
        self._client = openai.OpenAI(
            api_key=self._key or "none",
            base_url=base_url,
            timeout=openai.Timeout(timeout_s, connect=min(timeout_s, _CONNECT_TIMEOUT_S)),
            max_retries=retries,
        )

    def propose(self, requests: Sequence[Request]) -> Iterator[tuple[Request, Answer]]:
        """All answers, as they come. What no request can survive (a wrong key, say) is an AutopruneError."""
        waiting, done = deque(requests), SimpleQueue[tuple[Request, Answer | _Unanswered | Exception]]()
        unanswered: list[tuple[Request, Answer]] = []

        def work() -> None:
            while True:
                try:
                    request = waiting.popleft()
                except IndexError:
                    return
                try:
                    done.put((request, self._answer(request)))
                except Exception as error:  # raised again below, in the thread of the caller
                    done.put((request, error))

        # Daemons: who stops early, or presses Ctrl-C, does not wait for replies under way.
        for _ in range(min(self._concurrency, len(requests))):
            Thread(target=work, name=THREADS, daemon=True).start()
        try:
            for _ in requests:
                request, answer = done.get()
                if isinstance(answer, Exception):
                    raise answer
                if isinstance(answer, _Unanswered):
                    self._unanswered += 1
                    unanswered.append((request, answer.answer))
                    if self._unanswered >= _OUTAGE:
                        raise self._outage(answer.answer)
                    continue
                self._unanswered = 0
                yield request, answer
            yield from unanswered
        finally:
            waiting.clear()

    def _outage(self, last: Answer) -> AutopruneError:
        return AutopruneError(
            f"{self._unanswered} requests in a row were not answered, the last one with: {last.error.rstrip('.')}",
            where=self._server,
            remedy="see to the server; the same command goes on where it was",
        )

    def close(self) -> None:
        self._client.close()

    def _answer(self, request: Request) -> Answer | _Unanswered | AutopruneError:
        """What came of a request, or why none can succeed. No exception is chained: those of the client hold keys."""
        import openai

        start = time.monotonic()
        completion: Any = None
        text = error = ""
        answered = True
        try:
            completion = self._replied(request)
            text = _text(completion)
            self._succeeded = True
        except openai.APIError as failure:
            if fatal := self._fatal(failure):
                return fatal
            error = self._reason(failure)
            answered = getattr(failure, "status_code", 0) in _OF_THE_REQUEST
        except self._http.HTTPError as failure:
            error, answered = f"the reply broke off ({type(failure).__name__})", False
        except _NoText as failure:
            error, answered = str(failure), not isinstance(failure, _NoReply)
        usage = _usage(completion)
        tokens_in, tokens_out = (_amount(usage.get(name)) for name in ("prompt_tokens", "completion_tokens"))
        answer = Answer(
            text=_without(self._key, sound(text[:MAX_CHARACTERS]), least=12),
            model=self.model,
            seconds=time.monotonic() - start,
            tokens_in=None if tokens_in is None else int(tokens_in),
            tokens_out=None if tokens_out is None else int(tokens_out),
            price_usd=self._price(usage, tokens_in, tokens_out),
            error=self._line(error),
        )
        return answer if answered else _Unanswered(answer)

    def _replied(self, request: Request) -> Any:
        """The server's JSON. The client tries again until a reply begins; here, until it is whole."""
        for attempt in range(self._retries):
            try:
                return self._completion(request)
            except _NoEnd:
                raise
            except (_NoReply, self._http.HTTPError):
                time.sleep(_PAUSE_S * 2**attempt)
        return self._completion(request)

    def _completion(self, request: Request) -> Any:
        """The server's JSON, asked for without the settings it refuses; these are left out from then on."""
        import openai

        names = self._names
        values = {**self._values, "seed": request.seed % 2**31}
        while True:
            try:
                completion = self._post(request.prompt, {name: values[name] for name in names})
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                refused = _refused(error, names)
                if not refused:
                    raise
                replaced = (_INSTEAD[name] if name == refused else name for name in names)
                names = tuple(name for name in replaced if name)
            else:
                if "temperature" in self._names and "temperature" not in names:
                    warnings.warn(f"{self._server} refuses temperature: it is left out", stacklevel=1)
                self._names = names
                return completion

    def _post(self, prompt: str, settings: Mapping[str, Any]) -> Any:
        # Read piece by piece, since the client bounds neither how long a reply takes as a whole nor how long it is.
        with self._client.chat.completions.with_streaming_response.create(
            model=self.model, messages=[{"role": "user", "content": sound(prompt)}], **settings
        ) as reply:
            self._reached = True
            deadline = time.monotonic() + self._timeout_s
            body = bytearray()
            for piece in reply.iter_bytes():
                body += piece
                if len(body) > _MAX_BYTES:
                    raise _NoText(f"the reply has more than {_MAX_BYTES / 1e6:.0f} MB")
                if time.monotonic() > deadline:
                    raise _NoEnd(f"the reply did not end within {self._timeout_s:g} s")
        try:
            return json.loads(body.decode(errors="replace"))
        except (ValueError, RecursionError):
            raise _NoReply(f"the reply is not JSON: {body[:100].decode(errors='replace')}") from None

    def _fatal(self, error: openai.APIError) -> AutopruneError | None:
        """The error of a run that had better end here, if it is one."""
        import openai

        reason, status = self._reason(error), getattr(error, "status_code", 0)
        self._reached = self._reached or bool(status)
        unreachable = isinstance(error, openai.APIConnectionError) and (
            not isinstance(error, openai.APITimeoutError) or isinstance(error.__cause__, self._http.ConnectTimeout)
        )
        remedy = ""
        if status == 401:
            remedy = "check OPENAI_API_KEY"
        elif status == 402 or error.code == "insufficient_quota":
            remedy = "see to the credit of the account"
        elif self._succeeded:  # what has worked may work again
            return None
        elif status == 404 or error.code == "model_not_found" or (status == 400 and self._blames_model(reason)):
            remedy = f"check the model name '{self._line(self.model)}' and the base URL"
        elif status == 403:
            remedy = "check what the key is allowed to do"
        elif unreachable and not self._reached:
            remedy = "check the base URL, and that the server runs"
        return AutopruneError(reason.rstrip("."), where=self._server, remedy=remedy) if remedy else None

    def _blames_model(self, reason: str) -> bool:
        return bool(_UNKNOWN_MODEL.search(reason) or re.search(rf"(['\"`]){re.escape(self.model)}\1", reason))

    def _reason(self, error: openai.APIError) -> str:
        import openai

        match error:
            case openai.APITimeoutError() if not isinstance(error.__cause__, self._http.ConnectTimeout):
                reason = f"no reply within {self._timeout_s:g} s"
            case openai.APIConnectionError():
                reason = f"no connection ({error.__cause__ or error})"
            case openai.APIStatusError():
                reason = f"error {error.status_code}: {_said(error)}"
            case _:
                reason = str(error)
        return self._line(reason)

    def _line(self, text: str) -> str:
        """A line for an error, without a key or anything like one: servers quote what they were sent, or half of it."""
        hidden = _without(self._key, text[:2_000], least=6)
        return beginning(_LOOKS_LIKE_A_KEY.sub(_HIDDEN, hidden), 300)

    def _price(self, usage: Mapping[str, Any], tokens_in: float | None, tokens_out: float | None) -> float | None:
        if (cost := _amount(usage.get("cost"))) is not None:
            return cost
        counts, prices = (tokens_in, tokens_out), self._prices
        if None in (*counts, *prices):
            return None
        return sum(count * price for count, price in zip(counts, prices, strict=True) if count and price) / 1e6


def _package() -> Any:
    try:
        import openai
    except ImportError:
        raise AutopruneError(
            "asking a server needs the openai package", remedy="pip install autoprune[openai]"
        ) from None
    return openai


def _key_of_environment(*, needed: bool) -> str:
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if needed and not key:
        raise AutopruneError(
            "OPENAI_API_KEY is not set", remedy="set it, or give the base URL of a server that needs none"
        )
    if not (key.isascii() and key.isprintable()):  # the client would quote it in an error of its own
        raise AutopruneError("OPENAI_API_KEY has characters that no key has", remedy="set it again")
    return key


def _shown(base_url: str) -> str:
    """The address without user, password and query, for errors."""
    try:
        parts = urlsplit(base_url)
        host, port = parts.hostname, parts.port
    except ValueError:
        parts = host = port = None
    if not parts or not host or parts.scheme not in ("http", "https"):
        raise AutopruneError(
            "the base URL is not one of a server", remedy="write it like http://localhost:8000/v1"
        ) from None
    return f"{parts.scheme}://{host}{f':{port}' if port else ''}{parts.path}"


def _refused(error: openai.APIStatusError, names: Sequence[str]) -> str:
    """The setting that the server does not take, as far as one is named and the request can do without."""
    said = error.response.text
    mentioned = [name for name in names if name in _INSTEAD and re.search(rf"\b{name}\b", said)]
    return error.param if error.param in mentioned else next(iter(mentioned), "")


def _said(error: openai.APIStatusError) -> str:
    match error.body:
        case {"message": str(said)} | {"detail": str(said)} if said:
            return said
    return error.response.text or error.message


def _text(completion: object) -> str:
    match completion:
        case {"choices": [{"message": {"content": str(text)}}, *_]} if text.strip():
            return text
        case {"choices": [{"message": {"content": [*parts]}}, *_]}:
            texts = [text for part in parts if isinstance(part, dict) and isinstance(text := part.get("text"), str)]
            if text := "".join(texts):
                return text
        case {"error": {"message": str(said)}} | {"error": str(said)}:
            raise _NoText(f"the server says: {said}")
        case {"choices": [{"message": {"refusal": str(said)}}, *_]} if said:
            raise _NoText(f"the model refuses: {said}")
        case {"choices": [{"finish_reason": "length"}, *_]}:
            raise _NoText("the tokens ran out before there was a text; raise max_tokens")
        case {"choices": [_, *_]}:
            raise _NoText("the reply has no text")
    raise _NoReply("the reply has no text")


def _usage(completion: object) -> Mapping[str, Any]:
    match completion:
        case {"usage": {**usage}}:
            return usage
    return {}


def _amount(value: object) -> float | None:
    """A number that can be stored and added up, if it is one."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if 0 <= value < 2**53 else None


def _without(key: str, text: str, *, least: int) -> str:
    """The text without the key, and without any piece of it that has `least` characters or more."""
    if len(key) < _MIN_KEY:
        return text
    text = text.replace(key, _HIDDEN)
    pieces = {key[start : start + least] for start in range(max(1, len(key) - least + 1))}
    found = [piece for piece in pieces if piece in text]
    if not found:
        return text
    # Pieces overlap: the places where one begins, and after the last of them the rest of it.
    begins = "|".join(map(re.escape, found))
    rest = min(least, len(key)) - 1
    return re.sub(rf"(?s)(?:(?={begins}).)+.{{{rest}}}", _HIDDEN, text)


__all__ = ["OpenAI"]
