"""deploy/ray/batch.py on one machine: two actors, one killed midway, every row answered once and right, and those that are none refused."""

import json
import os
import sys
import threading
from pathlib import Path

sys.path.insert(0, os.environ["NJOULE_DEPLOY"] + "/ray")
# Workers find what a script beside them would find.
os.environ["PYTHONPATH"] = sys.path[0]

import psutil
import ray

import batch
from live import MODEL, Server, passed, wait_for

ROWS = 96
work = Path(os.environ["NJOULE_CHECK_WORK"])


def servers():
    line = [os.environ["NJOULE_BIN"], "serve"]
    return [p for p in psutil.process_iter(["cmdline", "status"]) if (p.info["cmdline"] or [])[:2] == line and p.info["status"] != psutil.STATUS_ZOMBIE]


assert not servers(), "another njoule of this path runs"
body = lambda i: {"model": "m", "prompt": f"{i % 7} times", "max_tokens": 200, "temperature": 0, "ignore_eos": True}
(work / "in.jsonl").write_text("".join(
    json.dumps({"custom_id": f"r{i}", "method": "POST", "url": "/v1/completions", "body": body(i)}) + "\n" for i in range(ROWS))
    + 'no JSON\n{"custom_id": "bad"}\n')
ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
killed = []


def kill():
    wait_for("two servers", lambda: len(servers()) == 2, 120)
    # Each has some rows then.
    threading.Event().wait(1.0)
    victim = servers()[0].parent()
    victim.kill()
    killed.append(victim.pid)


thread = threading.Thread(target=kill)
thread.start()
arguments = ("--served-model-name", "m", "--threads", "1", "--max-num-seqs", "4")
done = batch.run(MODEL, str(work / "in.jsonl"), str(work / "out.jsonl"), replicas=2, concurrency=4, block=8, arguments=arguments)
thread.join()
ray.shutdown()
everything = [json.loads(line) for line in open(work / "out.jsonl")]
rows = [row for row in everything if row["response"]]
wrong = {(row["custom_id"], row["error"]["code"]) for row in everything if not row["response"]}
assert wrong == {(None, "invalid_json"), ("bad", "invalid_request")} and done == ROWS + 2 == len(everything), wrong
assert killed and len(rows) == ROWS and {row["custom_id"] for row in rows} == {f"r{i}" for i in range(ROWS)}, len(rows)
assert all(row["error"] is None and row["response"]["status_code"] == 200 for row in rows)
wait_for("nobody is left", lambda: not servers())
with Server() as server:
    import urllib.request

    for i in range(7):
        request = urllib.request.Request(server.url + "/v1/completions", json.dumps(body(i)).encode(), {"content-type": "application/json"})
        text = json.load(urllib.request.urlopen(request))["choices"][0]["text"]
        for row in rows:
            if int(row["custom_id"][1:]) % 7 == i:
                assert row["response"]["body"]["choices"][0]["text"] == text
passed(f"{ROWS} rows over 2 actors, one killed, none lost or doubled")
