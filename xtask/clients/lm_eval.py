"""lm-eval's local-completions on sentences of our own (lm_eval/): choices, generation and perplexity; each log-likelihood and each
generated text compared with what /v1/completions says when it is asked directly."""

import json
import urllib.request

from transformers import AutoTokenizer

from live import MODEL, NAME, Server, passed
from lm_eval_run import CHOICE, GENERATE, PERPLEXITY, ROWS, Run, number

with Server() as server:
    url = server.url + "/v1/completions"
    run = Run("out", "local-completions", f"model={NAME},base_url={url},num_concurrent=4,tokenizer_backend=huggingface,tokenizer={MODEL}")

    def ask(body):
        request = urllib.request.Request(url, json.dumps({"model": NAME, **body}).encode(), {"content-type": "application/json"})
        return json.load(urllib.request.urlopen(request))["choices"][0]

    def likelihoods(prompt):
        return ask({"prompt": prompt, "max_tokens": 0, "echo": True, "logprobs": 1})["logprobs"]

    compared = 0
    for sample in run.samples(CHOICE):
        for arguments, (answer,) in zip(sample["arguments"].values(), sample["resps"], strict=True):
            start, whole = arguments["arg_0"], likelihoods(arguments["arg_0"] + arguments["arg_1"])
            # A token that lies over the border is cut otherwise by lm-eval.
            if len(start) in whole["text_offset"]:
                direct = sum(p for at, p in zip(whole["text_offset"], whole["token_logprobs"]) if at >= len(start))
                assert abs(direct - number(answer)) < 1e-3, (arguments, direct, answer)
                compared += 1
    assert compared >= 2 * len(ROWS), compared
    for sample in run.samples(GENERATE):
        text = ask({"prompt": sample["doc"]["q"], "max_tokens": 8, "temperature": 0, "stop": ["\n"]})["text"]
        assert sample["resps"][0][0] == text, (sample["doc"], sample["resps"], text)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    first = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    for sample in run.samples(PERPLEXITY):
        doc = sample["doc"]
        ids = tokenizer.encode(doc["q"] + " " + doc["choices"][doc["gold"]])
        # lm-eval's window begins with a token that stands for no text.
        direct, value = sum(likelihoods([first, *ids])["token_logprobs"][1:]), number(sample["resps"][0])
        assert abs(direct - value) < 1e-3, (doc, value, direct)
    run.figures()
passed(f"{len(ROWS)} sentences: {compared} log-likelihoods and {len(ROWS)} texts as asked directly, {len(ROWS)} perplexities")
