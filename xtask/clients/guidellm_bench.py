"""guidellm: a concurrent benchmark whose report has no failed request and counts the tokens that the server counted."""

import json
import os
import subprocess
import sys
from pathlib import Path

from live import MODEL, NAME, Server, passed

work = Path(os.environ["NJOULE_CHECK_WORK"])
COUNT = 40
with Server() as server:
    subprocess.run(
        [str(Path(sys.executable).with_name("guidellm")), "run", "--backend",
         json.dumps({"kind": "openai_http", "target": server.url, "model": NAME}), "--tokenizer",
         json.dumps({"kind": "huggingface_auto", "model": MODEL}), "--profile", json.dumps({"kind": "concurrent", "streams": [4]}),
         "--constraint", json.dumps({"kind": "max_requests", "count": COUNT}), "--data",
         json.dumps({"kind": "synthetic_text", "prompt_tokens": 32, "output_tokens": 16}), "--disable-console-interactive"],
        check=True, cwd=work, env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(work / "hf")})
    report = json.loads((work / "benchmarks.json").read_text())
    totals = report["benchmarks"][0]["metrics"]["request_totals"]
    assert totals["successful"] == COUNT and totals["errored"] == 0, totals
    made = server.metric("njoule_generation_tokens_total")
    assert made >= COUNT * 16, made
passed(f"{COUNT} requests, none failed, {made:.0f} tokens")
