#!/usr/bin/env python3
"""Tokens per joule of a served model: tokens-per-joule.py http://SERVER:8000 [http://SERVER:9788]"""
import json, sys
from concurrent.futures import ThreadPoolExecutor
from energy import AGENT, ask, measure

server, agent = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else AGENT
request = {"prompt": "Once upon a time", "max_tokens": 32, "temperature": 0, "ignore_eos": True}
with measure("decode", agent) as m, ThreadPoolExecutor(4) as pool:
    answers = list(pool.map(lambda _: ask(server + "/v1/completions", request), range(8)))
tokens = sum(answer["usage"]["completion_tokens"] for answer in answers)
per_joule = None if not m.joules else tokens / m.joules
print(json.dumps({"output_tokens": tokens, "seconds": m.seconds, "total_j": m.joules, "method": m.method,
                  "output_tokens_per_joule": per_joule, "reasons": m.reasons}))
