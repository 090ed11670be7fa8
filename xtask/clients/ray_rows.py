"""deploy/ray/batch.py without Ray: rows that are no requests have their errors, and the others their answers."""

import json
import os
import sys
import types

sys.path.insert(0, os.environ["NJOULE_DEPLOY"] + "/ray")
sys.modules["ray"] = types.ModuleType("ray")

import batch
import rows
from live import MODEL, passed

good = {"custom_id": "good", "method": "POST", "url": "/v1/completions", "body": {"prompt": "Hi", "max_tokens": 3}}
CASES = [
    ("", None, "invalid_json"),
    ("{", None, "invalid_json"),
    ("[" * 100_000, None, "invalid_json"),
    ("[1]", None, "invalid_request"),
    ("{}", None, "invalid_request"),
    ('{"custom_id": 1}', None, "invalid_request"),
    (json.dumps({**good, "method": "GET"}), "good", "invalid_request"),
    (json.dumps({**good, "url": None}), "good", "invalid_request"),
    (json.dumps({**good, "url": "http://example.org/v1/completions"}), "good", "invalid_request"),
    (json.dumps({**good, "url": "//example.org/"}), "good", "invalid_request"),
    (json.dumps({**good, "url": "/v1/\n"}), "good", "invalid_request"),
    (json.dumps({**good, "body": "text"}), "good", "invalid_request"),
    (json.dumps({**good, "body": {"temperature": float("nan")}}), "good", "invalid_request"),
    (json.dumps({**good, "body": {"prompt": "Hi", "n": -1}}), "good", "invalid_value"),
    (json.dumps({**good, "url": "/nowhere"}), "good", "unknown_url"),
    (json.dumps(good), "good", None),
]
answer = batch.Answer(MODEL, 4, ("--threads", "1", "--max-num-seqs", "2"))
try:
    told = [json.loads(line) for line in answer({"text": [text for text, _, _ in CASES]})["line"]]
finally:
    answer.process.terminate()
    answer.process.wait(60)
for (text, custom_id, code), row in zip(CASES, told, strict=True):
    seen = row["error"] and row["error"]["code"]
    assert (row["custom_id"], seen) == (custom_id, code), (text[:80], row)
assert told[-1]["response"]["status_code"] == 200 and told[-2]["response"]["status_code"] == 404
# What stands between may answer anything, and say anything of when to come again.
assert json.loads(rows.record("a", 502, None, "<html>"))["error"]["code"] == "bad_answer"
assert [rows.patience(after) for after in ("2", None, "soon", "-1", "1e9", "Wed, 21 Oct 2026 07:28:00 GMT")] == [2, 1, 1, 0, 60, 1]
passed(f"{len(CASES)} rows, {len(CASES) - 1} of them refused")
