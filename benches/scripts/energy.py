#!/usr/bin/env python3
"""Joules of a phase, from `njoule energy serve` on this machine or another. Standard library only.

    from energy import measure
    with measure("decode", "http://SERVER:9788") as m:
        ...
    print(m.joules, m.low, m.high, m.method, m.reasons)      # None is unknown, and reasons say why
"""
import json, os, time, urllib.request
from contextlib import contextmanager
from types import SimpleNamespace

AGENT = os.environ.get("NJOULE_ENERGY_URL", "http://127.0.0.1:9788")
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def ask(url, body=None):
    data = None if body is None else json.dumps(body).encode()
    return json.load(DIRECT.open(urllib.request.Request(url, data, {"content-type": "application/json"}), timeout=10))


@contextmanager
def measure(phase, agent=AGENT):
    m = SimpleNamespace(phase=phase, joules=None, low=None, high=None, method=None, reasons=[], report=None, seconds=None)
    start, began, cpu = None, time.monotonic(), time.process_time()
    try:
        start = ask(agent + "/v1/energy")
    except (OSError, ValueError) as error:
        m.reasons = [f"{agent}: {error}"]
    try:
        yield m
    finally:
        m.seconds, m.client_cpu_s = time.monotonic() - began, time.process_time() - cpu
        try:
            if start is not None:
                m.report = ask(agent + "/v1/energy/report", start)
                energy = m.report["energy"]
                m.joules, m.low, m.high = energy["total_j"], energy["low_j"], energy["high_j"]
                m.method, m.reasons = energy["method"], energy["reasons"]
        except (OSError, ValueError, KeyError) as error:
            m.reasons = [f"{agent}: {error}"]
