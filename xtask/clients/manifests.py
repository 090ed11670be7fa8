"""deploy/kubernetes against a live server: it takes the arguments, has the probes' paths, and the metrics that routers read."""

import os
import subprocess
from pathlib import Path

import yaml
from prometheus_client.parser import text_string_to_metric_families

from live import BIN, MODEL, Server, passed

files = sorted(Path(os.environ["NJOULE_DEPLOY"], "kubernetes").glob("*.yaml"))
documents = [doc for file in files for doc in yaml.safe_load_all(file.read_text())]
containers, probes = [], set()
for doc in documents:
    spec = doc.get("spec", {})
    spec = spec.get("template", {}).get("spec", spec)
    for container in spec.get("containers", []):
        containers.append(container)
        ports = {port.get("name"): port["containerPort"] for port in container["ports"]}
        for name, probe in container.items():
            if name.endswith("Probe"):
                port = probe["httpGet"]["port"]
                assert port in ports or port in ports.values(), (port, ports)
                probes.add(probe["httpGet"]["path"])
    grace = spec.get("terminationGracePeriodSeconds")
    assert grace is None or grace >= 25 + 10, grace
assert len(containers) == 3 and probes == {"/health", "/ready", "/live", "/v1/models"}, probes

with Server("--replicas", "2", "--threads", "1") as server:
    for path in probes:
        server.get(path)
    families = {family.name: family for family in text_string_to_metric_families(server.get("/metrics"))}
    [picker] = [doc for doc in documents if doc["metadata"]["name"] == "endpoint-picker"]
    [plugin] = yaml.safe_load(picker["data"]["plugins.yaml"])["plugins"]
    named = [value for key, value in plugin["parameters"]["engineConfigs"][0].items() if key.endswith("Spec")]
    for name in named:
        # A router reads one sample.
        assert families[name].type == "gauge" and len(families[name].samples) == 1, name
    assert len(named) == 3

for container in containers:
    # The same command line, but for what only the cluster has.
    arguments = [MODEL if argument in ("/model", "/mnt/models") else argument for argument in container["args"]]
    arguments[arguments.index("--host") + 1] = "127.0.0.1"
    arguments[arguments.index("--port") + 1] = "0"
    process = subprocess.Popen([BIN, *arguments, "--threads", "1"], stderr=subprocess.PIPE, text=True)
    lines = []
    for line in process.stderr:
        lines.append(line)
        if line.startswith("listening on"):
            break
    else:
        raise SystemExit("".join(lines))
    process.terminate()
    process.stderr.read()
    assert process.wait(60) == 0, process.returncode
passed(f"{len(files)} files, {len(containers)} command lines, {len(probes)} probes, {len(named)} metrics of the endpoint picker")
