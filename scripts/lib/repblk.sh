# shellcheck shell=bash
# The daemon and its command line, as the demo and the developer's pair use them. Sourced after common.sh.
#
# The caller defines `on_node NODE COMMAND...`, which runs a command where that node's daemon lives (a namespace, or
# simply here), and sets REPBLK (the binary), CONFIG (the configuration file) and VOLUME.

# rb NODE ARGUMENT...: one repblk command against that node's daemon.
rb() {
    local node=$1
    shift
    on_node "$node" "$REPBLK" --config "$CONFIG" --node "$node" "$@"
}

# rb_field NODE FILTER: a value out of the volume's status, by a jq filter; empty if the daemon does not answer.
rb_field() {
    rb "$1" status --json 2>/dev/null |
        jq -r --arg volume "$VOLUME" ".volumes[] | select(.volume == \$volume) | $2" 2>/dev/null
}

rb_is() { [[ $(rb_field "$1" "$2") == "$3" ]]; }

rb_answers() { [[ $(rb_field "$1" .role) == @(primary|secondary) ]]; }

rb_connected() { rb_is "$1" '.peers[0].connection' connected; }

rb_disconnected() { ! rb_connected "$1"; }

# rb_synced NODE: both copies are good, the peers are connected, and nothing is left to send.
rb_synced() {
    rb_is "$1" '[.disk_state, .peers[0].connection, .peers[0].replication, .peers[0].disk_state,
                 (.peers[0].out_of_sync_bytes | tostring)] | join(" ")' 'uptodate connected established uptodate 0'
}

# rb_one_line NODE: the state of the volume in one line, for people.
rb_one_line() {
    local line
    line=$(rb_field "$1" '"\(.role) \(.disk_state) \(.mode), generation \(.generation), term \(.term)" +
        (.peers | map("; peer \(.name): \(.connection), \(.replication), \(.disk_state), \(.out_of_sync_bytes) B out of sync")
         | join("")) +
        (if .resync then "; resync \(.resync.percent) %" else "" end) +
        (if .frozen then "; FROZEN: \(.frozen.reason)" else "" end)')
    printf '%s\n' "${line:-no answer}"
}

# rb_resyncs FILE: the resyncs that the node of a file of `repblk events --json` was the source of and that are
# finished, one `BYTES MILLISECONDS` a line. What the command said when its daemon ended is in the file, too.
rb_resyncs() {
    jq -rR --arg volume "$VOLUME" \
        'fromjson? | select(.event == "resync_finished" and .volume == $volume and .part == "source") | "\(.bytes) \(.duration_ms)"' "$1"
}
