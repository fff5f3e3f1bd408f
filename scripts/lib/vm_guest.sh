#!/bin/bash
# What scripts/vm-test runs inside of its virtual machine: two daemons, one /dev/nbd0, ext4, PostgreSQL, and a failover under it.
set -Eeuo pipefail
export PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8
# Beside the log of this script, where the host finds them even if the machine hangs.
LOGS=/run/share
trap 'echo "failed at line $LINENO: $BASH_COMMAND"; dmesg >$LOGS/kernel.log' ERR

COMMITS=${COMMITS:-150}
declare -A PIDS
cp /run/share/repblk /tmp/repblk
cd /tmp
busybox ip link set lo up

say() { printf '[%7.1f s] %s\n' "$(cut -d ' ' -f 1 /proc/uptime)" "$*"; }
node() { ./repblk --config /tmp/pair.toml --node "$@"; }

until_true() {
    local limit=$1
    shift
    for ((i = 0; i < limit * 10; i++)); do
        "$@" >/dev/null 2>&1 && return 0
        sleep 0.1
    done
    echo "gave up after $limit s: $*"
    return 1
}

serve() {
    # Not by the function: the process that is killed later must be the daemon itself.
    ./repblk --config /tmp/pair.toml --node "$1" serve >>"$LOGS/$1.log" 2>&1 &
    PIDS[$1]=$!
    until_true 60 node "$1" status
}

in_sync() { node a status --json | grep -q '"replication":"established"'; }

configure() {
    local name port
    printf 'cluster = "vm"\n'
    for name in a b; do
        [[ $name == a ]] && port=1 || port=2
        printf '[[node]]\nname = "%s"\ndata = "127.0.0.%d:7789"\nheartbeat = ["127.0.0.%d:7790"]\ncontrol = "/tmp/%s.ctl"\n' \
            "$name" "$port" "$port" "$name"
        printf 'nbd = ["tcp:127.0.0.%d:10809"]\n' "$port"
    done
    printf '[[volume]]\nname = "mes"\npeer_timeout_ms = 15000\n[volume.on.a]\ndevice = "/dev/shm/a.img"\n[volume.on.b]\ndevice = "/dev/shm/b.img"\n'
}

fail_over() {
    kill -KILL "${PIDS[a]}"
    until_true 10 test ! -e "/proc/${PIDS[a]}/exe"
    until_true 60 node b promote --peer-is-down
    say "its peer is promoted"
}

main() {
    configure >pair.toml
    for name in a b; do
        truncate -s 300M "/dev/shm/$name.img"
        node "$name" init >/dev/null
        serve "$name"
    done
    node a promote --force
    until_true 120 in_sync
    say "both copies are in sync"
    ./repblk --config pair.toml attach mes --dir /tmp --device /dev/nbd0 >"$LOGS/attach.log" 2>&1 &
    PID_attach=$!
    until_true 60 test -e /sys/block/nbd0/pid
    say "$(cat /sys/block/nbd0/backend) on /dev/nbd0, $(cat /sys/block/nbd0/size) sectors"
    mkfs.ext4 -q -E nodiscard /dev/nbd0
    mkdir /tmp/mnt
    mount -o noatime /dev/nbd0 /tmp/mnt
    install -d -o postgres -m 700 /tmp/mnt/data
    install -d -o postgres /run/postgresql
    chmod 755 /tmp
    as_postgres initdb --no-sync --data-checksums -D /tmp/mnt/data -U postgres >"$LOGS/initdb.log" 2>&1
    as_postgres pg_ctl -w -t 120 -D /tmp/mnt/data -o "-k /run/postgresql -c listen_addresses= -c shared_buffers=32MB" \
        -l /tmp/mnt/data/log start >"$LOGS/pg_ctl.log"
    say "PostgreSQL runs"
    work
    verify
}

as_postgres() {
    local program=$1
    shift
    setpriv --reuid postgres --regid postgres --init-groups env HOME=/tmp "/usr/lib/postgresql/15/bin/$program" "$@"
}

# One session for all the work: if it is lost, so is the test.
work() {
    local n got last now waited
    coproc DB { as_postgres psql -h /run/postgresql -U postgres -AtqX -v ON_ERROR_STOP=1 2>&1; }
    echo 'create table ledger (n int primary key); select 0;' >&"${DB[1]}"
    read -r -t 60 got <&"${DB[0]}"
    longest=0
    last=$EPOCHREALTIME
    for ((n = 1; n <= COMMITS; n++)); do
        if ((n == COMMITS / 3)); then
            say "killing the primary after $((n - 1)) commits"
            fail_over &
            FAIL_OVER=$!
        fi
        echo "insert into ledger values ($n) returning n;" >&"${DB[1]}"
        read -r -t 120 got <&"${DB[0]}" || { echo "no answer to commit $n"; return 1; }
        [[ $got == "$n" ]] || { echo "commit $n was answered: $got"; return 1; }
        now=$EPOCHREALTIME
        waited=$(((${now/./} - ${last/./}) / 1000))
        ((waited <= longest)) || longest=$waited
        last=$now
    done
    wait "$FAIL_OVER"
    echo 'select count(*) from ledger;' >&"${DB[1]}"
    read -r -t 60 COUNT <&"${DB[0]}"
    say "$COUNT of $COMMITS commits are there, in the same session; the longest took $longest ms"
    ((COUNT == COMMITS))
}

verify() {
    local errors
    serve a
    until_true 120 in_sync
    say "the old primary is back and in sync"
    as_postgres pg_ctl -w -D /tmp/mnt/data stop >>"$LOGS/pg_ctl.log"
    as_postgres pg_checksums --check -D /tmp/mnt/data | tail -n 1
    umount /tmp/mnt
    e2fsck -fn /dev/nbd0
    ./repblk --config pair.toml attach mes --dir /tmp --status
    ./repblk --config pair.toml detach mes --dir /tmp
    wait "$PID_attach"
    errors=$(dmesg | grep -ciE 'I/O error|EXT4-fs.*error|aborted' || true)
    node b demote --disconnect-clients
    until_true 30 in_sync
    cmp -n "$((290 << 20))" /dev/shm/a.img /dev/shm/b.img
    printf '{"commits":%d,"lost":%d,"longest_ms":%d,"kernel_errors":%d,"identical":true}\n' \
        "$COUNT" "$((COMMITS - COUNT))" "$longest" "$errors"
    ((errors == 0))
}

main
