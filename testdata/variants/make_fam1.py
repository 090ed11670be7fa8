"""Makes tiny random checkpoints with options that no fixture has, and what the reference implementation computes for them.

    pip install torch transformers==4.57.6 && python make_fam1.py

Weights are rounded to bf16, saved and read again; logits and greedy continuations are f32, eager attention, one thread, no
cache, as in the fixtures.
"""
import json
import pathlib
import shutil

import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

ROOT = pathlib.Path(__file__).resolve().parent
VOCAB, LENGTHS, STEPS = 64, (5, 27), 6
COMMON = dict(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
              max_position_embeddings=256, pad_token_id=0, bos_token_id=1, eos_token_id=2)
EXPERTS = dict(moe_intermediate_size=12, num_experts=5, num_experts_per_tok=3, intermediate_size=40, decoder_sparse_step=2)
CASES = {
    # a window; one expert per token; longer heads; tied
    "mixtral_window": ("mixtral", dict(
        intermediate_size=24, sliding_window=6, num_local_experts=3, num_experts_per_tok=1, head_dim=12,
        tie_word_embeddings=True, rope_theta=5e4)),
    # dense layers by step and by name; shares divided by their sum; no biases; one head of keys
    "qwen2_moe_step": ("qwen2_moe", dict(
        EXPERTS, shared_expert_intermediate_size=20, num_hidden_layers=4, mlp_only_layers=[3], norm_topk_prob=True,
        qkv_bias=False, num_key_value_heads=1)),
    # every layer slides; biases; shares as they are; another activation
    "qwen3_moe_window": ("qwen3_moe", dict(
        EXPERTS, attention_bias=True, use_sliding_window=True, sliding_window=5, hidden_act="gelu_pytorch_tanh",
        head_dim=12, rope_scaling=dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=64))),
    # layer types; no attention biases; every expert takes part; plain rope; tied
    "gpt_oss_plain": ("gpt_oss", dict(
        intermediate_size=20, num_local_experts=3, num_experts_per_tok=3, head_dim=10, sliding_window=9,
        layer_types=["full_attention", "sliding_attention"], attention_bias=False, tie_word_embeddings=True,
        rope_scaling=dict(rope_type="default"))),
    # three quarters of each head rotated, LongRoPE by its first name (prompt 1 lies beyond the border), a window, tied
    "phi3_partial": ("phi3", dict(
        intermediate_size=40, partial_rotary_factor=0.75, original_max_position_embeddings=24, sliding_window=11,
        tie_word_embeddings=True, hidden_size=64,
        rope_scaling=dict(type="su", short_factor=[1.0, 1.05, 1.1, 1.2, 1.3, 1.5],
                          long_factor=[1.0, 1.4, 1.9, 2.6, 3.4, 5.0]))),
}


def main():
    torch.set_num_threads(1)
    for name, (kind, options) in CASES.items():
        config = AutoConfig.for_model(kind, **{**COMMON, **options})
        assert any(make(name, config, seed) > 0.03 for seed in range(20)), f"{name}: every seed has a near tie"


def make(name, config, seed):
    """Writes the directory of `name`; the smallest margin of a greedy token."""
    directory = ROOT / name
    shutil.rmtree(directory, ignore_errors=True)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for key, x in model.named_parameters():
            noise = torch.randn_like(x)
            x.copy_(1 + 0.3 * noise if "norm" in key else 0.3 * noise if x.ndim > 1 else 0.5 * noise)
    model.to(torch.bfloat16).save_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()
    tensors, margins = {}, []
    random = torch.Generator().manual_seed(7)
    for i, length in enumerate(LENGTHS):
        ids = torch.randint(3, VOCAB, (length,), generator=random)
        run = ids.clone()
        with torch.no_grad():
            logits = model(ids[None], use_cache=False).logits[0]
            for _ in range(STEPS):
                top = model(run[None], use_cache=False).logits[0, -1].topk(2)
                margins.append(float(top.values[0] - top.values[1]))
                run = torch.cat([run, top.indices[:1]])
        tensors |= {f"prompt.{i}.input_ids": ids, f"prompt.{i}.logits": logits.contiguous(),
                    f"prompt.{i}.greedy_ids": run[length:].clone()}
    save_file(tensors, directory / "golden.safetensors")
    about = {"transformers": transformers.__version__, "torch": torch.__version__, "seed": seed, "min_margin": min(margins)}
    (directory / "golden.json").write_text(json.dumps(about) + "\n")
    (directory / "generation_config.json").unlink(missing_ok=True)
    return min(margins)


if __name__ == "__main__":
    main()
