#!/usr/bin/env python3
"""What transformers computes for SmolLM2-135M-Instruct: golden_gguf_f32.json and golden_hf_bf16.json.

    make.py MODEL.gguf           compares the files beside this script with what it computes, and fails if they differ
    make.py MODEL.gguf --write   writes them

MODEL.gguf is the default model's file (`cargo xtask assets`), its weights dequantised by gguf-py. golden_hf_bf16.json is of
the same weights rounded to bf16, which are the ones of the published checkpoint's form. Prompts are those of the files.
Needs torch, transformers 4.57.6 and gguf 0.19.0. One thread or several: logits differ in the fifth digit.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from gguf import GGUFReader, dequantize
from transformers import LlamaConfig, LlamaForCausalLM

HERE = Path(__file__).parent
FILES = {"golden_gguf_f32.json": False, "golden_hf_bf16.json": True}
PARTS = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def model_of(path, bf16):
    reader = GGUFReader(path)

    def field(name):
        return reader.fields[f"llama.{name}"].contents()

    heads, kv_heads = field("attention.head_count"), field("attention.head_count_kv")
    config = LlamaConfig(
        vocab_size=len(reader.fields["tokenizer.ggml.tokens"].contents()),
        hidden_size=field("embedding_length"),
        intermediate_size=field("feed_forward_length"),
        num_hidden_layers=field("block_count"),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=field("context_length"),
        rms_norm_eps=float(f"{field('attention.layer_norm_rms_epsilon'):.6g}"),
        rope_theta=float(field("rope.freq_base")),
        tie_word_embeddings=True,
        attn_implementation="eager",
    )
    state = {}
    for tensor in reader.tensors:
        shape = [int(n) for n in tensor.shape[::-1]]
        values = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).astype(np.float32).reshape(shape))
        name = tensor.name
        if name == "token_embd.weight":
            key = "model.embed_tokens.weight"
        elif name == "output_norm.weight":
            key = "model.norm.weight"
        else:
            _, layer, part, _ = name.split(".")
            key = f"model.layers.{layer}.{PARTS[part]}.weight"
            if part in ("attn_q", "attn_k"):
                # GGUF has the pairs of a rotation side by side, transformers half a head apart.
                n, (rows, columns) = heads if part == "attn_q" else kv_heads, shape
                values = values.reshape(n, rows // n // 2, 2, columns).swapaxes(1, 2).reshape(shape)
        state[key] = values.bfloat16().float() if bf16 else values
    model = LlamaForCausalLM(config).float().eval()
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert missing == ["lm_head.weight"] and not unexpected, (missing, unexpected)
    model.tie_weights()
    return model


@torch.no_grad()
def result(model, ids, steps):
    out = model(torch.tensor([ids]), use_cache=True)
    logits = out.logits[0].double()
    last = logits[-1]
    top = torch.topk(last, 50)
    nll = -torch.log_softmax(logits[:-1], -1)[torch.arange(len(ids) - 1), torch.tensor(ids[1:])]
    greedy, margins, cache = [], [], out.past_key_values
    next_logits = last
    for _ in range(steps):
        two = torch.topk(next_logits, 2)
        greedy.append(int(two.indices[0]))
        margins.append(round(float(two.values[0] - two.values[1]), 5))
        out = model(torch.tensor([[greedy[-1]]]), past_key_values=cache, use_cache=True)
        cache, next_logits = out.past_key_values, out.logits[0, -1].double()
    return {
        "last_top50_ids": top.indices.tolist(),
        "last_top50_logits": [round(x, 5) for x in top.values.tolist()],
        "last_logsumexp": round(float(torch.logsumexp(last, -1)), 5),
        "prompt_mean_nll": round(float(nll.mean()), 6),
        "prompt_argmax": logits.argmax(-1).tolist(),
        "greedy_ids": greedy,
        "greedy_margins": margins,
        "min_margin": min(margins),
    }


def off(old, new):
    """The largest distance of a logit, and where the greedy tokens part."""
    after = dict(zip(new["last_top50_ids"], new["last_top50_logits"]))
    logits = [abs(after.get(i, np.inf) - x) for i, x in zip(old["last_top50_ids"][:48], old["last_top50_logits"])]
    parted = [i for i, pair in enumerate(zip(old["greedy_ids"], new["greedy_ids"])) if pair[0] != pair[1]]
    sums = abs(old["last_logsumexp"] - new["last_logsumexp"])
    return max(*logits, sums, abs(old["prompt_mean_nll"] - new["prompt_mean_nll"])), parted[:1]


def main():
    worst = 0.0
    for name, bf16 in FILES.items():
        path = HERE / name
        golden = json.loads(path.read_text())
        model = model_of(sys.argv[1], bf16)
        for number, (prompt, old) in enumerate(zip(golden["prompts"], golden["results"])):
            new = result(model, prompt["ids"], len(old["greedy_ids"]))
            distance, parted = off(old, new)
            close = min(old["greedy_margins"][: parted[0] + 1]) if parted else None
            print(f"{name} prompt {number}: {distance:.1e}" + (f", parts at a margin of {close}" if parted else ""))
            worst = max(worst, distance, 0.0 if close is None or close < 1e-2 else 1.0)
            golden["results"][number] = new
        if "--write" in sys.argv:
            path.write_text(json.dumps(golden, indent=1, ensure_ascii=False))
    if worst > 1e-3 and "--write" not in sys.argv:
        sys.exit(f"off by {worst}")


if __name__ == "__main__":
    main()
