"""Servers to check clients against."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request

BIN = os.environ["NJOULE_BIN"]
MODEL = os.environ["NJOULE_CHECK_MODEL"]
NAME = "m"


class Server:
    def __init__(self, *arguments):
        command = [BIN, "serve", MODEL, "--port", "0", "--served-model-name", NAME, "--log-level", "warn", *arguments]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)
        seen = []
        for line in self.process.stderr:
            if found := re.match(r"listening on (http://\S+)", line):
                self.url = found[1]
                threading.Thread(target=lambda: [sys.stderr.write(rest) for rest in self.process.stderr], daemon=True).start()
                return
            seen.append(line)
        raise SystemExit("njoule ended: " + "".join(seen))

    def get(self, path):
        with urllib.request.urlopen(self.url + path, timeout=30) as answer:
            return answer.read().decode()

    def metric(self, start):
        rows = [line for line in self.get("/metrics").splitlines() if line.startswith(start)]
        return sum(float(row.rsplit(" ", 1)[1]) for row in rows)

    def kill(self):
        self.process.kill()
        self.process.wait()

    def stop(self):
        """SIGTERM, and demands the exit code of a drain."""
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(60)
        assert code == 0, f"exit code {code}"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.stop()


def wait_for(what, wanted, seconds=60):
    end = time.monotonic() + seconds
    while not wanted():
        assert time.monotonic() < end, what() if callable(what) else what
        time.sleep(0.05)


def passed(text):
    print("ok:", text, flush=True)


def not_run(reason):
    print("not run:", reason, flush=True)
    raise SystemExit(77)
