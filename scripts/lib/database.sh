# shellcheck shell=bash
# PostgreSQL on the exported device, on the host that runs the database. Sourced after hosts.sh.
#
# The caller sets WORK, LOGS, REPBLK and CONFIG. Everything here runs on host $DB_HOST; its mounts are invisible elsewhere and end with it.

PG_BIN=/usr/lib/postgresql/15/bin
MOUNT=/run/mes # on the database host, whose /run is $WORK/db/run: user postgres can get there wherever WORK is
DB_HOST=db     # where the database runs; its clients are always on host db
DSN='host=/run/postgresql user=postgres dbname=mes' # how they reach it
DEVICE=        # the block device: /dev/nbdN or /dev/loopN
ATTACHED=      # kernel | fuse: how DEVICE reaches `repblk attach`
URI=           # where `repblk attach` serves the volume

on_db() { host_run "$DB_HOST" "$@"; }

as_postgres() { on_db setpriv --reuid postgres --regid postgres --init-groups env -C / PATH="$PG_BIN:$PATH" "$@"; }

# kernel_nbd: has this kernel an NBD client?
kernel_nbd() {
    [[ -d /sys/module/nbd ]] || { command -v modprobe >/dev/null && modprobe --quiet nbd 2>/dev/null; }
}

# device_attach EXPORT: a device on the database host that follows the primary; its path goes to DEVICE.
#
# `repblk attach` finds the primary and serves a socket. A kernel with an NBD client makes a device of that socket itself.
# Without one nbdfuse shows it as a file, and a loop device makes that a block device: its flush is an fsync of the file,
# which nbdfuse passes on as NBD_CMD_FLUSH. Direct I/O keeps the loop device from caching everything a second time, and
# from acknowledging what was only cached.
device_attach() {
    local socket=/run/repblk/attach-$1.nbd
    URI="nbd+unix:///$1?socket=$socket"
    on_db mkdir -p /run/repblk
    host_start "$DB_HOST" attach "$LOGS/attach.log" "$REPBLK" --config "$CONFIG" attach "$1"
    wait_for 10 "repblk attach to find the primary" device_answers || return 1
    if kernel_nbd; then
        local candidate
        for candidate in /sys/block/nbd*; do
            [[ -e $candidate/pid ]] && continue
            DEVICE=/dev/${candidate##*/}
            # The netlink interface of the driver, and with it `attach --device`, exists in the first network namespace only.
            if on_db nbd-client -nonetlink -N "$1" -unix "$socket" "$DEVICE" -timeout 600 >>"$LOGS/attach.log" 2>&1; then
                ATTACHED=kernel
                return 0
            fi
        done
        warn "the kernel's NBD client could not connect (see $LOGS/attach.log); trying nbdfuse"
    fi
    # The file has the name of the work directory, so that a loop device tells which run it belongs to.
    local file=/run/nbd/${WORK##*/}
    on_db mkdir -p /run/nbd
    host_start "$DB_HOST" nbdfuse "$LOGS/attach.log" nbdfuse "$file" "$URI"
    wait_for 10 "nbdfuse to connect to repblk attach" on_db test -f "$file" || return 1
    DEVICE=$(on_db losetup --find --show --direct-io=on "$file") || return 1
    ATTACHED=fuse
    # Detaching a device in use makes it go with its last user: a process of this host, which cannot outlive it.
    # shellcheck disable=SC2016  # expanded by the inner shell
    host_start "$DB_HOST" device "$LOGS/attach.log" bash -c 'exec sleep infinity <"$1"' - "$DEVICE"
    wait_for 5 "the device to be held" device_held || return 1
    on_db losetup --detach "$DEVICE"
}

device_answers() { on_db timeout 3 nbdinfo --size "$URI" >/dev/null 2>>"$LOGS/attach.log"; }

device_held() { [[ $(on_db readlink "/proc/$(on_db cat /run/device.pid)/fd/0") == "$DEVICE" ]]; }

# device_detach EXPORT: lets go of the device, which must not be mounted, and ends `repblk attach`.
device_detach() {
    case $ATTACHED in
    kernel)
        on_db nbd-client -nonetlink -d "$DEVICE" >>"$LOGS/attach.log" 2>&1 || return 1
        ;;
    fuse)
        host_signal "$DB_HOST" device KILL
        wait_for 5 "the device to be released" device_free || return 1
        on_db umount --lazy /run/nbd || return 1
        wait_for 10 "nbdfuse to end" host_ended "$DB_HOST" nbdfuse || return 1
        ;;
    esac
    on_db "$REPBLK" --config "$CONFIG" detach "$1" >>"$LOGS/attach.log" 2>&1 || return 1
    wait_for 10 "repblk attach to end" host_ended "$DB_HOST" attach || return 1
    DEVICE=
    ATTACHED=
}

device_free() { [[ ! -e /sys/block/${DEVICE#/dev/}/loop/backing_file ]]; }

# device_abandon: the kernel's own NBD devices belong to no namespace: they have to be given back by hand.
device_abandon() {
    [[ $ATTACHED != kernel ]] || on_db nbd-client -nonetlink -d "$DEVICE" >>"$LOGS/attach.log" 2>&1
}

# device_errors: how many errors the file system has seen of the device.
device_errors() { cat "/sys/fs/ext4/${DEVICE#/dev/}/errors_count"; }

# mount_id: the kernel's number of the present mount of the file system; another mount has another one.
mount_id() {
    # shellcheck disable=SC2016  # awk's own variables
    on_db awk -v at="$MOUNT" '$5 == at { print $1 }' /proc/self/mountinfo
}

fs_make() { on_db mkfs.ext4 -q -L mes "$DEVICE"; }

# fs_mount: ext4 with its defaults; barriers and ordered data are named so that nobody has to wonder.
fs_mount() {
    on_db mkdir -p "$MOUNT"
    on_db mount -o noatime,barrier=1,data=ordered "$DEVICE" "$MOUNT"
}

fs_unmount() { on_db umount "$MOUNT"; }

# fs_fsync NUMBER: so many small writes to the file system, each with an fsync.
fs_fsync() {
    on_db dd if=/dev/zero of="$MOUNT/fsync-probe" bs=4096 count="$1" oflag=dsync status=none
    on_db rm "$MOUNT/fsync-probe"
}

pg_init() {
    on_db install -d -o postgres -g postgres -m 700 "$MOUNT/pg"
    as_postgres initdb --pgdata "$MOUNT/pg" --data-checksums --auth trust --encoding UTF8 --locale C.UTF-8 \
        >"$LOGS/initdb.log" 2>&1 || return 1
    # Small buffers and frequent checkpoints, so that the device has work to do; durability is left as it comes: full.
    as_postgres tee -a "$MOUNT/pg/postgresql.conf" >/dev/null <<'CONF'
listen_addresses = ''
unix_socket_directories = '/run/postgresql'
shared_buffers = 48MB
max_connections = 40
max_wal_size = 192MB
checkpoint_timeout = 30s
log_checkpoints = on
log_line_prefix = '%m [%p] '
CONF
    # initdb flushes what it wrote; nobody has flushed the lines above.
    on_db sync --file-system "$MOUNT/pg"
}

# pg_start: starts the server in a process namespace of its own, so that it can be killed as a whole.
pg_start() {
    on_db install -d -o postgres -g postgres -m 755 /run/postgresql
    host_start "$DB_HOST" postgres "$LOGS/postgresql.log" \
        unshare --pid --fork --kill-child setpriv --reuid postgres --regid postgres --init-groups \
        "$PG_BIN/postgres" -D "$MOUNT/pg"
    wait_for 30 "PostgreSQL to accept connections" pg_settled
    pg_ready
}

pg_settled() { pg_ready || host_ended "$DB_HOST" postgres; }

pg_ready() { as_postgres pg_isready --quiet --host /run/postgresql; }

# pg_signal SIGNAL: to the server itself. Not by pg_ctl: the server's own idea of its process number is 1.
pg_signal() {
    local outer server
    outer=$(on_db cat /run/postgres.pid)
    server=$(on_db cat "/proc/$outer/task/$outer/children")
    on_db kill "-$1" "${server// /}"
}

# pg_stop: a fast shutdown, with its checkpoint.
pg_stop() {
    pg_signal INT
    wait_for 60 "PostgreSQL to shut down" host_ended "$DB_HOST" postgres
}

# pg_sessions: the server and the sessions of the clients, each by process number and start; one a line, sorted.
pg_sessions() {
    as_postgres psql --host /run/postgresql --dbname mes --no-psqlrc --tuples-only --no-align --command "
        SELECT 'server', pg_postmaster_start_time() UNION ALL
        SELECT pid::text, backend_start FROM pg_stat_activity
        WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() ORDER BY 1"
}

# amcheck [OPTION...]: every table and every index of every database, with the heap compared to the index.
amcheck() {
    as_postgres pg_amcheck --host /run/postgresql --all --install-missing --heapallindexed --jobs 2 "$@" \
        >>"$LOGS/amcheck.log" 2>&1
}

# mes COMMAND...: the workload program, where the clients are.
mes() { host_run db /usr/bin/python3 -B "$WORK/bin/mes.py" --dsn "$DSN" "$@"; }

# --- the demo with its database host; scripts/lib/on_pair.sh has the same names for the other topology ---

# cable_clients: a cable from each node to the database host.
cable_clients() {
    host_cable "$A" client "$(nbd_address "$A" | cut -d ' ' -f 1)" db "client-1" 192.0.2.1
    host_cable "$B" client "$(nbd_address "$B" | cut -d ' ' -f 1)" db "client-2" 192.0.2.2
}

# plant_up: a device that follows the primary, and PostgreSQL on it.
plant_up() {
    local capability flushes proves
    device_attach "$VOLUME" || die "the database host gets no device; see $LOGS/attach.log"
    for capability in flush fua; do
        on_db nbdinfo --can "$capability" "$URI" || die "the export does not offer $capability: nothing could be durable on it"
    done
    proves=$(on_db "$REPBLK" --config "$CONFIG" attach "$VOLUME" --status --json | jq -r .proves)
    [[ $proves == "NBD client db" ]] || die "repblk attach does not prove who it is: $proves"
    say "the database host has $DEVICE (repblk attach over TLS, as $proves; $ATTACHED), $(mib "$EXPORT_SIZE")"
    fs_make
    fs_mount
    flushes=$(flushes_seen)
    fs_fsync 20
    wait_for 5 "the flushes" more_flushes_than $((flushes + 19)) ||
        die "an fsync on ext4 does not reach node $A as a flush: nothing could be durable"
    say "ext4; 20 fsyncs on it reached node $A as $(($(flushes_seen) - flushes)) flushes; initdb with data checksums"
    pg_init || die "initdb failed; see $LOGS/initdb.log"
    pg_start || die "PostgreSQL does not start; see $LOGS/postgresql.log"
    as_postgres createdb --host /run/postgresql mes
}

flushes_seen() { rb_field "$A" .counters.flushes; }

more_flushes_than() { (($(flushes_seen) > $1)); }

# note_sessions: before the failover.
note_sessions() {
    SESSIONS=$(pg_sessions) MOUNTED=$(mount_id)
    (($(wc -l <<<"$SESSIONS") == CLIENTS + 1)) || die "not every client has its session: $SESSIONS"
}

# check_sessions: after it, they are the same, and so is the mount.
check_sessions() {
    local kept
    kept=$(comm -12 <(printf '%s\n' "$SESSIONS") <(pg_sessions) | wc -l)
    KEPT="$((kept - 1)) of $CLIENTS"
    say "   sessions of PostgreSQL that are still the same: $KEPT, mount $(mount_id) (was $MOUNTED), I/O errors: $(device_errors)"
    ((kept == CLIENTS + 1)) || fail "connections of the database broke: before $SESSIONS, now $(pg_sessions)"
    [[ $(mount_id) == "$MOUNTED" ]] || fail "the file system was mounted anew"
    (($(device_errors) == 0)) || fail "the file system saw errors of the device"
}

# plant_down: everything is stopped in order, and looked at.
plant_down() {
    pg_stop || die "PostgreSQL does not stop; see $LOGS/postgresql.log"
    check_checksums
    fs_unmount
    on_db e2fsck -fn "$DEVICE" >"$LOGS/e2fsck.log" 2>&1 || fail "e2fsck found damage; see $LOGS/e2fsck.log"
    device_detach "$VOLUME" || die "the device cannot be let go; see $LOGS/attach.log"
}

topology_rows() {
    row 'connections of PostgreSQL kept' "$KEPT, and its mount"
}

# check_checksums: of every page of a server that is stopped.
check_checksums() {
    as_postgres pg_checksums --check --pgdata "$MOUNT/pg" >"$LOGS/checksums.log" 2>&1 ||
        fail "pg_checksums found damage; see $LOGS/checksums.log"
    # shellcheck disable=SC2034  # for the demo's table
    CHECKED_BLOCKS=$(awk '/^Blocks scanned/ { print $3 }' "$LOGS/checksums.log")
}
