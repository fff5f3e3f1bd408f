# shellcheck shell=bash
# The classic topology of the demo: the database runs on the pair, started by hooks on the primary, and its clients come by an address that
# moves with it. Sourced by scripts/demo after database.sh; what has the same name here as there is done in this way instead.

# shellcheck disable=SC2034  # what is set here is used in database.sh and scripts/demo

ADDRESS=10.0.2.100 # the one that moves
DSN="host=$ADDRESS user=postgres dbname=mes keepalives_idle=1 keepalives_interval=1 keepalives_count=2 tcp_user_timeout=2000"

# cable_clients: nodes and database clients share one network.
cable_clients() {
    local name
    host_switch db plant 10.0.2.50/24
    for name in "$A" "$B"; do
        host_plug "$name" client "$(nbd_address "$name" | cut -d ' ' -f 1)/24" db plant
    done
}

# pair_service NODE COMMAND: what the hooks do, by hand.
pair_service() {
    host_run "$1" env REPBLK_NODE="$1" REPBLK_VOLUME="$VOLUME" "$WORK/bin/pair_service" "$2" "$LOGS" ||
        die "$2 failed on node $1; see $LOGS/$1.service.log"
}

# services: as the configuration names them.
services() {
    local hook=$WORK/bin/pair_service
    cat <<CONF
[[volume.service]]
name = "mount"
start = ["$hook", "mount", "$LOGS"]
stop = ["$hook", "unmount", "$LOGS"]
[[volume.service]]
name = "database"
start = ["$hook", "start", "$LOGS"]
stop = ["$hook", "stop", "$LOGS"]
[[volume.service]]
name = "address"
address = "$ADDRESS/24"
interface = "client"

CONF
}

services_up() { rb_is "$1" '.services | map(.state) | unique | join(" ")' up; }

plant_up() {
    local node
    DB_HOST=$A
    pair_service "$A" format
    pair_service "$A" mount
    pg_init || die "initdb failed; see $LOGS/initdb.log"
    on_db tee -a "$MOUNT/pg/postgresql.conf" >/dev/null <<<"listen_addresses = '*'"
    on_db tee -a "$MOUNT/pg/pg_hba.conf" >/dev/null <<<"host all all 10.0.2.0/24 trust"
    on_db sync --file-system "$MOUNT/pg"
    pair_service "$A" start
    as_postgres createdb --host /run/postgresql mes
    pair_service "$A" stop
    pair_service "$A" unmount
    say "ext4 and a database are on the volume of node $A; now the configuration names them as services, and the daemons start anew"
    for node in "$B" "$A"; do
        node_stop "$node"
    done
    services >"$WORK/services"
    awk -v services="$WORK/services" '/^\[volume\.on\./ && !done { while ((getline line < services) > 0) print line; done = 1 } { print }' \
        "$CONFIG" >"$CONFIG.new"
    mv "$CONFIG.new" "$CONFIG"
    for node in "$A" "$B"; do
        node_serve "$node"
    done
    wait_for 60 "the services on node $A" services_up "$A" || die "no services on node $A: $(rb "$A" status)"
    say "node $A has mounted it, runs PostgreSQL and holds $ADDRESS; clients come from another host"
}

# note_sessions, check_sessions: connections end with the server; the clients make new ones to the same address.
note_sessions() { :; }

check_sessions() {
    DB_HOST=$B
    wait_for 30 "the services on node $B" services_up "$B" || die "no services on node $B: $(rb "$B" status)"
    say "   node $B has mounted the volume, runs PostgreSQL and holds $ADDRESS"
}

# hand_over: a planned switchover, services and all.
hand_over() {
    say "4. a planned switchover: PostgreSQL is stopped on node $B in order, and started on node $A"
    local began after other
    wait_for 60 "both copies to be in sync" rb_synced "$B" || die "not in sync: $(rb_one_line "$B")"
    began=$(now)
    rb "$B" switchover >>"$LOGS/$B.switchover" 2>&1 || die "switchover failed: $(tail -n 3 "$LOGS/$B.switchover")"
    after=$(now)
    wait_for 60 "the services on node $A" services_up "$A" || die "no services on node $A: $(rb "$A" status)"
    wait_for 30 "the first commit on node $A" committed_after "$began" "$after" || die "no commit after the switchover"
    HAND_OVER_MS=$(gaps .first_commit_ms "$began" "$(now)" "$after")
    say "   the first commit on node $A returned $HAND_OVER_MS ms after the order"
    other=$A A=$B B=$other DB_HOST=$B
    work_for 2
}

# plant_down: everything is stopped in order, and looked at.
plant_down() {
    rb "$B" services stop >>"$LOGS/$B.services" 2>&1 || die "the services do not stop: $(tail -n 3 "$LOGS/$B.services")"
    pair_service "$B" mount
    check_checksums
    pair_service "$B" unmount
    (pair_service "$B" check) || fail "e2fsck found damage; see $LOGS/$B.service.log"
}

topology_rows() {
    row 'planned switchover to first commit on the peer' "$HAND_OVER_MS ms, PostgreSQL stopped and started in order"
}
