#!/bin/sh
# Two servers behind vllm-router (pip install vllm-router==0.1.17).
#
# power_of_two or round_robin, and a short health interval: with cache_aware and the default of 60 s, requests go to a server
# that is gone for as long.
#
#   MODEL=/models/x sh run.sh
set -eu
trap 'kill 0' EXIT
for port in 9101 9102; do
    njoule serve "$MODEL" --port "$port" --served-model-name model &
done
vllm-router --host 127.0.0.1 --port "${PORT:-9100}" --worker-urls http://127.0.0.1:9101 http://127.0.0.1:9102 \
    --policy power_of_two --health-check-interval-secs 2
