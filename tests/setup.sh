#!/bin/bash
# Installs what demo and tests need: Debian packages, cargo-nextest and fsx. Does nothing where everything is there.
set -euo pipefail

# What must be there, and the package that brings it.
commands="
cc:gcc
ar:binutils
qemu-io:qemu-utils
qemu-img:qemu-utils
fio:fio
valgrind:valgrind
nbdinfo:libnbd-bin
nbdcopy:libnbd-bin
nbdkit:nbdkit
fusermount3:fuse3
mkfs.ext4:e2fsprogs
e2fsck:e2fsprogs
mkfs.xfs:xfsprogs
xfs_repair:xfsprogs
/usr/bin/python3:python3
losetup:util-linux
mount:mount
column:bsdextrautils
setpriv:util-linux
make-bcache:bcache-tools
dmsetup:dmsetup
nbd-client:nbd-client
sqlite3:sqlite3
qemu-system-x86_64:qemu-system-x86
busybox:busybox-static
xz:xz-utils
tar:tar
blkdiscard:util-linux
lsblk:util-linux
sfdisk:fdisk
dpkg-deb:dpkg
systemd-analyze:systemd
udevadm:udev
"

# Administration tools are in /usr/sbin, and what cargo installs in a directory of its own: neither is in every PATH.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin:${CARGO_HOME:-$HOME/.cargo}/bin

find_missing() {
    hash -r
    missing=()
    for pair in $commands; do
        command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
    done
    # In a package of its own from Debian 13 on.
    if ! command -v nbdfuse >/dev/null; then
        if apt-cache show nbdfuse >/dev/null 2>&1; then missing+=(nbdfuse); else missing+=(libnbd-bin); fi
    fi
    [[ -e /usr/include/stdlib.h ]] || missing+=(libc6-dev)
    # Debian's own Python, whatever other one is in PATH.
    /usr/bin/python3 -c 'import nbd' 2>/dev/null || missing+=(python3-libnbd)
}

# Twice: to install one package may have removed another (qemu-utils of a newer release, for qemu-system-x86 of this one).
for _ in 1 2; do
    find_missing
    ((${#missing[@]})) || break
    mapfile -t missing < <(printf '%s\n' "${missing[@]}" | sort -u)
    if ! command -v apt-get >/dev/null; then
        echo "setup: install these (names as in Debian), then run it again: ${missing[*]}" >&2
        exit 1
    fi
    as_root=()
    if ((EUID != 0)); then
        command -v sudo >/dev/null || {
            echo "setup: run this as root, or install sudo: apt-get install ${missing[*]}" >&2
            exit 1
        }
        as_root=(sudo)
    fi
    echo "setup: installing ${missing[*]}"
    "${as_root[@]}" apt-get update -qq
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${missing[@]}"
done
find_missing
if ((${#missing[@]})); then
    echo "setup: these packages cannot be had together with the others: ${missing[*]}" >&2
    exit 1
fi

# The kernel of guests, which is unpacked and never installed.
guests=${WB_GUEST_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/writeboost/guest}
if ! wb-guest/src/fetch-kernel.sh "$guests"; then
    # Where apt's lists are missing or old.
    as_root=()
    ((EUID == 0)) || as_root=(sudo)
    "${as_root[@]}" apt-get update -qq
    wb-guest/src/fetch-kernel.sh "$guests"
fi

command -v cargo >/dev/null || {
    echo "setup: cargo is missing: install Rust (https://rustup.rs), the version that Cargo.toml names" >&2
    exit 1
}
if ! cargo nextest --version >/dev/null 2>&1; then
    echo "setup: installing cargo-nextest"
    cargo install --locked cargo-nextest
fi
# The file system exerciser; no Debian package has it.
if ! command -v fsx >/dev/null; then
    echo "setup: installing fsx"
    cargo install --locked fsx
fi
for component in fmt clippy; do
    cargo "$component" --version >/dev/null 2>&1 || {
        echo "setup: cargo $component is missing: rustup component add rustfmt clippy" >&2
        exit 1
    }
done
