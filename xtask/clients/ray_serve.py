"""deploy/ray/application.py on one machine: two replicas; a server is killed, then a replica; no request is lost."""

import os
import socket
import sys
import threading

sys.path.insert(0, os.environ["NJOULE_DEPLOY"] + "/ray")
# Workers find what a script beside them would find.
os.environ["PYTHONPATH"] = sys.path[0]

# On a busy machine its proxies start slowly.
os.environ["RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S"] = "60"

import psutil
import ray
from openai import OpenAI
from ray import serve

import application
from live import MODEL, passed, wait_for

CLIENTS, ROUNDS = 8, 15
answers, wrong, lock = {}, [], threading.Lock()


def servers():
    """njoule's processes below Ray."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        line = process.info["cmdline"] or []
        if line[:2] == [os.environ["NJOULE_BIN"], "serve"] and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def told(what):
    """What was waited for in vain, and what there is."""
    return lambda: f"{what}; there are {[(p.pid, p.ppid(), p.status()) for p in servers()]} and {wrong[:3]}"


assert not servers(), "another njoule of this path runs"
ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
serve.start(http_options={"host": "127.0.0.1", "port": port})
arguments = ("--served-model-name", "m", "--threads", "1", "--max-num-seqs", "8")
serve.run(application.application(MODEL, 2, arguments=arguments), route_prefix="/")
wait_for(told("two servers"), lambda: len(servers()) == 2, 120)
client = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="x", max_retries=8)


def ask(number):
    for i in range(ROUNDS):
        key = (number * ROUNDS + i) % 10
        try:
            answer = client.completions.create(model="m", prompt=f"{key} times", max_tokens=48, temperature=0, extra_body={"ignore_eos": True})
            text = answer.choices[0].text
        except Exception as error:  # every kind counts as lost
            text = None
            wrong.append(repr(error))
        with lock:
            answers.setdefault(key, []).append(text)


def count():
    with lock:
        return sum(map(len, answers.values()))


threads = [threading.Thread(target=ask, args=(number,)) for number in range(CLIENTS)]
[thread.start() for thread in threads]
wait_for("load", lambda: count() >= 20, 120)
servers()[0].kill()
wait_for("more load", lambda: count() >= 50, 120)
wait_for(told("it was started anew"), lambda: len(servers()) == 2, 120)
before = servers()
before[1].parent().kill()
[thread.join() for thread in threads]
assert not wrong, wrong[:3]
assert count() == CLIENTS * ROUNDS and all(len(set(texts)) == 1 for texts in answers.values()), answers
wait_for(told("the replica is back"), lambda: len(servers()) == 2 and before[1] not in servers(), 120)
streamed = "".join(c.choices[0].text for c in client.completions.create(
    model="m", prompt="3 times", max_tokens=48, temperature=0, stream=True, extra_body={"ignore_eos": True}))
assert streamed == answers[3][0]
serve.shutdown()
ray.shutdown()
wait_for("nobody is left", lambda: not servers())
passed(f"{CLIENTS * ROUNDS} requests over 2 replicas, a server and a replica killed, none lost")
