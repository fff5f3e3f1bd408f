# shellcheck shell=bash
# Kill and return, again and again, with PostgreSQL under load. Sourced by scripts/soak; needs lib/common.sh.

# A pair fails over by itself at most so often in an hour; then another one is made.
FAILOVERS_OF_A_PAIR=15

# soak_failover [--loops N] [--binary FILE]: loses the primary of the moment N times (default 100) under load and lets it return,
# each time with all the checks of scripts/demo. The last line is JSON:
# {"loops":N,"committed":N,"lost":N,"longest_failover_ms":N,"failures":N}.
soak_failover() {
    local loops=100 binary=() done=0 count config log line committed=0 lost=0 longest=0 failures=0
    while (($#)); do
        case $1 in
        --loops)
            [[ ${2:-} =~ ^[1-9][0-9]*$ ]] || wrong "--loops wants a number"
            loops=$2
            ;;
        --binary) binary=(--binary "${2:?--binary wants a file}") ;;
        *) wrong "unknown: $1" ;;
        esac
        shift 2
    done
    config=$(mktemp) log=$(mktemp)
    # Nothing that keeps a pair from failing over often, and nothing else that is not as the example has it.
    sed -e 's/^settled_ms = .*/settled_ms = 500/' -e 's/^dwell_ms = .*/dwell_ms = 0/' \
        -e 's/^automatic_per_hour = .*/automatic_per_hour = 16/' "$REPO/docs/repblk.example.toml" >"$config"
    trap stop INT TERM
    while ((done < loops && !STOPPED)); do
        count=$((loops - done < FAILOVERS_OF_A_PAIR ? loops - done : FAILOVERS_OF_A_PAIR))
        "$REPO/scripts/demo" "${binary[@]}" --config "$config" --loops "$count" --seed "soak-$done" >"$log" 2>&1 &
        CHILD=$!
        wait "$CHILD" || ((STOPPED)) || failures=$((failures + 1))
        CHILD=
        ((!STOPPED)) || break
        line=$(grep '^{"committed":' "$log") || line=
        if [[ -z $line ]]; then
            cat "$log"
            die "a round of $count failovers did not come to its end; its log is above"
        fi
        grep 'FAILED' "$log" || true
        done=$((done + count)) committed=$((committed + $(field committed "$line"))) lost=$((lost + $(field lost "$line")))
        count=$(field failover_ms "$line")
        longest=$((count > longest ? count : longest))
        say "$done of $loops failovers, $committed commits, $lost lost, the longest took $longest ms"
    done
    rm -f "$config" "$log"
    printf '{"loops":%d,"committed":%d,"lost":%d,"longest_failover_ms":%d,"failures":%d}\n' "$done" "$committed" "$lost" "$longest" "$failures"
    ((lost == 0 && failures == 0))
}
