"""lm-eval on sentences of our own (lm_eval/), by njoule's server in f32 and by transformers: log-likelihoods, texts and figures are the
same."""

from live import MODEL, NAME, Server, passed
from lm_eval_run import CHOICE, GENERATE, PERPLEXITY, ROWS, Run, number

tokens = f"tokenizer_backend=huggingface,tokenizer={MODEL}"
with Server("--backend", "cpu", "--quant", "none", "--kv-type", "f32") as server:
    ours = Run("ours", "local-completions", f"model={NAME},base_url={server.url}/v1/completions,num_concurrent=4,{tokens}")
theirs = Run("theirs", "hf", f"pretrained={MODEL},dtype=float32")

worst, compared = 0.0, 0
for task in (CHOICE, PERPLEXITY):
    for mine, other in zip(ours.samples(task), theirs.samples(task), strict=True):
        assert mine["doc"] == other["doc"], (mine["doc"], other["doc"])
        pairs = [(mine["resps"][0], other["resps"][0])] if task == PERPLEXITY else [(a, b) for (a,), (b,) in zip(mine["resps"], other["resps"], strict=True)]
        for a, b in pairs:
            worst, compared = max(worst, abs(number(a) - number(b))), compared + 1
assert compared == 4 * len(ROWS), compared
# Sums over up to some twenty tokens.
assert worst < 1e-3, worst
for mine, other in zip(ours.samples(GENERATE), theirs.samples(GENERATE), strict=True):
    assert mine["resps"] == other["resps"], (mine["doc"], mine["resps"], other["resps"])
mine, other = ours.figures(), theirs.figures()
assert mine[:2] == other[:2] and abs(mine[2] / other[2] - 1) < 1e-3, (mine, other)
passed(f"{compared} log-likelihoods within {worst:.1e} of transformers', {len(ROWS)} texts equal, accuracy and exact matches equal")
