"""Validates outputs for `cargo xtask schemas`: per line of JSON that comes in a line `valid`, `invalid WHY` or `unknown WHY` goes
out, in the same order."""

import json
import signal
import sys

from jsonschema import validators

# Of one output: patterns of schemas may take Python's re for ever.
SECONDS = 10


def late(*_):
    raise TimeoutError(f"not validated within {SECONDS} s")


def verdict(record):
    try:
        document = json.loads(record["content"])
    except ValueError as error:
        return f"invalid not JSON: {error}"
    schema = record["schema"]
    signal.alarm(SECONDS)
    try:
        validator = validators.validator_for(schema, default=validators.Draft202012Validator)
        error = next(validator(schema).iter_errors(document), None)
    except Exception as error:  # references to other documents, patterns that Python does not have
        return f"unknown {type(error).__name__}: {error}"
    finally:
        signal.alarm(0)
    return "valid" if error is None else f"invalid {error.message}"


signal.signal(signal.SIGALRM, late)
for line in sys.stdin:
    print(" ".join(verdict(json.loads(line)).split())[:300])
