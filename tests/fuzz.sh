#!/bin/bash
# Runs every fuzz target, or those named, for a number of seconds each. New inputs go to fuzz/work, not to the corpus
# that is checked in. An ordinary compiler is enough: libFuzzer is built by the crate libfuzzer-sys (a C++ compiler is needed), and
# the coverage that guides it is a pass of LLVM that rustc has on board. No sanitizer: what is fuzzed has no unsafe code,
# and runs several times faster without. Usage: fuzz.sh SECONDS [TARGET...]
set -eu
cd "$(dirname "$0")/../fuzz"
seconds=${1:-60}
shift || true
[ $# -gt 0 ] || set -- superblock anchor record image_check image_dump nbd_handshake nbd_transmission
host=$(rustc -vV | sed -n 's/^host: //p')
# With --target these flags are for the targets alone, not for build scripts and macros.
export RUSTFLAGS="--cfg fuzzing -Ccodegen-units=1 -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares"
cargo build --locked --release --target "$host" $(printf -- '--bin %s ' "$@")
for target in "$@"; do
    mkdir -p "work/$target" "artifacts/$target"
    # The last line says how many inputs were run in how many seconds.
    "${CARGO_TARGET_DIR:-target}/$host/release/$target" "work/$target" "corpus/$target" -artifact_prefix="artifacts/$target/" \
        -max_total_time="$seconds" -max_len=2048 -rss_limit_mb=2048 -malloc_limit_mb=512 -timeout=60 -print_final_stats=1
done
