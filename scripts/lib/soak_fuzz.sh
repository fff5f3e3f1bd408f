# shellcheck shell=bash
# Long fuzzing. Sourced by scripts/soak; needs lib/common.sh.

# fuzz_outcome LOG: what a run of the fuzz targets came to, as one line of JSON.
fuzz_outcome() {
    awk '/^[a-z_]+: [0-9]+ runs, / { runs += $2; targets++ } /^test .* FAILED$/ { failures++ }
        END { printf "{\"targets\":%d,\"runs\":%d,\"failures\":%d}\n", targets, runs, failures }' "$1"
}

# soak_fuzz [--seconds N] [--seed N] [--coverage] [TARGET...]: every target, or those named, for N seconds each (60),
# from a seed (the time, unless given). With --coverage `cargo fuzz` runs them, one after the other, guided by coverage;
# that needs a nightly toolchain and cargo-fuzz. The last line is JSON:
# {"targets":N,"runs":N,"failures":N}.
soak_fuzz() {
    local seconds=60 seed coverage=no targets=() log target status=0
    seed=$(date +%s)
    while (($#)); do
        case $1 in
        --seconds) seconds=${2:?--seconds wants a number} && shift ;;
        --seed) seed=${2:?--seed wants a number} && shift ;;
        --coverage) coverage=yes ;;
        -*) die "fuzz: unknown option $1" ;;
        *) targets+=("$1") ;;
        esac
        shift
    done
    cd "$REPO" || return
    if [[ $coverage == yes ]]; then
        soak_fuzz_coverage "$seconds" "$seed" "${targets[@]}"
        return
    fi
    log=$(mktemp)
    say "fuzz targets, $seconds s each, REPBLK_FUZZ_SEED=$seed"
    if ((${#targets[@]})); then
        targets=(--exact "${targets[@]}")
    fi
    REPBLK_FUZZ_SECONDS=$seconds REPBLK_FUZZ_SEED=$seed \
        cargo test --locked --test fuzz -- --nocapture "${targets[@]}" 2>&1 | tee "$log" || status=$?
    fuzz_outcome "$log"
    rm -f "$log"
    return "$status"
}

# soak_fuzz_coverage SECONDS SEED TARGET...
soak_fuzz_coverage() {
    local seconds=$1 seed=$2 target runs=0 count failures=0 log
    shift 2
    cargo +nightly fuzz --version >/dev/null 2>&1 || die "no cargo fuzz: rustup toolchain install nightly; cargo install cargo-fuzz"
    (($#)) || mapfile -t -O 0 targets < <(cargo +nightly fuzz list --fuzz-dir tests/fuzz)
    (($#)) || set -- "${targets[@]}"
    log=$(mktemp)
    for target; do
        say "$target, $seconds s, guided by coverage"
        # What is found goes into a directory of its own: the corpus that is committed stays small.
        mkdir -p "target/fuzz-corpus/$target"
        if ! cargo +nightly fuzz run --fuzz-dir tests/fuzz "$target" "target/fuzz-corpus/$target" \
            "tests/fuzz/corpus/$target" -- -max_total_time="$seconds" -seed="$((seed % 2147483647))" -max_len=8192 \
            -print_final_stats=1 >"$log" 2>&1; then
            failures=$((failures + 1))
            tail -n 40 "$log"
        fi
        count=$(awk '/^stat::number_of_executed_units/ { print $2 }' "$log")
        runs=$((runs + ${count:-0}))
    done
    rm -f "$log"
    printf '{"targets":%d,"runs":%d,"failures":%d}\n' "$#" "$runs" "$failures"
    ((failures == 0))
}
