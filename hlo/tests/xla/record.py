#!/usr/bin/env python3
"""Runs the modules of testdata/hlo on real XLA (CPU) and records what it computes.

    cargo test -p njoule-hlo --test xla -- --ignored write     writes NAME.pb and the inputs
    hlo/tests/xla/record.py [NAME ...]                          adds XLA's outputs to NAME.safetensors
    hlo/tests/xla/record.py --check [NAME ...]                  compares them with what is there, changes nothing
    hlo/tests/xla/record.py --foreign                           writes foreign.hlo: a module in XLA's own writing

Needs Python 3.11 with jax and jaxlib 0.10.2 from PyPI (pip install jax==0.10.2 jaxlib==0.10.2): the way from an
HloModuleProto to an executable is a private function of jaxlib, so the version matters. XLA aborts its process on some
malformed modules; therefore each module runs in a process of its own.

Tensors are called rREPLICA.inputK:TYPE and rREPLICA.outputK:TYPE; see tensors.rs.
"""

import json
import os
import pathlib
import struct
import subprocess
import sys

DIRECTORY = pathlib.Path(__file__).resolve().parents[3] / "testdata" / "hlo"
VERSION = "0.10.2"

# name in HLO: (name in NumPy or ml_dtypes, name in safetensors)
TYPES = {
    "pred": ("bool", "BOOL"),
    "s8": ("int8", "I8"),
    "u8": ("uint8", "U8"),
    "s32": ("int32", "I32"),
    "u32": ("uint32", "U32"),
    "s64": ("int64", "I64"),
    "f16": ("float16", "F16"),
    "bf16": ("bfloat16", "BF16"),
    "f32": ("float32", "F32"),
    "f8e4m3": ("float8_e4m3", "U8"),
    "f8e4m3fn": ("float8_e4m3fn", "U8"),
    "f8e5m2": ("float8_e5m2", "U8"),
}
NAMES = {numpy: hlo for hlo, (numpy, _) in TYPES.items()}


def dtype(hlo):
    import ml_dtypes
    import numpy as np

    name = TYPES[hlo][0]
    return np.dtype(getattr(ml_dtypes, name, None) or name)


def read(path):
    """{name: array}"""
    import numpy as np

    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    tensors = {}
    for name, entry in json.loads(data[8 : 8 + size]).items():
        if name == "__metadata__":
            continue
        begin, end = (8 + size + at for at in entry["data_offsets"])
        raw = np.frombuffer(data[begin:end], np.uint8)
        tensors[name] = raw.view(dtype(name.split(":")[1])).reshape(entry["shape"])
    return tensors


def write(path, tensors):
    header, blobs, at = {}, [], 0
    for name in sorted(tensors):
        array = tensors[name]
        blob = array.tobytes()
        stored = TYPES[name.split(":")[1]][1]
        header[name] = {"dtype": stored, "shape": list(array.shape), "data_offsets": [at, at + len(blob)]}
        blobs.append(blob)
        at += len(blob)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blobs))


def run(module, tensors):
    """The outputs, by name."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ["JAX_PLATFORMS"] = "cpu"
    # Left to itself XLA drops roundings to bf16 and back inside fusions: what is recorded is what the module says.
    os.environ["XLA_FLAGS"] = "--xla_allow_excess_precision=false"
    import jax
    import jaxlib
    import numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec
    from jaxlib import _jax, xla_client

    if jaxlib.__version__ != VERSION:
        sys.exit(f"jaxlib is {jaxlib.__version__}, the recordings are of {VERSION}")
    inputs = {}
    replicas = 1
    for name, array in tensors.items():
        where, rest = name.split(".")
        if rest.startswith("input"):
            replica, number = int(where[1:]), int(rest.split(":")[0][len("input") :])
            inputs[replica, number] = array
            replicas = max(replicas, replica + 1)
    parameters = len(inputs) // replicas

    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_num_cpu_devices", replicas)
    devices = jax.devices("cpu")[:replicas]
    options = xla_client.CompileOptions()
    options.num_replicas, options.num_partitions = replicas, 1
    options.device_assignment = xla_client.DeviceAssignment.create(np.arange(replicas).reshape(replicas, 1))
    stablehlo = _jax.mlir.hlo_to_stablehlo(module)
    executable = devices[0].client.compile_and_load(stablehlo, xla_client.DeviceList(tuple(devices)), options)

    sharding = NamedSharding(Mesh(np.array(devices), ("replica",)), PartitionSpec())
    arguments = []
    for number in range(parameters):
        parts = [jax.device_put(inputs[replica, number], device) for replica, device in enumerate(devices)]
        arguments.append(jax.make_array_from_single_device_arrays(parts[0].shape, sharding, parts))
    results = executable.execute_sharded(arguments).disassemble_into_single_device_arrays()
    outputs = {}
    for number, result in enumerate(results):
        for replica in range(replicas):
            array = np.asarray(result[replica])
            outputs[f"r{replica}.output{number}:{NAMES[array.dtype.name]}"] = array
    return outputs


def differ(got, want):
    """Whether two recordings of a float differ by more than another CPU's vector width explains."""
    import numpy as np

    if got.tobytes() == want.tobytes():
        return False
    name = got.dtype.name
    if not name.startswith(("float", "bfloat")):
        return True
    step = {"float32": 1e-5, "float16": 2e-3}.get(name, 2e-2)
    got, want = got.astype(np.float64), want.astype(np.float64)
    return not np.allclose(got, want, rtol=step, atol=step / 10, equal_nan=True)


def one(name, check):
    path = DIRECTORY / f"{name}.safetensors"
    tensors = read(path)
    outputs = run((DIRECTORY / f"{name}.pb").read_bytes(), tensors)
    if check:
        recorded = {k: v for k, v in tensors.items() if ".output" in k}
        if recorded.keys() != outputs.keys():
            sys.exit(f"{name}: outputs {sorted(outputs)}, recorded {sorted(recorded)}")
        bad = [k for k in outputs if differ(outputs[k], recorded[k])]
        if bad:
            sys.exit(f"{name}: {', '.join(bad)} differ from the recording")
    else:
        inputs = {k: v for k, v in tensors.items() if ".input" in k}
        write(path, inputs | outputs)
    print(f"{name}: {len(outputs)} outputs")


def foreign():
    """A module as XLA itself writes it: newer fields, wide ids, layouts and all."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_hlo_source_file_canonicalization_regex", ".*/")  # no path of this machine in the file
    def step(x, table, ids):
        rows = jnp.take(table, ids, axis=0, mode="clip")
        y = jax.nn.softmax(jnp.einsum("bh,nh->bn", x, rows), axis=-1)
        return jnp.where(y > 0.5, y, jnp.float32(0)).astype(jnp.bfloat16), y.sum(axis=0)

    shapes = [((2, 8), jnp.float32), ((5, 8), jnp.float32), ((3,), jnp.int32)]
    arguments = [jax.ShapeDtypeStruct(dims, dtype) for dims, dtype in shapes]
    computation = jax.jit(step).lower(*arguments).compiler_ir("hlo")
    (DIRECTORY / "foreign.hlo").write_bytes(computation.as_serialized_hlo_module_proto())


def main():
    words = sys.argv[1:]
    if words == ["--foreign"]:
        return foreign()
    check = "--check" in words
    names = [w for w in words if w != "--check"]
    if os.environ.get("HLO_RECORD_CHILD"):
        return one(names[0], check)
    failed = []
    for name in names or sorted(p.stem for p in DIRECTORY.glob("*.pb")):
        command = [sys.executable, __file__, name] + (["--check"] if check else [])
        if subprocess.run(command, env=os.environ | {"HLO_RECORD_CHILD": "1"}).returncode:
            failed.append(name)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


main()
