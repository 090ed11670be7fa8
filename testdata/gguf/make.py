"""Writes GGUF files with llama.cpp's own converter, and what transformers computes for the checkpoints they are made from.

    git clone https://github.com/ggml-org/llama.cpp
    pip install torch transformers==4.57.6 safetensors numpy pyyaml tqdm
    python make.py [--into DIRECTORY] LLAMA_CPP [NAME ...]

Each case is a tiny random checkpoint as `../variants/make.py` makes them, or one of `testdata` (a NAME that is its path there,
such as `phi` or `variants/glm4_plain`, and is no case is converted too). Its options are those that the converter can write
down. Matrices keep the type that the checkpoint has them in, so that nothing is rounded.

Of the converter's work only the vocabulary is not its own, since the checkpoints have none: single bytes, and tokens that no
text gives; and of stablelm the stacking of norms, which fails there. The files that are committed are by the llama.cpp that
llama-cpp-python 0.3.36 packs (gguf-py 0.19.0), and by transformers 4.57.6.
"""
import argparse
import importlib
import importlib.util
import json
import pathlib
import shutil
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
spec = importlib.util.spec_from_file_location("variants", HERE.parent / "variants" / "make.py")
variants = importlib.util.module_from_spec(spec)
spec.loader.exec_module(variants)

SMALL = variants.SMALL
MOE = dict(SMALL, moe_intermediate_size=12, num_experts=5, num_experts_per_tok=3, intermediate_size=40)
GEMMA = dict(SMALL, head_dim=12, query_pre_attn_scalar=12, sliding_window=5)
GRANITE = dict(SMALL, embedding_multiplier=3.0, attention_multiplier=0.2, residual_multiplier=0.4, logits_scaling=1.7)
GPT2 = dict(variants.GPT2, vocab_size=64, n_layer=2)
FALCON, DEEPSEEK = variants.FALCON, variants.DEEPSEEK


def yarn(**options):
    return dict(type="yarn", factor=4.0, original_max_position_embeddings=64, beta_fast=32, beta_slow=1, **options)


# name: (model_type, options, keys of config.json that published files have and the class does not write)
CASES = {
    "llama": ("llama", dict(SMALL, head_dim=12, attention_bias=True, rope_scaling=dict(
        rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
        original_max_position_embeddings=32)), {}),
    "llama-experts": ("mixtral", dict(SMALL, intermediate_size=24, num_local_experts=3, num_experts_per_tok=2,
                                      sliding_window=None), {}),
    "qwen2": ("qwen2", dict(SMALL, tie_word_embeddings=True), {}),
    "qwen2moe": ("qwen2_moe", dict(MOE, shared_expert_intermediate_size=20), {}),
    "qwen3": ("qwen3", dict(SMALL, head_dim=12), {}),
    "qwen3moe": ("qwen3_moe", dict(MOE, head_dim=12, norm_topk_prob=True), {}),
    "gemma": ("gemma", dict(SMALL, head_dim=12), {}),
    "gemma2": ("gemma2", dict(GEMMA, num_hidden_layers=3, attn_logit_softcapping=4.0, final_logit_softcapping=12.0), {}),
    "gemma3": ("gemma3_text", dict(GEMMA, num_hidden_layers=7, rope_theta=3e3, rope_local_base_freq=50.0,
                                   final_logit_softcapping=4.0, rope_scaling=dict(rope_type="linear", factor=8.0)), {}),
    "phi2": ("phi", dict(SMALL, intermediate_size=128, num_key_value_heads=4), {}),
    "phi3": ("phi3", dict(SMALL, sliding_window=9), {}),
    "phi3-long": ("phi3", dict(
        SMALL, hidden_size=64, partial_rotary_factor=0.75, original_max_position_embeddings=24, tie_word_embeddings=True,
        rope_scaling=dict(type="longrope", short_factor=[1.0, 1.05, 1.1, 1.2, 1.3, 1.5],
                          long_factor=[1.0, 1.4, 1.9, 2.6, 3.4, 5.0])), {}),
    "granite": ("granite", dict(GRANITE, attention_bias=True, mlp_bias=True), {}),
    "granitemoe": ("granitemoe", dict(GRANITE, intermediate_size=20, num_local_experts=5, num_experts_per_tok=3), {}),
    "smollm3": ("smollm3", dict(SMALL, num_hidden_layers=4), {}),
    "olmo": ("olmo", dict(SMALL, head_dim=12, clip_qkv=1.5, rope_scaling=dict(type="linear", factor=2.0)), {}),
    "olmo2": ("olmo2", SMALL, {}),
    "olmoe": ("olmoe", dict(SMALL, intermediate_size=12, num_experts=6, num_experts_per_tok=3), {}),
    "gpt2": ("gpt2", GPT2, dict(n_ctx=64)),
    "gptneox": ("gpt_neox", dict(SMALL, rotary_pct=0.5), {}),
    "gptneox-sequential": ("gpt_neox", dict(SMALL, rotary_pct=1.0, use_parallel_residual=False), {}),
    "stablelm": ("stablelm", dict(SMALL, use_qkv_bias=True, partial_rotary_factor=0.5), {}),
    "stablelm-parallel": ("stablelm", dict(SMALL, use_parallel_residual=True, qk_layernorm=True), {}),
    "starcoder": ("gpt_bigcode", GPT2, {}),
    "starcoder2": ("starcoder2", dict(SMALL, sliding_window=None), {}),
    "command-r": ("cohere", dict(SMALL, logit_scale=0.4), {}),
    "command-r-normed": ("cohere", dict(SMALL, use_qk_norm=True, logit_scale=0.4), {}),
    "cohere2": ("cohere2", dict(SMALL, num_hidden_layers=5, sliding_window=5, logit_scale=0.4), dict(rotary_pct=1.0)),
    "glm4": ("glm4", dict(SMALL, head_dim=12, partial_rotary_factor=0.7), {}),
    "exaone4": ("exaone4", dict(SMALL, num_hidden_layers=3, head_dim=12, sliding_window=5, sliding_window_pattern=3,
                                rope_scaling=dict(rope_type="linear", factor=2.0)), {}),
    "exaone4-full": ("exaone4", dict(SMALL, sliding_window=None, sliding_window_pattern=None,
                                     layer_types=["full_attention"] * 2), {}),
    "nemotron": ("nemotron", dict(SMALL, mlp_bias=True), {}),
    "falcon": ("falcon", FALCON, dict(num_kv_heads=1)),
    "falcon-groups": ("falcon", dict(FALCON, new_decoder_architecture=True, num_kv_heads=2), {}),
    "gpt-oss": ("gpt_oss", dict(
        SMALL, num_hidden_layers=3, intermediate_size=20, num_local_experts=4, num_experts_per_tok=2, head_dim=10,
        sliding_window=9, rope_scaling=yarn(truncate=False)), {}),
    "gpt-oss-mxfp4": ("gpt_oss_mxfp4", None, {}),
    "deepseek2": ("deepseek_v2", dict(
        DEEPSEEK, q_lora_rank=12, first_k_dense_replace=1, n_routed_experts=6, n_shared_experts=2,
        topk_method="group_limited_greedy", n_group=3, topk_group=2, routed_scaling_factor=1.5), {}),
    "deepseek2-lite": ("deepseek_v2", dict(DEEPSEEK, q_lora_rank=None, n_routed_experts=5, n_shared_experts=1), {}),
    "deepseek2-sigmoid": ("deepseek_v3", dict(
        DEEPSEEK, q_lora_rank=12, n_routed_experts=6, n_shared_experts=1, n_group=3, topk_group=2,
        first_k_dense_replace=1, routed_scaling_factor=2.5, rope_scaling=yarn(mscale=0.7, mscale_all_dim=0.7)),
        dict(scoring_func="sigmoid")),
}


def vocabulary(model):
    """Writes a vocabulary of as many tokens as the config says: 0 to 2 are markers, then bytes in GPT-2's letters."""
    from transformers.models.gpt2.tokenization_gpt2 import bytes_to_unicode
    hparams = {**model.hparams, **model.hparams.get("text_config", {})}
    size = hparams["vocab_size"]
    letters = list(bytes_to_unicode().values())
    tokens = (["<pad>", "<s>", "</s>"] + letters + [f"<unused{i}>" for i in range(size)])[:size]
    writer = model.gguf_writer
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * (size - 3))
    writer.add_token_merges([])
    for name, add in [("bos_token_id", writer.add_bos_token_id), ("eos_token_id", writer.add_eos_token_id)]:
        if isinstance(value := hparams.get(name), int):
            add(value)


def stack_norms(base):
    """stablelm's norms of the heads: a generator cannot return what it should yield, as the converter's own has it."""
    def modify_tensors(self, data, name, bid):
        for kind, heads in [("q_layernorm", "num_attention_heads"), ("k_layernorm", "num_key_value_heads")]:
            if f"{kind}.norms" in name:
                held = self.__dict__.setdefault("held", {}).setdefault((bid, kind), {})
                held[name] = data
                if len(held) == self.hparams[heads]:
                    yield from self._stack_qk_norm(bid, len(held), held, kind)
                return
        yield from base.modify_tensors(self, data, name, bid)
    return modify_tensors


def stored_type(path):
    with open(path, "rb") as f:
        header = json.loads(f.read(int.from_bytes(f.read(8), "little")))
    types = {t["dtype"] for name, t in header.items() if name != "__metadata__"}
    return next((out for kind, out in [("BF16", "bf16"), ("F16", "f16")] if kind in types), "f32")


def convert(source, more, out):
    """Converts the checkpoint `source`; `more` are keys that its config lacks."""
    import torch
    conversion = importlib.import_module("conversion")
    gguf = importlib.import_module("gguf")
    with tempfile.TemporaryDirectory() as place:
        place = pathlib.Path(place) / "random"
        place.mkdir()
        for path in source.iterdir():
            if path.name == "config.json" or path.name.startswith("model"):
                shutil.copy(path, place / path.name)
        config = json.loads((place / "config.json").read_text()) | more
        (place / "config.json").write_text(json.dumps(config))
        kind = stored_type(next(place.glob("model*.safetensors")))
        hparams = conversion.ModelBase.load_hparams(place, False)
        architecture = conversion.get_model_architecture(hparams, conversion.ModelType.TEXT)
        base = conversion.get_model_class(architecture)
        own = {"model_arch": base.model_arch, "set_vocab": vocabulary}
        if base.__name__ == "StableLMModel":
            own["modify_tensors"] = stack_norms(base)
        if base.__name__ == "Gemma3Model":  # it looks for a tokenizer to see which rows of the embeddings are padding
            n = hparams.get("vocab_size") or hparams["text_config"]["vocab_size"]
            vocab = {f"t{i}": i for i in range(n)}
            (place / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocab}, "added_tokens": []}))
        types = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16"}
        with torch.inference_mode():
            model_class = type(base.__name__, (base,), own)
            model_class(place, gguf.LlamaFileType[types[kind]], out, eager=True).write()


def make(name, into):
    kind, options, more = CASES.get(name, (name, None, {}))
    out = into / name.replace("/", "-")
    out.mkdir(parents=True, exist_ok=True)
    if options is None:
        source = HERE.parent / kind
        shutil.copy(source / "golden.safetensors", out / "golden.safetensors")
        convert(source, more, out / "model.gguf")
        return
    with tempfile.TemporaryDirectory() as place:
        source = pathlib.Path(place) / name
        for seed in range(40):
            variants.build(kind, options, source, seed)
            if variants.golden(kind, source, seed, False) > 0.03:
                break
        else:
            raise SystemExit(f"{name}: every seed has a near tie")
        convert(source, more, out / "model.gguf")
        shutil.copy(source / "golden.safetensors", out / "golden.safetensors")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--into", type=pathlib.Path, default=HERE)
    parser.add_argument("llama_cpp", type=pathlib.Path)
    parser.add_argument("names", nargs="*", metavar="NAME")
    args = parser.parse_args()
    sys.path[:0] = [str(args.llama_cpp), str(args.llama_cpp / "gguf-py")]
    variants.torch.set_num_threads(1)
    for name in args.names or CASES:
        make(name, args.into)
        print(f"{name}: {(args.into / name.replace('/', '-') / 'model.gguf').stat().st_size} bytes", flush=True)


if __name__ == "__main__":
    main()
