#!/bin/sh
# A migration by hand: the CRIU commands that it takes, and no more.
#
# Usage: by_hand.sh WAY SOURCE_INIT SOURCE_ADDRESS DESTINATION_INIT DESTINATION_ADDRESS PID
#
# The inits are the PIDs, on this machine, of the two hosts' inits; PID is the process's on its
# host. WAY is one of:
#   page-server  the disk-less migration of CRIU's wiki (https://criu.org/Disk-less_migration)
#   tmpfs        dump into a tmpfs, copy, restore: live migration as it is done at first
#   post-copy    lazy migration (https://criu.org/Lazy_migration)
set -eu
way=$1
source=$2
source_address=$3
destination=$4
destination_address=$5
pid=$6
dir=/run/by-hand
port=9876
scratch=$(mktemp -d)
trap 'rm -r "$scratch"' EXIT

on() {
    init=$1
    shift
    nsenter --target "$init" --mount --uts --ipc --net --pid -- "$@"
}

dump() {
    on "$source" criu dump --tree "$pid" --images-dir $dir --log-file dump.log -v4 \
        --manage-cgroups=ignore "$@"
}

copy() {
    on "$source" tar -C $dir -c . | on "$destination" tar -C $dir -x
}

restore() {
    on "$destination" criu restore --images-dir $dir --log-file restore.log -v4 \
        --manage-cgroups=ignore --restore-detached "$@"
}

page_server() {
    on "$destination" criu page-server --images-dir $dir --log-file page-server.log -v4 \
        --address "$destination_address" --port $port --daemon
    dump --page-server --address "$destination_address" --port $port --leave-stopped
    copy
    restore --auto-dedup
    on "$source" kill -KILL "$pid"
}

tmpfs() {
    dump --leave-stopped
    copy
    restore --auto-dedup
    on "$source" kill -KILL "$pid"
}

# Both programs say by a byte that they listen (--status-fd), and end with the last page; the dump
# then kills the original.
post_copy() {
    mkfifo "$scratch/dump" "$scratch/pages"
    dump --lazy-pages --address "$source_address" --port $port --status-fd 3 3>"$scratch/dump" &
    dumps=$!
    head --bytes 1 "$scratch/dump" >"$scratch/said"
    copy
    on "$destination" criu lazy-pages --images-dir $dir --log-file lazy-pages.log -v4 \
        --page-server --address "$source_address" --port $port \
        --status-fd 3 3>"$scratch/pages" &
    pages=$!
    head --bytes 1 "$scratch/pages" >"$scratch/said"
    restore --lazy-pages
    wait $pages
    wait $dumps
}

for init in "$source" "$destination"; do
    on "$init" mkdir -p $dir
    on "$init" mount -t tmpfs tmpfs $dir
done
case $way in
    page-server) page_server ;;
    tmpfs) tmpfs ;;
    post-copy) post_copy ;;
    *) echo "There is no way $way." >&2 && exit 2 ;;
esac
for init in "$source" "$destination"; do
    on "$init" umount $dir
done
