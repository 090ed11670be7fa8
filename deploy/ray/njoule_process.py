"""A `njoule serve` as a child process, as the examples of this directory start one."""

import ctypes
import os
import signal
import subprocess
import sys


def _end_with_parent():
    # A worker of Ray that is killed takes its server with it. Linux only.
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def start(model: str, arguments: tuple = ()) -> tuple[subprocess.Popen, str]:
    """The process and its address, once it answers."""
    command = [os.environ.get("NJOULE_BIN", "njoule"), "serve", model, "--host", "127.0.0.1", "--port", "0", "--log-level", "warn"]
    process = subprocess.Popen(
        [*command, *arguments], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, preexec_fn=_end_with_parent
    )
    seen = []
    for line in process.stderr:
        if line.startswith("listening on "):
            # What it says later goes where this process's own goes, and does not fill the pipe.
            import threading

            threading.Thread(target=lambda: [sys.stderr.write(rest) for rest in process.stderr], daemon=True).start()
            return process, line.split()[-1]
        seen.append(line)
    raise RuntimeError(f"njoule ended with {process.wait()}: {''.join(seen)}")
