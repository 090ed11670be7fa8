"""Writes golden.json: rotary tables computed by transformers' own functions.

    pip install numpy transformers==4.57.6 && python make.py > golden.json
    pip install numpy transformers==5.23.0 && python make.py | diff golden.json -

Both versions give the same file. torch is not needed: the functions of modeling_rope_utils run on the few numpy stand-ins
below, in float32 as torch would.
"""
import json
import numpy as np
import transformers.modeling_rope_utils as utils
from transformers import LlamaConfig


class Array(np.ndarray):
    def to(self, device=None, dtype=None):
        return self.astype(dtype or self.dtype).view(Array)

    def float(self):
        return self.to(dtype=np.float32)


class torch:
    int64, float, float32 = np.int64, np.float32, np.float32
    Tensor = Array

    @staticmethod
    def arange(*args, dtype=None, device=None):
        return np.arange(*args, dtype=dtype or np.int64).view(Array)

    @staticmethod
    def clamp(x, low, high):
        return np.clip(x, np.float32(low), np.float32(high))

    @staticmethod
    def where(condition, a, b):
        return np.where(condition, a, b).view(Array)


utils.torch = torch
SMALL = dict(hidden_size=64, num_attention_heads=4, max_position_embeddings=512)
LLAMA3 = dict(rope_type="llama3", low_freq_factor=1.0, high_freq_factor=4.0)
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=32)
CASES = {
    "default": dict(SMALL, rope_theta=10000.0),
    "default, long heads": dict(SMALL, head_dim=128, rope_theta=1e6),
    "linear": dict(SMALL, rope_theta=10000.0, rope_scaling=dict(rope_type="linear", factor=4.0)),
    "llama3 fixture": dict(SMALL, head_dim=32, rope_theta=500000.0,
                           rope_scaling=dict(LLAMA3, factor=8.0, original_max_position_embeddings=32)),
    "llama 3.2 1B": dict(hidden_size=2048, num_attention_heads=32, max_position_embeddings=131072, rope_theta=500000.0,
                         rope_scaling=dict(LLAMA3, factor=32.0, original_max_position_embeddings=8192)),
    "yarn fixture": dict(SMALL, head_dim=32, rope_theta=10000.0, rope_scaling=YARN),
    "yarn, factor against lengths": dict(SMALL, head_dim=32, rope_theta=10000.0, rope_scaling=dict(YARN, factor=2.0)),
    "yarn, attention factor": dict(SMALL, head_dim=32, rope_theta=10000.0, rope_scaling=dict(YARN, attention_factor=0.75)),
    "yarn, mscales": dict(SMALL, head_dim=32, rope_theta=10000.0, rope_scaling=dict(YARN, mscale=1.0, mscale_all_dim=0.5)),
    "yarn, one mscale": dict(SMALL, head_dim=32, rope_theta=10000.0, rope_scaling=dict(YARN, mscale=2.0)),
    "yarn, not truncated": dict(SMALL, head_dim=32, rope_theta=10000.0,
                                rope_scaling=dict(YARN, truncate=False, beta_fast=16.0, beta_slow=2.0)),
    "yarn, qwen 2.5": dict(hidden_size=3584, num_attention_heads=28, max_position_embeddings=131072, rope_theta=1e6,
                           rope_scaling=dict(YARN, original_max_position_embeddings=32768)),
}


def default(config):
    # 5.23 moved the unscaled case into every model; the formula is 4.57's _compute_default_rope_parameters.
    dim = config.head_dim
    theta = getattr(config, "rope_theta", None) or config.rope_parameters["rope_theta"]
    return 1.0 / (theta ** (torch.arange(0, dim, 2).to(dtype=torch.float) / dim)), 1.0


def table(case):
    config = LlamaConfig(**json.loads(json.dumps(case)))
    kind = (case.get("rope_scaling") or {}).get("rope_type", "default")
    inv_freq, factor = utils.ROPE_INIT_FUNCTIONS[kind](config, None) if kind != "default" else default(config)
    assert inv_freq.dtype == np.float32
    return dict(config=dict(case, model_type="llama"), inv_freq=[float(x) for x in inv_freq], attention_factor=float(factor))


lines = [f"{json.dumps(name)}: {json.dumps(table(case))}" for name, case in CASES.items()]
print("{\n" + ",\n".join(lines) + "\n}")
