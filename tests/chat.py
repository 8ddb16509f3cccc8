"""A server of chat completions on this machine, as tests need one; what it replies is theirs to say."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class ChatServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, handler: type[ChatHandler]):
        super().__init__(("127.0.0.1", 0), handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are part of it."""


class ChatHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def question(self) -> dict[str, Any]:
        """What was asked."""
        return json.loads(self.rfile.read(int(self.headers["content-length"])))

    def send(self, body: bytes | Any, status: int = 200, **headers: str) -> None:
        """A reply with bytes, or a value as JSON; names of headers have _ for -."""
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"content_type": "application/json", "content_length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """No noise."""


def completion(content: Any, usage: Any = None, **choice: Any) -> dict[str, Any]:
    """What a server says with a text, as OpenAI's API has it."""
    message = {"role": "assistant", "content": content}
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [{"index": 0, "finish_reason": "stop", "message": message, **choice}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120} if usage is None else usage,
    }
