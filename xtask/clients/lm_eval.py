"""lm-eval's local-completions: generation and log-likelihoods, those compared with what /v1/completions says of each alone."""

import glob
import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path

from live import MODEL, NAME, Server, passed

work = Path(os.environ["NJOULE_CHECK_WORK"])
tasks = work / "tasks"
tasks.mkdir(exist_ok=True)
rows = [{"q": f"{a} and {b} make", "choices": [f" {a + b}", f" {a - b}", " none"], "gold": 0} for a in range(2, 6) for b in (1, 2)]
(tasks / "tiny.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
common = f"""dataset_path: json
dataset_kwargs: {{data_files: {{test: {tasks}/tiny.jsonl}}}}
test_split: test
doc_to_text: "{{{{q}}}}"
"""
(tasks / "choice.yaml").write_text(common + """task: tiny_choice
output_type: multiple_choice
doc_to_choice: "{{choices}}"
doc_to_target: "{{gold}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
""")
(tasks / "generate.yaml").write_text(common + """task: tiny_generate
output_type: generate_until
doc_to_target: "{{choices[0]}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 8, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
""")
with Server() as server:
    url = server.url + "/v1/completions"
    arguments = f"model={NAME},base_url={url},num_concurrent=4,tokenizer_backend=huggingface,tokenizer={MODEL}"
    subprocess.run(
        [str(Path(sys.executable).with_name("lm_eval")), "run", "--model", "local-completions", "--model_args", arguments, "--tasks",
         "tiny_choice,tiny_generate", "--include_path", str(tasks), "--batch_size", "1", "--output_path", str(work / "out"), "--log_samples"],
        check=True, env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(work / "hf")})

    def ask(body):
        request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
        return json.load(urllib.request.urlopen(request))["choices"][0]["logprobs"]

    samples = sorted(glob.glob(str(work / "out/**/samples_tiny_choice_*.jsonl"), recursive=True))[-1]
    checked = 0
    for sample in map(json.loads, open(samples)):
        doc = sample["doc"]
        for choice, (value, _) in zip(doc["choices"], (r[0] for r in sample["resps"])):
            # By the server's own cut into tokens; a cut that merges over the border is left out.
            whole = ask({"model": NAME, "prompt": doc["q"] + choice, "max_tokens": 0, "echo": True, "logprobs": 1})
            if len(doc["q"]) not in whole["text_offset"]:
                continue
            tail = [p for at, p in zip(whole["text_offset"], whole["token_logprobs"]) if at >= len(doc["q"])]
            assert abs(sum(tail) - float(value)) < 1e-3, (doc, choice, sum(tail), value)
            checked += 1
    assert checked >= len(rows), checked
    results = json.load(open(sorted(glob.glob(str(work / "out/**/results_*.json"), recursive=True))[-1]))["results"]
    assert 0 <= results["tiny_choice"]["acc,none"] <= 1 and 0 <= results["tiny_generate"]["exact_match,none"] <= 1
passed(f"{len(rows)} rows generated, {3 * len(rows)} log-likelihoods, {checked} compared")
