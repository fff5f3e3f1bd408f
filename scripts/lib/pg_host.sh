#!/bin/bash
# PostgreSQL 15 on an NBD export, for as long as this runs: the export as a file (nbdfuse), a loop device over it, ext4, initdb, server.
#
# usage: unshare --mount --pid --fork --kill-child scripts/lib/pg_host.sh URI DIR
#
# DIR must be a directory that user postgres can reach; the server's socket is DIR/socket. Whatever ends this ends its process namespace,
# and with it everything: mounts are of this mount namespace, and the loop device goes with its last user.
set -Eeuo pipefail

uri=$1 dir=$2
bin=/usr/lib/postgresql/15/bin

as_postgres() { setpriv --reuid postgres --regid postgres --init-groups env -C / PATH="$bin:$PATH" "$@"; }

mount --make-rprivate /
mount -t proc proc /proc
mkdir -p "$dir/nbd" "$dir/mount" "$dir/socket"
chown postgres: "$dir/socket"
nbdfuse "$dir/nbd/export" "$uri" &
for _ in {1..200}; do
    [[ -f $dir/nbd/export ]] && break
    sleep 0.05
done
device=$(losetup --find --show --direct-io=on "$dir/nbd/export")
exec 9<"$device"
losetup --detach "$device"
mkfs.ext4 -q "$device"
mount -o noatime "$device" "$dir/mount"
install -d -o postgres -g postgres -m 700 "$dir/mount/pg"
as_postgres initdb --pgdata "$dir/mount/pg" --data-checksums --auth trust --encoding UTF8 --locale C.UTF-8
as_postgres tee -a "$dir/mount/pg/postgresql.conf" <<CONF
listen_addresses = ''
unix_socket_directories = '$dir/socket'
shared_buffers = 48MB
max_connections = 40
CONF
exec setpriv --reuid postgres --regid postgres --init-groups "$bin/postgres" -D "$dir/mount/pg"
