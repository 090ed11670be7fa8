"""A `njoule serve` as a child process, as the examples of this directory start one."""

import ctypes
import os
import queue
import signal
import subprocess
import sys
import threading

# Loaded here: between fork and exec nothing may be.
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def _end_with_parent():
    # A worker of Ray that is killed takes its server with it. Linux only.
    if LIBC:
        LIBC.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def start(model: str, arguments: tuple = ()) -> tuple[subprocess.Popen, str]:
    """The process and its address, once it answers."""
    command = [os.environ.get("NJOULE_BIN", "njoule"), "serve", model, "--host", "127.0.0.1", "--port", "0", "--log-level", "warn"]
    came = queue.SimpleQueue()
    threading.Thread(target=_keep, args=([*command, *arguments], came), daemon=True).start()
    outcome = came.get()
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def _keep(command, came):
    """Starts the process and passes on what it says, to its end: that signal comes when the thread ends that has asked for it."""
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, preexec_fn=_end_with_parent
        )
    except OSError as error:
        came.put(error)
        return
    seen, listens = [], False
    for line in process.stderr:
        if not listens and line.startswith("listening on "):
            listens = True
            came.put((process, line.split()[-1]))
        elif listens:
            sys.stderr.write(line)
        else:
            seen.append(line)
    code = process.wait()
    if not listens:
        came.put(RuntimeError(f"njoule ended with {code}: {''.join(seen)}"))
