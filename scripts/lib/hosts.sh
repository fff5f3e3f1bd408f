# shellcheck shell=bash
# Hosts out of namespaces: each has its own network, processes, mounts, name and System V memory. Sourced after common.sh.
#
# A host is two processes: its *wire* keeps the network namespace (and thus the cables) while the host is off, its
# *init* is process 1 of everything that runs on it. Nothing has a name in the file system: both die with this script
# (PR_SET_PDEATHSIG), however it ends, and then the kernel takes back processes, mounts, loop devices and cables.

declare -A WIRE=() INIT=()

# host_create NAME DIRECTORY: a host that is switched off. DIRECTORY/lib and DIRECTORY/run become its /var/lib and /run.
host_create() {
    local name=$1
    mkdir -p "$2/lib" "$2/run"
    setpriv --pdeathsig KILL unshare --net sleep infinity &
    WIRE[$name]=$!
    disown
    wait_for 5 "the network namespace of $name" host_wired "$name"
    host_wire "$name" ip link set lo up
}

# The wire is ready when its namespace is no longer ours.
host_wired() { [[ $(readlink "/proc/${WIRE[$1]}/ns/net" 2>/dev/null) != "$(readlink /proc/self/ns/net)" ]]; }

# host_wire NAME COMMAND...: runs a command in the network of a host, whether it is on or off.
host_wire() {
    local name=$1
    shift
    nsenter --target "${WIRE[$name]}" --net -- "$@"
}

# host_cable NAME DEVICE ADDRESS NAME DEVICE ADDRESS: a cable between two hosts, point to point.
host_cable() {
    host_wire "$1" ip link add "$2" type veth peer name "$5" netns "${WIRE[$4]}"
    host_wire "$1" ip address add "$3" peer "$6" dev "$2"
    host_wire "$4" ip address add "$6" peer "$3" dev "$5"
    host_wire "$1" ip link set "$2" up
    host_wire "$4" ip link set "$5" up
}

# host_switch NAME DEVICE ADDRESS/LENGTH: a network of its own at a host, which others can be plugged into.
host_switch() {
    host_wire "$1" ip link add "$2" type bridge
    host_wire "$1" ip address add "$3" dev "$2"
    host_wire "$1" ip link set "$2" up
}

# host_plug NAME DEVICE ADDRESS/LENGTH NAME SWITCH: a cable from a host to a switch at another one.
host_plug() {
    local port=$5-$1
    host_wire "$1" ip link add "$2" type veth peer name "$port" netns "${WIRE[$4]}"
    host_wire "$1" ip address add "$3" dev "$2"
    host_wire "$4" ip link set "$port" master "$5" up
    host_wire "$1" ip link set "$2" up
}

# host_links NAME up|down DEVICE...: plugs or pulls cables at this end.
host_links() {
    local name=$1 state=$2
    shift 2
    printf "link set %s $state\n" "$@" | host_wire "$name" ip -batch -
}

# host_boot NAME DIRECTORY: switches a host on.
host_boot() {
    local name=$1 directory=$2 outer
    rm -f "$directory/booted"
    # The shell is process 1: it reaps orphans, as an init must.
    # shellcheck disable=SC2016  # expanded by the inner shell
    nsenter --target "${WIRE[$name]}" --net -- setpriv --pdeathsig KILL \
        unshare --pid --fork --kill-child --mount --mount-proc --uts --ipc bash -c '
            set -e
            mount --bind "$2/lib" /var/lib
            mount --bind "$2/run" /run
            # What a killed server leaves there goes with the host.
            mount -t tmpfs tmpfs /dev/shm
            echo "$1" >/proc/sys/kernel/hostname
            : >"$2/booted"
            while :; do sleep 3600 & wait $! || :; done' init "$name" "$directory" 2>"$directory/boot.log" &
    outer=$!
    disown
    wait_for 5 "$name to boot" test -e "$directory/booted" || die "$name did not boot: $(cat "$directory/boot.log")"
    INIT[$name]=$(cat "/proc/$outer/task/$outer/children")
    INIT[$name]=${INIT[$name]// /}
    [[ -n ${INIT[$name]} ]] || die "$name died while it booted: $(cat "$directory/boot.log")"
}

# host_run NAME COMMAND...: runs a command on a host that is on.
host_run() {
    local name=$1
    shift
    nsenter --target "${INIT[$name]}" --net --pid --mount --uts --ipc -- "$@"
}

# host_start NAME SERVICE LOG COMMAND...: starts a service; its output is appended to LOG, its process number (on the
# host) is in the host's /run/SERVICE.pid.
host_start() {
    local name=$1 service=$2 log=$3
    shift 3
    host_run "$name" rm -f "/run/$service.pid"
    # shellcheck disable=SC2016  # expanded by the inner shell
    nsenter --target "${INIT[$name]}" --net --pid --mount --uts --ipc -- \
        setsid bash -c 'echo $$ >"/run/$0.pid"; exec "$@"' "$service" "$@" >>"$log" 2>&1 </dev/null &
    disown
    wait_for 5 "$service to start on $name" host_run "$name" test -s "/run/$service.pid"
}

# host_signal NAME SERVICE SIGNAL: signals a service.
host_signal() { host_run "$1" kill "-$3" "$(host_run "$1" cat "/run/$2.pid")"; }

# host_ended NAME SERVICE: has it ended?
host_ended() {
    local state
    # shellcheck disable=SC2016  # awk's own variable
    state=$(host_run "$1" awk '/^State:/ { print $2 }' "/proc/$(host_run "$1" cat "/run/$2.pid")/status" 2>/dev/null) ||
        return 0
    [[ $state == Z ]]
}

# host_kill NAME: kills every process of a host at once, as loss of power does. Its wire stays.
host_kill() {
    local init=${INIT[$1]:-}
    [[ -n $init ]] || return 0
    unset "INIT[$1]"
    kill -KILL "$init" 2>/dev/null || return 0
    wait_for 10 "the processes of $1 to end" pid_gone "$init"
}

# hosts_destroy: kills all hosts and their wires. Safe to call at any time, more than once.
hosts_destroy() {
    local name
    for name in "${!INIT[@]}"; do
        host_kill "$name"
    done
    for name in "${!WIRE[@]}"; do
        kill -KILL "${WIRE[$name]}" 2>/dev/null || :
        unset "WIRE[$name]"
    done
}
