#!/bin/bash
# The main job, shown: a cache in front of a disk image, a real ext4 on it, the daemon killed, everything recovered.
# Prints each command it runs. Cleans up after itself, also when interrupted. `make demo` builds what it needs.
set -euo pipefail
cd "$(dirname "$0")/.."
BIN=${WB_BIN:-${CARGO_TARGET_DIR:-target}/release}
BIN=$(cd "$BIN" && pwd)
PATH=$BIN:$PATH:/usr/local/sbin:/usr/sbin:/sbin
SOURCES=$PWD
WORK=$(mktemp -d "${TMPDIR:-/tmp}/writeboost-demo.XXXXXX")
DAEMON= FUSE= LOOP= MOUNTED= IMAGE_MOUNTED=

if [[ -t 1 ]]; then bold=$'\e[1m' plain=$'\e[0m'; else bold= plain=; fi
say() { printf '\n%s== %s%s\n' "$bold" "$*" "$plain"; }
run() { printf '%s$ %s%s\n' "$bold" "$*" "$plain"; "$@"; }

cleanup() {
    status=$?
    trap - EXIT INT TERM
    set +e
    [[ -n $IMAGE_MOUNTED ]] && umount "$WORK/image"
    [[ -n $MOUNTED ]] && umount -l "$WORK/mnt"
    [[ -n $LOOP ]] && losetup -d "$LOOP"
    [[ -n $FUSE ]] && { fusermount3 -uz "$WORK/fuse" 2>/dev/null; kill "$FUSE" 2>/dev/null; wait "$FUSE" 2>/dev/null; }
    [[ -n $DAEMON ]] && { kill -9 "$DAEMON" 2>/dev/null; wait "$DAEMON" 2>/dev/null; }
    ((status == 0)) || { echo; echo "demo failed with status $status; the daemon's last words:"; tail -5 "$WORK/daemon.log" 2>/dev/null; }
    rm -rf "$WORK"
    exit "$status"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

cd "$WORK"
URI="nbd+unix:///?socket=$WORK/nbd.sock"

serve() {
    printf '%s$ wb-daemon run --cache cache.img --backing disk.img --nbd unix:nbd.sock --control control.sock &%s\n' "$bold" "$plain"
    wb-daemon run --cache cache.img --backing disk.img --nbd "unix:$WORK/nbd.sock" --control "$WORK/control.sock" \
        2>>daemon.log &
    DAEMON=$!
    for _ in $(seq 300); do
        kill -0 "$DAEMON" || { cat daemon.log; exit 1; }
        if wb-daemon status --control control.sock >/dev/null 2>&1; then return; fi
        sleep 0.1
    done
    echo 'the daemon did not get ready within 30 s'; exit 1
}

attach() {
    mkdir -p fuse mnt
    printf '%s$ nbdfuse fuse/disk %s &%s\n' "$bold" "$URI" "$plain"
    nbdfuse fuse/disk "$URI" &
    FUSE=$!
    for _ in $(seq 100); do
        [[ -e fuse/disk ]] && break
        kill -0 "$FUSE" || { echo 'nbdfuse ended'; exit 1; }
        sleep 0.1
    done
    printf '%s$ losetup --find --show --direct-io=on fuse/disk%s\n' "$bold" "$plain"
    LOOP=$(losetup --find --show --direct-io=on fuse/disk)
    echo "$LOOP"
}

detach_dead() {
    umount -l mnt && MOUNTED=
    losetup -d "$LOOP" && LOOP=
    fusermount3 -uz fuse 2>/dev/null || true
    kill "$FUSE" 2>/dev/null || true
    wait "$FUSE" 2>/dev/null || true
    FUSE=
}

can_mount() { ((EUID == 0)) && [[ -c /dev/fuse ]] && command -v nbdfuse losetup mkfs.ext4 >/dev/null; }

say 'A cache of 1 GiB in a file, in front of a disk image of 8 GiB'
run wb-format --size 1GiB cache.img
run truncate -s 8G disk.img
serve
run nbdinfo --size "$URI"

if can_mount; then
    say 'A real ext4 on it: nbdfuse makes the export a file, losetup makes that a block device'
    attach
    run mkfs.ext4 -q "$LOOP"
    run mount "$LOOP" mnt
    MOUNTED=1
    say 'A source tree, and fsync'
    run mkdir mnt/tree
    printf '%s$ (this repository) | tar -x -C mnt/tree, several times%s\n' "$bold" "$plain"
    for copy in 1 2 3 4 5 6 7 8; do
        mkdir "mnt/tree/$copy"
        tar -C "$SOURCES" --exclude=./target --exclude=./.git -cf - . | tar -C "mnt/tree/$copy" -xf -
    done
    run sync -f mnt
    (cd mnt && find tree -type f -print0 | sort -z | xargs -0 sha256sum) >sums
    echo "$(wc -l <sums) files are fsynced; their checksums are kept outside"
    say 'The daemon dies in the middle of more writes'
    (dd if=/dev/urandom of=mnt/unsynced bs=1M count=64 2>/dev/null || true) &
    WRITER=$!
    sleep 0.5
    printf '%s$ kill -9 %s   (wb-daemon)%s\n' "$bold" "$DAEMON" "$plain"
    kill -9 "$DAEMON"
    wait "$DAEMON" 2>/dev/null || true
    DAEMON=
    detach_dead
    wait "$WRITER" 2>/dev/null || true
    run wb-check cache.img
    say 'It starts again, finds the log, and everything fsynced is there'
    serve
    tail -3 daemon.log
    attach
    printf '%s$ e2fsck -p %s   (replays the journal of ext4, as after a power cut)%s\n' "$bold" "$LOOP" "$plain"
    e2fsck -p "$LOOP" || (($? <= 1))
    run e2fsck -f -n "$LOOP"
    run mount "$LOOP" mnt
    MOUNTED=1
    printf '%s$ sha256sum -c (%s files)%s\n' "$bold" "$(wc -l <sums)" "$plain"
    (cd mnt && sha256sum --quiet -c ../sums)
    echo 'every fsynced file has its checksum'
    run umount mnt
    MOUNTED=
    run losetup -d "$LOOP"
    LOOP=
    run fusermount3 -u fuse
    wait "$FUSE" 2>/dev/null || true
    FUSE=
else
    say 'Not root, or no FUSE here: an NBD client in place of the mounted filesystem'
    run qemu-io -f raw -c 'write -P 0x11 1M 64M' -c 'write -P 0x22 3000k 700k' -c 'write -P 0x33 512 1536' -c flush "$URI"
    run qemu-io -f raw -c 'write -P 0x44 200M 16M' "$URI"
    printf '%s$ kill -9 %s   (wb-daemon)%s\n' "$bold" "$DAEMON" "$plain"
    kill -9 "$DAEMON"
    wait "$DAEMON" 2>/dev/null || true
    DAEMON=
    run wb-check cache.img
    serve
    tail -3 daemon.log
    run qemu-io -f raw -c 'read -P 0x33 512 1536' -c 'read -P 0x22 3000k 700k' -c 'read -P 0x11 4M 61M' "$URI"
fi

say 'What is in the cache'
run wb-daemon status --control control.sock
say 'Everything to the disk, and a clean stop'
run wb-daemon drain --control control.sock
run nbdcopy "$URI" served.img
run wb-daemon stop --control control.sock
wait "$DAEMON"
DAEMON=
run wb-check --verify-data cache.img
printf '%s$ wb-dump --cache cache.img segment 0 | head -20%s\n' "$bold" "$plain"
wb-dump --cache cache.img segment 0 | head -20
run wb-dump --cache cache.img summary

say 'The disk image itself, without the cache'
run cmp served.img disk.img
rm served.img
if [[ -s sums ]]; then
    mkdir image
    run mount -o loop,ro disk.img image
    IMAGE_MOUNTED=1
    (cd image && sha256sum --quiet -c ../sums)
    echo 'every file has its checksum on the bare disk image, too'
    run umount image
    IMAGE_MOUNTED=
fi
say 'Done: killed, recovered, checked, drained, compared.'
