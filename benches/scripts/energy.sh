# Joules of a phase for shell scripts; needs curl and jq. Source it, then:
#   energy_start; ./work; energy_end      prints {"total_j":…,"low_j":…,"high_j":…,"method":…,"reasons":[…]}; null is unknown
: "${NJOULE_ENERGY_URL:=http://127.0.0.1:9788}"
energy_start() { NJOULE_ENERGY_START=$(curl -sf --noproxy '*' --max-time 10 "$NJOULE_ENERGY_URL/v1/energy") || NJOULE_ENERGY_START=; }
energy_end() {
    local none='{"total_j":null,"low_j":null,"high_j":null,"method":null,"reasons":["no agent answers"]}'
    [ -n "$NJOULE_ENERGY_START" ] || { echo "$none"; return; }
    # An agent that dies midway leaves nothing for jq, and that is no failure to jq.
    local report
    report=$(printf %s "$NJOULE_ENERGY_START" | curl -sf --noproxy '*' --max-time 10 --data-binary @- "$NJOULE_ENERGY_URL/v1/energy/report" |
        jq -c 'select(.energy | has("total_j")) | .energy | {total_j, low_j, high_j, method, reasons}' 2> /dev/null) || report=
    echo "${report:-$none}"
}
