"""Validates the outputs of `cargo xtask schemas`: a line of JSON per output comes in, a line per invalid one goes out."""

import json
import sys

from jsonschema import validators

checked = 0
for line in sys.stdin:
    record = json.loads(line)
    checked += 1
    try:
        document = json.loads(record["content"])
    except ValueError as error:
        print(f"{record['name']}: not JSON: {error}")
        continue
    schema = record["schema"]
    validator = validators.validator_for(schema, default=validators.Draft202012Validator)
    error = next(validator(schema).iter_errors(document), None)
    if error is not None:
        print(f"{record['name']}: {error.message[:200]}")
print(f"checked {checked}", file=sys.stderr)
