"""lm-eval's local-completions on sentences of our own (lm_eval/): choices, generation and perplexity; each log-likelihood and each
generated text compared with what /v1/completions says when it is asked directly."""

import glob
import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path

from transformers import AutoTokenizer

from live import MODEL, NAME, Server, passed

work = Path(os.environ["NJOULE_CHECK_WORK"])
tasks = Path(__file__).with_suffix("")
rows = [json.loads(line) for line in (tasks / "sentences.jsonl").read_text().splitlines()]
NAMES = ("sentences_choice", "sentences_generate", "sentences_perplexity")


def samples(task):
    (path,) = glob.glob(str(work / f"out/**/samples_{task}_*.jsonl"), recursive=True)
    found = [json.loads(line) for line in open(path)]
    assert len(found) == len(rows), (task, len(found))
    return found


with Server() as server:
    url = server.url + "/v1/completions"
    arguments = f"model={NAME},base_url={url},num_concurrent=4,tokenizer_backend=huggingface,tokenizer={MODEL}"
    subprocess.run(
        [str(Path(sys.executable).with_name("lm_eval")), "run", "--model", "local-completions", "--model_args", arguments, "--tasks",
         ",".join(NAMES), "--include_path", str(tasks), "--batch_size", "1", "--output_path", str(work / "out"), "--log_samples"],
        # Its tasks name their file as one beside them.
        check=True, cwd=tasks,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(work / "hf")})

    def ask(body):
        request = urllib.request.Request(url, json.dumps({"model": NAME, **body}).encode(), {"content-type": "application/json"})
        return json.load(urllib.request.urlopen(request))["choices"][0]

    def likelihoods(prompt):
        return ask({"prompt": prompt, "max_tokens": 0, "echo": True, "logprobs": 1})["logprobs"]

    compared = 0
    for sample in samples("sentences_choice"):
        for arguments, ((value, _),) in zip(sample["arguments"].values(), sample["resps"], strict=True):
            start, whole = arguments["arg_0"], likelihoods(arguments["arg_0"] + arguments["arg_1"])
            # A token that lies over the border is cut otherwise by lm-eval.
            if len(start) in whole["text_offset"]:
                direct = sum(p for at, p in zip(whole["text_offset"], whole["token_logprobs"]) if at >= len(start))
                assert abs(direct - float(value)) < 1e-3, (arguments, direct, value)
                compared += 1
    assert compared >= 2 * len(rows), compared
    for sample in samples("sentences_generate"):
        text = ask({"prompt": sample["doc"]["q"], "max_tokens": 8, "temperature": 0, "stop": ["\n"]})["text"]
        assert sample["resps"][0][0] == text, (sample["doc"], sample["resps"], text)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    first = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    for sample in samples("sentences_perplexity"):
        doc = sample["doc"]
        ids = tokenizer.encode(doc["q"] + " " + doc["choices"][doc["gold"]])
        # lm-eval's window begins with a token that stands for no text.
        direct, value = sum(likelihoods([first, *ids])["token_logprobs"][1:]), sample["resps"][0]
        value = float(value[0] if isinstance(value, list) else value)
        assert abs(direct - value) < 1e-3, (doc, value, direct)
    (path,) = glob.glob(str(work / "out/**/results_*.json"), recursive=True)
    results = json.load(open(path))["results"]
    figures = [results[NAMES[0]]["acc,none"], results[NAMES[1]]["exact_match,none"], results[NAMES[2]]["word_perplexity,none"]]
    assert 0 <= figures[0] <= 1 and 0 <= figures[1] <= 1 and figures[2] > 1, figures
passed(f"{len(rows)} sentences: {compared} log-likelihoods and {len(rows)} texts as asked directly, {len(rows)} perplexities")
