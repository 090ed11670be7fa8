#!/usr/bin/env bash
# Tokens per joule of a whole `njoule bench`, by the report of `njoule energy record`: tokens-per-joule.sh NJOULE MODEL
# The joules are those of the process from its start to its end (loading, prompts and warm-up included), the tokens those of the
# measured decode: the figure is lower than a server's steady state. Needs jq.
set -euo pipefail
njoule=$1 model=$2 dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
"$njoule" energy record -q -o "$dir/energy.json" -- \
    "$njoule" bench -m "$model" --batch 4 --prompt 32 --gen 32 --repeat 1 --no-roofline --json > "$dir/bench.json"
jq -n --slurpfile bench "$dir/bench.json" --slurpfile energy "$dir/energy.json" '
    ($bench[0].rows[0] | .batch * .gen_tokens) as $tokens | $energy[0].energy as $e
    | {output_tokens: $tokens, decode_tokens_per_s: $bench[0].rows[0].decode_tokens_per_s, total_j: $e.total_j, low_j: $e.low_j,
       high_j: $e.high_j, method: $e.method, reasons: $e.reasons,
       output_tokens_per_joule: (if $e.total_j then $tokens / $e.total_j else null end)}'
