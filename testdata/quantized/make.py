"""Writes one tiny llama per published form of quantised weights, and what the reference computes for it.

    pip install torch numpy safetensors transformers==4.57.6 compressed-tensors==0.20.0
    pip download --no-deps auto-gptq==0.7.1 autoawq==0.2.9    # unpacked into one folder: PACKERS
    PACKERS=folder python make.py

Codes are packed and unpacked by the projects that define the forms: auto_gptq's QuantLinear (its forward of the identity
is the dequantised matrix), awq's WQLinear_GEMM and packing_utils, compressed-tensors' compressors, and transformers'
convert_moe_packed_tensors. Scales are widened to f32 before unpacking: the values are those of f32 arithmetic.
golden.safetensors of each: `input_ids`, `logits` of transformers in f32 with the dequantised weights, and two of these.
"""
import importlib.util
import json
import os
import pathlib
import re
import sys
import types

import torch
from compressed_tensors.compressors import NaiveQuantizationCompressor, PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

HERE = pathlib.Path(__file__).parent
PACKERS = pathlib.Path(os.environ["PACKERS"])
SIZES = dict(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=1,
             num_key_value_heads=1, max_position_embeddings=64, tie_word_embeddings=True, initializer_range=0.2)
KEPT = ["model.layers.0.self_attn.k_proj.weight", "model.layers.0.mlp.down_proj.weight"]


def load(path):
    """One module of a package, without the package's own imports."""
    spec = importlib.util.spec_from_file_location(path.replace("/", "_"), PACKERS / f"{path}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def grid(w, bits, group, symmetric, dtype):
    """Scale and zero point per row and group, by the largest magnitude or the range."""
    rows, cols = w.shape
    g = w.reshape(rows, cols // group, group)
    if symmetric:
        scale = g.abs().amax(-1) / (2 ** (bits - 1) - 1)
        zero = torch.full_like(scale, 2 ** (bits - 1))
    else:
        low, high = g.amin(-1).clamp(max=0), g.amax(-1).clamp(min=0)
        scale = (high - low) / (2**bits - 1)
        zero = (-low / scale).round()
    return scale.to(dtype).float(), zero


def gptq(bits=4, group=32, symmetric=True, shuffled=False, v2=False):
    QuantLinear = load("auto_gptq/nn_modules/qlinear/qlinear_cuda").QuantLinear

    def pack(name, w):
        rows, cols = w.shape
        size = cols if group == -1 else group
        order = torch.randperm(cols) if shuffled else torch.arange(cols)
        scale, zero = grid(w[:, order], bits, size, symmetric, torch.float16)
        g_idx = torch.empty(cols, dtype=torch.int32)
        g_idx[order] = (torch.arange(cols) // size).int()
        # Codes must lie in their range: the module packs without clamping.
        at = g_idx.long()
        codes = (w / scale[:, at] + zero[:, at]).round().clamp(0, 2**bits - 1)
        linear = torch.nn.Linear(cols, rows, bias=False, dtype=torch.float32)
        linear.weight.data = (codes - zero[:, at]) * scale[:, at]
        module = QuantLinear(bits, size, cols, rows, bias=False, weight_dtype=torch.float32)
        module.pack(linear, scale.clone(), zero.clone(), g_idx)
        parts = {"qweight": module.qweight, "qzeros": module.qzeros, "scales": module.scales.half(), "g_idx": g_idx}
        if v2:
            # gptq_v2 (GPTQModel) stores the zero points as they are.
            words = zero.t().reshape(cols // size, rows * bits // 32, 32 // bits).long()
            words = (words << torch.arange(0, 32, bits)).sum(-1)
            parts["qzeros"] = torch.where(words >= 2**31, words - 2**32, words).int()
            assert name != KEPT[1] or (zero == 0).any(), "a zero point that the first form cannot store"
        else:
            identity = module(torch.eye(cols)).t()
            assert torch.equal(identity, linear.weight.data), "auto_gptq reads what was meant"
        return {name.replace("weight", k): v for k, v in parts.items()}, linear.weight.data

    config = {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": shuffled, "sym": symmetric,
              "damp_percent": 0.01, "static_groups": False, "true_sequential": True,
              "checkpoint_format": "gptq_v2" if v2 else "gptq"}
    return torch.float16, config, pack


def awq():
    # gemm.py imports kernels and helpers of its package that packing does not need.
    stub = types.ModuleType("stub")
    stub.get_best_device, stub.try_import = lambda: "cpu", lambda name: (None, "")
    stub.__getattr__ = lambda name: None
    for name in ["awq", "awq.utils", "awq.utils.module", "awq.utils.utils", "awq.modules", "awq.modules.triton",
                 "awq.modules.triton.gemm"]:
        sys.modules[name] = stub
    utils = load("awq/utils/packing_utils")
    sys.modules["awq.utils.packing_utils"] = utils
    gemm = load("awq/modules/linear/gemm")

    def pack(name, w):
        rows, cols = w.shape
        scale, zero = grid(w, 4, 32, False, torch.float16)
        at = torch.arange(cols) // 32
        codes = (w / scale[:, at] + zero[:, at]).round().clamp(0, 15)
        linear = torch.nn.Linear(cols, rows, bias=False)
        linear.weight.data = (codes - zero[:, at]) * scale[:, at]
        module = gemm.WQLinear_GEMM.from_linear(linear, 4, 32, scales=scale.t().contiguous(), zeros=zero.t().contiguous())
        values = utils.dequantize_gemm(module.qweight, module.qzeros, module.scales.float(), 4, 32).t()
        assert torch.equal(values, linear.weight.data)
        parts = {"qweight": module.qweight, "qzeros": module.qzeros, "scales": module.scales}
        return {name.replace("weight", k): v.contiguous() for k, v in parts.items()}, values

    config = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm",
              "modules_to_not_convert": None}
    return torch.float16, config, pack


def compressed(form, weights, activations=None, dtype=torch.bfloat16):
    args = QuantizationArgs(**weights)
    scheme = QuantizationScheme(targets=["Linear"], weights=args,
                                input_activations=QuantizationArgs(**activations) if activations else None)
    compressor = PackedQuantizationCompressor if form == "pack-quantized" else NaiveQuantizationCompressor

    def pack(name, w):
        rows, cols = w.shape
        zero = None
        if args.type == "float":
            size = {"channel": cols, "tensor": None}[args.strategy]
            scale = (w.abs().amax() if size is None else w.abs().amax(-1, keepdim=True)).reshape(-1, *[1] * (size is not None)) / 448
            scale = scale.to(dtype)
        else:
            size = args.group_size if args.strategy == "group" else cols
            scale, zero = grid(w, args.num_bits, size, args.symmetric, dtype)
            scale, zero = scale.to(dtype), (zero - 2 ** (args.num_bits - 1)).to(torch.int8)
        state = {"weight": w, "weight_scale": scale.float()} | ({} if zero is None else {"weight_zero_point": zero})
        state = compressor.compress(state, scheme)
        values = compressor.decompress(dict(state), scheme)["weight"].float()
        state["weight_scale"] = scale
        return {name.replace("weight", k): v.contiguous() for k, v in state.items()}, values

    config = QuantizationConfig(config_groups={"group_0": scheme}, format=form, ignore=["lm_head"],
                                quantization_status="compressed").model_dump(mode="json")
    return torch.bfloat16, config, pack


def fp8_blocks(rows_of=24, cols_of=48):
    args = QuantizationArgs(num_bits=8, type="float", strategy="block", block_structure=[rows_of, cols_of])
    scheme = QuantizationScheme(targets=["Linear"], weights=args)

    def pack(name, w):
        rows, cols = w.shape
        across = -(-cols // cols_of)
        scale = torch.empty(-(-rows // rows_of), across)
        for i in range(scale.shape[0]):
            for j in range(across):
                part = w[i * rows_of:(i + 1) * rows_of, j * cols_of:(j + 1) * cols_of]
                scale[i, j] = part.abs().max() / 448
        wide = scale.repeat_interleave(rows_of, 0)[:rows].repeat_interleave(cols_of, 1)[:, :cols]
        codes = (w / wide).to(torch.float8_e4m3fn)
        values = codes.float() * wide
        state = {"weight": codes, "weight_scale": scale}
        assert torch.equal(NaiveQuantizationCompressor.decompress(state, scheme)["weight"].float()[:rows, :cols], values)
        return {name: codes, f"{name}_scale_inv": scale}, values

    config = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3",
              "weight_block_size": [rows_of, cols_of], "modules_to_not_convert": ["lm_head"]}
    return torch.bfloat16, config, pack


TOKENS = dict(num_bits=8, strategy="token", dynamic=True)
FORMS = {
    "gptq": gptq(),
    "gptq_8bit": gptq(bits=8, group=-1),
    "gptq_desc_act": gptq(shuffled=True),
    "gptq_v2_asym": gptq(symmetric=False, v2=True),
    "awq": awq(),
    "ct_int8": compressed("int-quantized", dict(num_bits=8, strategy="channel"), TOKENS),
    "ct_fp8": compressed("float-quantized", dict(num_bits=8, type="float", strategy="channel"), TOKENS | {"type": "float"}),
    "ct_fp8_tensor": compressed("float-quantized", dict(num_bits=8, type="float", strategy="tensor"), dtype=torch.float32),
    "ct_int4": compressed("pack-quantized", dict(num_bits=4, strategy="group", group_size=32)),
    "ct_int4_asym": compressed("pack-quantized", dict(num_bits=4, strategy="group", group_size=32, symmetric=False),
                               dtype=torch.float32),
    "fp8_blocks": fp8_blocks(),
}


def checkpoint(name, dtype, quantization, pack):
    torch.manual_seed(7)
    model = LlamaForCausalLM(LlamaConfig(**SIZES)).eval()
    files, values = {}, {}
    for key, tensor in model.state_dict().items():
        if re.search("_proj.weight$", key):
            if key == KEPT[1]:
                tensor = tensor.clone()
                tensor[3, 32:64] = tensor[3, 32:64].abs()  # a group whose zero point is 0
                tensor[5, :32] = 0.01  # and one of a single value
            parts, value = pack(key, tensor)
            files |= parts
            values[key] = value
            assert (value - tensor).abs().max() < 0.2, key
        elif key != "lm_head.weight":
            files[key] = tensor.to(dtype)
            values[key] = tensor.to(dtype).float()
    model.load_state_dict(values | {"lm_head.weight": values["model.embed_tokens.weight"]})
    ids = torch.randint(0, SIZES["vocab_size"], (1, 12))
    with torch.no_grad():
        logits = model.float()(ids).logits[0]
    out = HERE / name
    out.mkdir(exist_ok=True)
    config = json.loads(model.config.to_json_string()) | {"architectures": ["LlamaForCausalLM"]}
    config["quantization_config"] = quantization
    (out / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
    save_file({k: v.clone().contiguous() for k, v in files.items()}, out / "model.safetensors", {"format": "pt"})
    golden = {"input_ids": ids[0], "logits": logits} | {k: values[k] for k in KEPT}
    save_file({k: v.clone().contiguous() for k, v in golden.items()}, out / "golden.safetensors")
    print(name, "logits", logits.min().item(), logits.max().item())


def mxfp4():
    """Two stacks of experts: scales as models have them, and of every size."""
    torch.manual_seed(8)
    files, golden = {}, {}
    for name, scales in [("usual", torch.randint(112, 128, (2, 6, 2))), ("every", torch.randint(0, 255, (2, 6, 2)))]:
        blocks = torch.randint(0, 256, (2, 6, 2, 16)).to(torch.uint8)
        files |= {f"{name}_blocks": blocks, f"{name}_scales": scales.to(torch.uint8)}
        values = convert_moe_packed_tensors(blocks, scales.to(torch.uint8), dtype=torch.float32)
        golden[name] = values.transpose(1, 2).contiguous()  # [experts, out, in]
    (HERE / "mxfp4").mkdir(exist_ok=True)
    save_file(files, HERE / "mxfp4/model.safetensors")
    save_file(golden, HERE / "mxfp4/golden.safetensors")


if __name__ == "__main__":
    for name, form in FORMS.items():
        checkpoint(name, *form)
    mxfp4()
