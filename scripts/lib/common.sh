# shellcheck shell=bash
# What every script here needs: messages, waiting, Debian packages, the repblk binary. Sourced, never run.

REPO=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd)
# shellcheck disable=SC2034  # for the scripts that source this file
LIB=$REPO/scripts/lib
STARTED=${EPOCHREALTIME/,/.}
export LC_ALL=C.UTF-8
PATH=$PATH:/usr/sbin:/sbin

# since T: seconds from T (as of $EPOCHREALTIME) to now, with one decimal.
since() { awk -v a="$1" -v b="${EPOCHREALTIME/,/.}" 'BEGIN { printf "%.1f", b - a }'; }

# say TEXT: one line of progress, stamped with the seconds since the script began.
say() { printf '[%6s s] %s\n' "$(since "$STARTED")" "$*"; }

warn() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }

die() {
    warn "$*"
    exit 1
}

# wait_for SECONDS WHAT COMMAND...: runs COMMAND until it succeeds, at most SECONDS; then says WHAT was awaited.
wait_for() {
    local limit=$1 what=$2 deadline
    shift 2
    deadline=$((SECONDS + limit))
    until "$@"; do
        if ((SECONDS >= deadline)); then
            warn "gave up after $limit s waiting for $what"
            return 1
        fi
        sleep 0.1
    done
}

# pid_alive PID: is there such a process, and is it more than a zombie?
pid_alive() {
    local state
    state=$(awk '/^State:/ { print $2; exit }' "/proc/$1/status" 2>/dev/null) || return 1
    [[ -n $state && $state != Z ]]
}

pid_gone() { ! pid_alive "$1"; }

# start_ticks PID: when the process started, in clock ticks since boot. With the pid it names one process for ever.
start_ticks() {
    local stat fields
    stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
    # The command's name may hold spaces and parentheses: count fields from behind the last one.
    read -ra fields <<<"${stat##*)}"
    printf '%s\n' "${fields[19]}"
}

# need_packages PACKAGE=FILE_OR_COMMAND...: installs the Debian packages whose file or command is missing.
need_packages() {
    local entry probe missing=()
    for entry in "$@"; do
        probe=${entry#*=}
        if [[ $probe == /* ]]; then [[ -e $probe ]]; else command -v "$probe" >/dev/null; fi || missing+=("${entry%%=*}")
    done
    ((${#missing[@]})) || return 0
    command -v apt-get >/dev/null || die "missing: ${missing[*]} (names of Debian packages), and there is no apt-get here"
    ((EUID == 0)) || die "missing Debian packages; as root: apt-get install --no-install-recommends ${missing[*]}"
    say "installing ${missing[*]}"
    local log status=0
    log=$(mktemp)
    # Installing PostgreSQL normally makes and starts a server; this machine was not asked for one.
    local no_cluster=/etc/postgresql-common/createcluster.d/repblk.conf
    [[ ${missing[*]} != *postgresql* ]] || install -D -m 644 <(printf 'create_main_cluster = false\n') "$no_cluster"
    {
        export DEBIAN_FRONTEND=noninteractive
        apt-get install -y -qq --no-install-recommends "${missing[@]}" ||
            { apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}"; }
    } >"$log" 2>&1 </dev/null || status=$?
    rm -f "$no_cluster"
    if ((status)); then
        tail -n 20 "$log" >&2
        rm -f "$log"
        die "apt-get could not install ${missing[*]}; its last lines are above"
    fi
    rm -f "$log"
    hash -r
}

# need_rust: a Rust tool chain new enough for this crate, and a linker. Debian 12's own is too old for the edition.
need_rust() {
    need_packages gcc=cc libc6-dev=/usr/include/stdio.h
    [[ -n ${CARGO_HOME:-} || ! -d ${HOME:-/root}/.cargo/bin ]] || PATH=$PATH:$HOME/.cargo/bin
    local wanted have
    wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$REPO/Cargo.toml")
    command -v cargo >/dev/null || die "no cargo: repblk needs Rust $wanted or newer (https://rustup.rs); Debian 12 packages 1.63"
    have=$(cd "$REPO" && cargo --version | awk '{ print $2 }')
    [[ $(printf '%s\n' "$wanted" "$have" | sort -V | head -n 1) == "$wanted" ]] ||
        die "cargo $have is too old: repblk needs Rust $wanted or newer (rustup update)"
}

# build_repblk PROFILE: builds the binary (`debug` or `release`) and leaves its path in REPBLK.
build_repblk() {
    need_rust
    local flags=(--locked --bin repblk)
    [[ $1 == debug ]] || flags+=(--release)
    (cd "$REPO" && cargo build --quiet "${flags[@]}") || die "the build failed"
    local target
    target=$(cd "$REPO" && cargo metadata --format-version 1 --no-deps --locked |
        sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p')
    REPBLK=$target/$1/repblk
    [[ -x $REPBLK ]] || die "the build left no $REPBLK"
}
