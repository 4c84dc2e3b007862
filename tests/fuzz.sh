#!/bin/bash
# Runs every fuzz target for a number of seconds. New inputs go to fuzz/work, not to the corpus that is checked in.
# No sanitizer: what is fuzzed has no unsafe code, and runs several times faster without. Usage: fuzz.sh SECONDS
set -eu
cd "$(dirname "$0")/../fuzz"
seconds=${1:-60}
cargo +nightly fuzz --version >/dev/null || { echo "needs a nightly compiler and 'cargo install cargo-fuzz'" >&2; exit 2; }
for target in superblock anchor record image_check image_dump nbd_handshake nbd_transmission; do
    mkdir -p "work/$target" "corpus/$target"
    cargo +nightly fuzz run --sanitizer none -O "$target" "work/$target" "corpus/$target" -- \
        -max_total_time="$seconds" -max_len=2048 -rss_limit_mb=2048 -malloc_limit_mb=512 -timeout=20
done
