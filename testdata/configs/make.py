"""Prints the fixtures' configs as this version of transformers writes them, every key included.

    pip install transformers==4.57.6 && python make.py > transformers-4.json
    pip install transformers==5.23.0 && python make.py > transformers-5.json
"""
import json
import pathlib
from transformers import AutoConfig

ROOT = pathlib.Path(__file__).resolve().parent.parent
NAMES = [
    "llama_plain", "llama_tied", "llama3_rope", "llama_linear", "llama_yarn", "mistral", "mixtral", "qwen2", "qwen2_moe",
    "qwen3", "qwen3_moe", "phi3", "phi3_longrope", "gpt_oss",
    "gemma", "gemma2", "gemma3_text", "granite", "smollm3", "olmo", "olmo2", "gpt2",
    "starcoder2", "gpt_neox", "stablelm", "phi", "glm4", "cohere", "cohere2", "exaone4", "nemotron", "gpt_bigcode", "opt",
    "granitemoe", "olmoe", "falcon", "deepseek_v2", "deepseek_v3",
]
lines = []
for name in NAMES:
    config = json.loads(AutoConfig.from_pretrained(ROOT / name).to_json_string(use_diff=False))
    config["_name_or_path"] = ""
    lines.append(f"{json.dumps(name)}: {json.dumps(config)}")
print("{\n" + ",\n".join(lines) + "\n}")
