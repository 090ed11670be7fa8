"""Runs HLO modules on XLA (CPU) for `cargo xtask xla-check`, which starts this and speaks to it by lines of JSON.

A request names files: `module`, an HloModuleProto; `inputs`; `outputs`, to be written. Files of arrays begin with a line of
JSON, a list of {"replica", "dtype", "dims"}, and go on with the arrays' bytes in that order, little endian. The answer is
"ok", or a line of what is wrong. Modules are compiled once.

The way from an HloModuleProto to an executable is a private function of jaxlib, so the version is checked.
"""

import json
import os
import sys

VERSION = "0.10.2"
DEVICES = 4

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["JAX_PLATFORMS"] = "cpu"
# Left to itself XLA drops roundings to bf16 and back inside fusions: what is checked is what the module says.
os.environ["XLA_FLAGS"] = "--xla_allow_excess_precision=false"

import jax
import jaxlib
import ml_dtypes
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxlib import _jax, xla_client

if jaxlib.__version__ != VERSION:
    sys.exit(f"jaxlib is {jaxlib.__version__}, not {VERSION}")
jax.config.update("jax_num_cpu_devices", DEVICES)

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
    replicas = read(request["inputs"])
    devices = jax.devices("cpu")[: len(replicas)]
    if request["module"] not in known:
        known[request["module"]] = compiled(request["module"], len(replicas), devices)
    sharding = NamedSharding(Mesh(np.array(devices), ("replica",)), PartitionSpec())
    arguments = []
    for of_replicas in zip(*replicas):
        parts = [jax.device_put(array, device) for array, device in zip(of_replicas, devices)]
        arguments.append(jax.make_array_from_single_device_arrays(parts[0].shape, sharding, parts))
    results = known[request["module"]].execute_sharded(arguments).disassemble_into_single_device_arrays()
    write(request["outputs"], [[np.asarray(result[r]) for result in results] for r in range(len(replicas))])


known = {}
for line in sys.stdin:
    try:
        answer(json.loads(line), known)
        print("ok", flush=True)
    except Exception as error:  # whatever XLA has against a module, in words
        print(f"{type(error).__name__}: {error}".replace("\n", " "), flush=True)
