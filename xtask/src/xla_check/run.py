"""Runs HLO modules on XLA (CPU) for `cargo xtask xla-check`, which starts this and speaks to it by lines of JSON.

A request names files: `module`, an HloModuleProto; `inputs`; `outputs`, to be written. Files of arrays begin with a line of
JSON, a list of {"replica", "dtype", "dims"}, and go on with the arrays' bytes in that order, little endian. The answer is
"ok", or a line of what is wrong. {"forget": true} ends all children.

Each module has a process of its own: a fork of this one, which has imported jaxlib and has started nothing of it. It
compiles its module once. XLA may end it, by a signal or by taking too long: that is the answer, and the others go on.

The way from an HloModuleProto to an executable is a private function of jaxlib, so the version is checked.
"""

import json
import os
import signal
import sys
import warnings

VERSION = "0.10.2"
DEVICES = 4
# Seconds of a request, compiling included.
LIMIT = 600

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["JAX_PLATFORMS"] = "cpu"
# Left to itself XLA drops roundings to bf16 and back inside fusions: what is checked is what the module says.
os.environ["XLA_FLAGS"] = "--xla_allow_excess_precision=false"
# A fork has no threads but the one that forked.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax
import jaxlib
import ml_dtypes
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxlib import _jax, xla_client

if jaxlib.__version__ != VERSION:
    sys.exit(f"jaxlib is {jaxlib.__version__}, not {VERSION}")
jax.config.update("jax_num_cpu_devices", DEVICES)
warnings.filterwarnings("ignore", message=r"os\.fork\(\) was called")

DTYPES = {
    "s8": np.dtype(np.int8),
    "s32": np.dtype(np.int32),
    "u32": np.dtype(np.uint32),
    "bf16": np.dtype(ml_dtypes.bfloat16),
    "f32": np.dtype(np.float32),
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


def read(path):
    """Arrays of each replica, in order."""
    with open(path, "rb") as file:
        replicas = {}
        for entry in json.loads(file.readline()):
            dtype = DTYPES[entry["dtype"]]
            count = int(np.prod(entry["dims"], dtype=np.int64))
            array = np.frombuffer(file.read(count * dtype.itemsize), dtype).reshape(entry["dims"])
            replicas.setdefault(entry["replica"], []).append(array)
    return [replicas[replica] for replica in sorted(replicas)]


def write(path, replicas):
    entries = [
        {"replica": replica, "dtype": NAMES[array.dtype], "dims": list(array.shape)}
        for replica, arrays in enumerate(replicas)
        for array in arrays
    ]
    with open(path, "wb") as file:
        file.write(json.dumps(entries).encode() + b"\n")
        for arrays in replicas:
            for array in arrays:
                file.write(array.tobytes())


def compiled(path, replicas, devices):
    with open(path, "rb") as file:
        module = _jax.mlir.hlo_to_stablehlo(file.read())
    options = xla_client.CompileOptions()
    options.num_replicas, options.num_partitions = replicas, 1
    options.device_assignment = xla_client.DeviceAssignment.create(np.arange(replicas).reshape(replicas, 1))
    return devices[0].client.compile_and_load(module, xla_client.DeviceList(tuple(devices)), options)


def answer(request, known):
    if "abort" in request:
        os.abort()
    replicas = read(request["inputs"])
    devices = jax.devices("cpu")[: len(replicas)]
    if not known:
        known.append(compiled(request["module"], len(replicas), devices))
    sharding = NamedSharding(Mesh(np.array(devices), ("replica",)), PartitionSpec())
    arguments = []
    for of_replicas in zip(*replicas):
        parts = [jax.device_put(array, device) for array, device in zip(of_replicas, devices)]
        arguments.append(jax.make_array_from_single_device_arrays(parts[0].shape, sharding, parts))
    results = known[0].execute_sharded(arguments).disassemble_into_single_device_arrays()
    write(request["outputs"], [[np.asarray(result[r]) for result in results] for r in range(len(replicas))])


def serve(requests, answers):
    """A child's life."""
    known = []
    for line in requests:
        signal.alarm(LIMIT)
        try:
            answer(json.loads(line), known)
            said = "ok"
        except Exception as error:  # whatever XLA has against a module, in words
            said = f"{type(error).__name__}: {error}".replace("\n", " ")
        signal.alarm(0)
        answers.write(said + "\n")
        answers.flush()


class Child:
    def __init__(self, others):
        there, requests = os.pipe()
        answers, here = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            for other in others:
                other.close()
            os.close(requests), os.close(answers)
            try:
                serve(os.fdopen(there, "r"), os.fdopen(here, "w"))
            finally:
                os._exit(0)
        os.close(there), os.close(here)
        self.requests, self.answers = os.fdopen(requests, "w"), os.fdopen(answers, "r")

    def ask(self, line):
        """Its answer; None if it died."""
        try:
            self.requests.write(line)
            self.requests.flush()
        except BrokenPipeError:
            return None
        return self.answers.readline() or None

    def close(self):
        for pipe in [self.requests, self.answers]:
            try:
                pipe.close()
            except BrokenPipeError:
                pass

    def end(self):
        """What became of it."""
        self.close()
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        if code == -signal.SIGALRM:
            return f"it did not answer within {LIMIT} s"
        return f"its process ended by {signal.Signals(-code).name}" if code < 0 else f"its process ended with {code}"


children = {}
for line in sys.stdin:
    request = json.loads(line)
    if "forget" in request:
        for child in children.values():
            child.end()
        children.clear()
        print("ok", flush=True)
        continue
    module = request["module"]
    if module not in children:
        children[module] = Child(children.values())
    said = children[module].ask(line)
    if said is None:
        said = children.pop(module).end()
    print(said.strip(), flush=True)
