#!/bin/sh
# The disk-less migration of CRIU's wiki, by hand: the same CRIU commands that Sojourn runs, and nothing else.
# Usage: by_hand.sh SOURCE_INIT DESTINATION_INIT DESTINATION_ADDRESS PID
# The first two are PIDs of the hosts' inits as seen from here; PID is the process as seen on its host.
set -eu
address=$3
pid=$4
dir=/run/by-hand

on() {
    init=$1
    shift
    nsenter --target "$init" --mount --uts --ipc --net --pid -- "$@"
}

for init in "$1" "$2"; do
    on "$init" mkdir -p $dir
    on "$init" mount -t tmpfs tmpfs $dir
done
on "$2" criu page-server --images-dir $dir --log-file page-server.log -v4 --address "$address" --port 9876 --daemon

on "$1" criu dump --tree "$pid" --images-dir $dir --log-file dump.log -v4 --manage-cgroups=ignore \
    --page-server --address "$address" --port 9876 --leave-stopped
on "$1" tar -C $dir -c . | on "$2" tar -C $dir -x
on "$2" criu restore --images-dir $dir --log-file restore.log -v4 --manage-cgroups=ignore \
    --auto-dedup --restore-detached

on "$1" kill -KILL "$pid"
for init in "$1" "$2"; do
    on "$init" umount $dir
done
