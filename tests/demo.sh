#!/bin/bash
# What Writeboost is for, in three minutes: a real filesystem on a cache, killed, recovered, checked, written back.
# Prints every command that matters before it runs. `make demo` builds and starts it; WB_BIN_DIR names other binaries,
# WB_DEMO_DIR another place for the images (1 GiB and a bit of disk space).
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
bin=${WB_BIN_DIR:-${CARGO_TARGET_DIR:-target}/release}
bin=$(cd "$bin" 2>/dev/null && pwd) || { echo "demo: the tools are not built: run 'make build'" >&2; exit 1; }
sources=$PWD

# Not /tmp, which may be in memory: a cache wants O_DIRECT.
dir=$(mktemp -d "${WB_DEMO_DIR:-/var/tmp}/wb-demo-XXXXXX")
cd "$dir"
export PATH=$bin:$PATH

# ---- what is running, so that it can be ended again -------------------------------------------------------------------
daemon= fuse= loop= mounted=

unmount() {
    if [[ $mounted ]]; then umount mnt || umount -l mnt; fi
    mounted=
    if [[ $loop ]]; then losetup -d "$loop"; fi
    loop=
    if [[ $fuse ]]; then
        fusermount3 -u export 2>/dev/null || fusermount3 -uz export 2>/dev/null || true
        kill "$fuse" 2>/dev/null || true
        wait "$fuse" 2>/dev/null || true
    fi
    fuse=
}

cleanup() {
    status=$?
    trap - EXIT
    trap '' INT TERM HUP
    set +e
    # The filesystem first: it lives on the daemon.
    unmount >/dev/null 2>&1
    if [[ $daemon ]]; then
        kill "$daemon" 2>/dev/null
        wait "$daemon" 2>/dev/null
    fi
    if ((status)) && [[ -e daemon.log ]]; then
        echo "---- the daemon's log" >&2
        tail -n 20 daemon.log >&2
    fi
    if ((status)) && [[ -s nbdfuse.log ]]; then
        echo "---- nbdfuse" >&2
        tail -n 5 nbdfuse.log >&2
    fi
    cd /
    rm -rf "$dir"
    if ((status)); then echo "demo: failed with status $status; everything is cleaned up" >&2; fi
    exit "$status"
}
trap cleanup EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

# ---- how it speaks ----------------------------------------------------------------------------------------------------
bold= green= plain=
if [[ -t 1 && -z ${NO_COLOR:-} ]]; then bold=$'\e[1m' green=$'\e[32m' plain=$'\e[0m'; fi
step=0
say() { printf '\n%s%d. %s%s\n' "$bold" $((++step)) "$*" "$plain"; }
tell() { printf '   %s\n' "$*"; }
good() { printf '   %s%s%s\n' "$green" "$*" "$plain"; }
show() { printf '   $ %s\n' "$*"; }
# Prints a command and runs it; its output is indented.
run() {
    show "$*"
    "$@" 2>&1 </dev/null | sed 's/^/     /' || return "${PIPESTATUS[0]}"
}
die() {
    echo "demo: $*" >&2
    exit 1
}

# ---- pieces -----------------------------------------------------------------------------------------------------------
uri="nbd+unix:///?socket=$dir/nbd.sock"

serve() {
    local command=(wb-daemon run --cache cache.img --backing disk.img --nbd unix:nbd.sock --control control.sock)
    show "${command[*]} &"
    : >daemon.log
    "${command[@]}" >>daemon.log 2>&1 </dev/null &
    daemon=$!
    for _ in {1..300}; do
        if grep -q 'ready: ' daemon.log; then break; fi
        kill -0 "$daemon" 2>/dev/null || die "the daemon did not start"
        sleep 0.1
    done
    grep -q 'ready: ' daemon.log || die "the daemon is not ready after 30 seconds"
    sed -n 's/^.*INFO */     /p' daemon.log
}

kill_daemon() {
    show "kill -9 $daemon        # wb-daemon: no goodbye, nothing is written on the way out"
    kill -9 "$daemon"
    wait "$daemon" 2>/dev/null || true
    daemon=
}

# An NBD export as a block device, without a kernel module: nbdfuse makes it a file, losetup makes the file a device.
attach() {
    mkdir -p export mnt
    show "nbdfuse export/disk '$uri' &"
    # It complains when its server dies, which is what this is about.
    nbdfuse export/disk "$uri" </dev/null 2>>nbdfuse.log &
    fuse=$!
    for _ in {1..100}; do
        if [[ -e export/disk ]]; then break; fi
        kill -0 "$fuse" 2>/dev/null || die "nbdfuse did not start"
        sleep 0.1
    done
    show "losetup --find --show export/disk"
    loop=$(losetup --find --show export/disk)
    printf '     %s\n' "$loop"
}

mount_it() {
    run mount "$loop" mnt
    mounted=yes
}

sums_match() { # directory, list
    show "(cd $1 && sha256sum --check $2)"
    if ! (cd "$1" && sha256sum --check --quiet --strict "$dir/$2"); then
        die "files differ from what was fsynced"
    fi
    good "$(wc -l <"$2") files are what was fsynced"
}

cache_is_clean() {
    run wb-check --verify-data cache.img || die "wb-check calls the cache damaged"
}

can_mount() {
    ((EUID == 0)) && [[ -c /dev/fuse && -e /dev/loop-control ]] &&
        command -v nbdfuse >/dev/null && command -v fusermount3 >/dev/null && command -v mkfs.ext4 >/dev/null &&
        # A container may have the nodes and not the right to use them.
        losetup --find >/dev/null 2>&1
}

with_filesystem() {
    say "A real ext4 on it"
    attach
    run mkfs.ext4 -q "$loop"
    mount_it

    say "Write a source tree, and fsync every file of it"
    mkdir mnt/src
    for copy in 1 2 3 4; do
        mkdir "mnt/src/$copy"
        show "tar -C $sources -c --exclude=target --exclude=.git --exclude=./fuzz/work --exclude=./fuzz/artifacts . | tar -x -C mnt/src/$copy"
        tar -C "$sources" -c --exclude=target --exclude=.git --exclude=./fuzz/work --exclude=./fuzz/artifacts . | tar -x -C "mnt/src/$copy"
    done
    show "head -c 64M /dev/urandom >mnt/src/random"
    head -c 64M /dev/urandom >mnt/src/random
    show "find mnt/src -exec sync {} +        # fsync, file by file and directory by directory"
    find mnt/src -exec sync {} +
    show "find src -type f -exec sha256sum {} + >sums"
    (cd mnt && find src -type f -exec sha256sum {} +) >sums
    tell "$(wc -l <sums) files, $(du -sh mnt/src | cut -f1), are on stable media: so they were told"

    say "Kill the daemon while more is being written"
    show "dd if=/dev/urandom of=mnt/never-fsynced bs=64K oflag=direct &"
    dd if=/dev/urandom of=mnt/never-fsynced bs=64K count=16384 oflag=direct 2>/dev/null </dev/null &
    writer=$!
    sleep 1
    kill_daemon
    kill "$writer" 2>/dev/null || true
    wait "$writer" 2>/dev/null || true
    tell "the mounted filesystem has lost its disk; away with it, as if the power had failed"
    unmount 2>/dev/null

    say "What is left: the cache as the dead daemon left it, and a disk that misses what only the cache has"
    cache_is_clean

    say "Start again: recovery reads the log"
    serve
    attach

    say "fsck, then compare every file that was fsynced"
    # 1: "errors corrected", as it calls the replay of a journal.
    run e2fsck -p "$loop" || (($? == 1)) || die "e2fsck -p found more than a journal to replay"
    run e2fsck -f -n "$loop" || die "the filesystem is damaged"
    mount_it
    sums_match mnt sums
    run umount mnt
    mounted=
    unmount
}

with_client() {
    say "No mount here: it needs root, FUSE and loop devices. The same with NBD clients (nbdcopy, qemu-io)"
    show "head -c 256M /dev/urandom >data"
    head -c 256M /dev/urandom >data
    truncate -s 8G data
    run nbdcopy --flush data "$uri"
    tell "flushed: it is on stable media, so nbdcopy was told"

    say "Kill the daemon while more is being written, behind what was flushed"
    show "qemu-io -c 'write -P 0xaa 1G 512M' ... &"
    qemu-io -f raw "$uri" -c 'write -P 0xaa 1G 512M' >/dev/null 2>&1 </dev/null &
    writer=$!
    sleep 1
    kill_daemon
    kill "$writer" 2>/dev/null || true
    wait "$writer" 2>/dev/null || true

    say "What is left: the cache as the dead daemon left it, and a disk that misses what only the cache has"
    cache_is_clean

    say "Start again: recovery reads the log"
    serve
    say "Compare what was flushed"
    run nbdcopy "$uri" copy
    run cmp --bytes=$((1 << 30)) data copy || die "flushed data is lost"
    good "every byte is what was flushed"
    rm copy
}

# ---- the demo ---------------------------------------------------------------------------------------------------------
say "A cache of 1 GiB and a disk of 8 GiB (files here; block devices work the same), in $dir"
run wb-format --size 1GiB cache.img
run truncate -s 8G disk.img

say "Serve the disk through the cache"
serve

filesystem=
if can_mount; then
    filesystem=yes
    with_filesystem
else
    with_client
fi

say "Look into the log, beside the running daemon"
show "wb-dump --cache cache.img segment 0 | head"
# Read to its end: `head` may stop early, wb-dump takes that well.
wb-dump --cache cache.img segment 0 2>&1 | sed -n '1,12s/^/     /p'
run wb-daemon status --control control.sock

say "Write everything back to the disk, and stop"
run wb-daemon drain --control control.sock
run wb-daemon stop --control control.sock
wait "$daemon" || die "the daemon ended with status $?"
daemon=
cache_is_clean

say "The disk image itself, without cache and daemon"
if [[ $filesystem ]]; then
    run e2fsck -f -n disk.img || die "the filesystem on the disk image is damaged"
    show "losetup --read-only --find --show disk.img"
    loop=$(losetup --read-only --find --show disk.img)
    run mount -o ro "$loop" mnt
    mounted=yes
    sums_match mnt sums
    unmount
else
    run cmp --bytes=$((1 << 30)) data disk.img || die "the disk image differs from what was flushed"
    good "every byte is what was flushed"
fi

printf '\n%sNothing that was fsynced was lost: not in the cache, not on the disk.%s\n' "$bold$green" "$plain"
