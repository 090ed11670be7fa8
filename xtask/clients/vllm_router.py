"""vllm-router over two servers: requests and streams go through, one server is killed, none of what follows is lost."""

import json
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path

from live import Server, passed, wait_for

CLIENTS, ROUNDS = 4, 20


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


port, metrics = free_port(), free_port()
with Server("--threads", "1") as one, Server("--threads", "1") as two:
    router = subprocess.Popen(
        [str(Path(sys.executable).with_name("vllm-router")), "--host", "127.0.0.1", "--port", str(port), "--prometheus-port", str(metrics),
         "--worker-urls", one.url, two.url, "--policy", "round_robin", "--health-check-interval-secs", "1", "--log-level", "error"])
    try:
        url = f"http://127.0.0.1:{port}"

        def ask(body, path="/v1/completions"):
            request = urllib.request.Request(url + path, json.dumps(body).encode(), {"content-type": "application/json"})
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.read().decode()

        body = lambda i: {"model": "m", "prompt": f"{i % 5} times", "max_tokens": 32, "temperature": 0, "ignore_eos": True}

        def ready():
            try:
                return bool(ask(body(0)))
            except (urllib.error.URLError, ConnectionError):
                return False

        wait_for("the router", ready)
        texts = [json.loads(ask(body(i)))["choices"][0]["text"] for i in range(5)]
        stream = ask({**body(1), "stream": True})
        parts = [json.loads(line[6:]) for line in stream.splitlines() if line.startswith("data: {")]
        assert "".join(p["choices"][0]["text"] for p in parts) == texts[1] and stream.rstrip().endswith("[DONE]")
        assert json.loads(ask({"model": "m", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}, "/v1/chat/completions"))["choices"]
        served = [server.metric("njoule_requests_finished_total") for server in (one, two)]
        assert all(count >= 2 for count in served), served
        done, wrong, lock = [], [], threading.Lock()

        def load(number):
            for i in range(ROUNDS):
                key = (number + i) % 5
                try:
                    text = json.loads(ask(body(key)))["choices"][0]["text"]
                except Exception as error:
                    text = repr(error)
                with lock:
                    (done if text == texts[key] else wrong).append(text)

        threads = [threading.Thread(target=load, args=(number,)) for number in range(CLIENTS)]
        [thread.start() for thread in threads]
        wait_for("load", lambda: len(done) >= 20)
        one.kill()
        [thread.join() for thread in threads]
        assert not wrong and len(done) == CLIENTS * ROUNDS, wrong[:3]
    finally:
        router.terminate()
        router.wait()
passed(f"chat, completions and streams over 2 servers; {CLIENTS * ROUNDS} requests with one killed midway, none lost")
