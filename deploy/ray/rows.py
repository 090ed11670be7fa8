"""Rows of OpenAI's batch format: a line as a request, an answer as a record. Needs nothing but Python.

A row that is no request has a record that says what is wrong; it is never the end of the others.
"""

import json


class Refused(Exception):
    """A row has no answer."""

    def __init__(self, code: str, message: str, custom_id: str | None = None):
        super().__init__(message)
        self.code, self.custom_id = code, custom_id

    def record(self) -> str:
        error = {"code": self.code, "message": str(self)}
        return json.dumps({"id": f"batch_req_{self.code}", "custom_id": self.custom_id, "response": None, "error": error})


def request(text: str) -> tuple[str, str, bytes]:
    """A line's custom_id, url and body."""
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Refused("invalid_json", f"the line is no JSON: {error}") from None
    if not isinstance(row, dict):
        raise Refused("invalid_request", "the line is no object")
    custom_id, url, body = (row.get(key) for key in ("custom_id", "url", "body"))
    if not isinstance(custom_id, str):
        raise Refused("invalid_request", "custom_id must be a string")
    if row.get("method", "POST") != "POST":
        raise Refused("invalid_request", "method must be POST", custom_id)
    # The server's own paths: nothing that names another host, and nothing that no request can carry.
    if not isinstance(url, str) or not url.startswith("/") or url.startswith("//") or not (url.isascii() and url.isprintable()):
        raise Refused("invalid_request", "url must be a path such as /v1/chat/completions", custom_id)
    if not isinstance(body, dict):
        raise Refused("invalid_request", "body must be an object", custom_id)
    try:
        return custom_id, url, json.dumps(body, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        raise Refused("invalid_request", f"body: {error}", custom_id) from None


def record(custom_id: str, status: int, request_id: str | None, text: str) -> str:
    """What a server has said, which may be no JSON where something stands between."""
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        body = text
    error = None
    if status != 200:
        error = body.get("error") if isinstance(body, dict) else None
        error = error or {"code": "bad_answer", "message": f"status {status}"}
    response = {"status_code": status, "request_id": request_id, "body": body}
    return json.dumps({"id": f"batch_req_{request_id}", "custom_id": custom_id, "response": response, "error": error})


def patience(retry_after: str | None) -> float:
    """Seconds after which the server wants to be asked again; one where it does not say."""
    try:
        return min(max(float(retry_after), 0.0), 60.0)
    except (TypeError, ValueError):
        return 1.0
