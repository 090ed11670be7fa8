#!/usr/bin/env python3
"""Joules of a phase, from `njoule energy serve` on this machine or another. Standard library only.

    from energy import measure
    with measure("decode", "http://SERVER:9788") as m:
        ...
    print(m.joules, m.low, m.high, m.method, m.reasons)      # None is unknown, and reasons say why
"""
import http.client, json, os, time, urllib.request
from contextlib import contextmanager
from types import SimpleNamespace

AGENT = os.environ.get("NJOULE_ENERGY_URL", "http://127.0.0.1:9788")
# What an agent that is away, dies midway or is none can make of a call.
FAILURES = (OSError, ValueError, KeyError, TypeError, http.client.HTTPException)
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
    except FAILURES as error:
        m.reasons = [f"{agent}: {error}"]
    try:
        yield m
    finally:
        m.seconds, m.client_cpu_s = time.monotonic() - began, time.process_time() - cpu
        try:
            if start is not None:
                report = ask(agent + "/v1/energy/report", start)
                energy = report["energy"]
                figures = [energy[key] for key in ("total_j", "low_j", "high_j", "method", "reasons")]
                m.report, (m.joules, m.low, m.high, m.method, m.reasons) = report, figures
        except FAILURES as error:
            m.reasons = [f"{agent}: {error}"]
