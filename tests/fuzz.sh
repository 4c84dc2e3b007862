#!/bin/bash
# Runs every fuzz target, or those named, for so many seconds of a processor each, FUZZ_JOBS of them at once (one per
# processor). New inputs go to fuzz/work, not to the corpus that is checked in; the next run goes on from them. What a
# target fails with is kept in fuzz/artifacts. An ordinary compiler is enough: libFuzzer is built by the crate libfuzzer-sys
# (a C++ compiler is needed), and the coverage that guides it is a pass of LLVM that rustc has on board. No sanitizer: what
# is fuzzed has no unsafe code, and runs several times faster without. Usage: fuzz.sh SECONDS [TARGET...]
set -eu
cd "$(dirname "$0")/../fuzz"
seconds=${1:-60}
shift || true
[ $# -gt 0 ] || set -- superblock anchor record image_check image_dump nbd_handshake nbd_transmission
command -v c++ >/dev/null || {
    echo "fuzz: a C++ compiler is needed (package g++); 'make soak FUZZ_SECONDS=0' goes without" >&2
    exit 2
}
host=$(rustc -vV | sed -n 's/^host: //p')
# With --target these flags are for the targets alone, not for build scripts and macros.
export RUSTFLAGS="--cfg fuzzing -Ccodegen-units=1 -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares"
cargo build --locked --release --target "$host" $(printf -- '--bin %s ' "$@")

run_target() { # directory of the binaries, seconds, target
    local cpu=0 inputs=0 round status TIMEFORMAT='%U %S'
    mkdir -p "work/$3" "artifacts/$3"
    while [ "$cpu" -lt "$2" ]; do
        # By the clock, and in rounds, for the processor may be shared.
        round=$(($2 - cpu < 300 ? $2 - cpu : 300))
        status=0
        { time "$1/$3" "work/$3" "corpus/$3" -artifact_prefix="artifacts/$3/" -max_total_time="$round" -max_len=2048 \
            -rss_limit_mb=2048 -malloc_limit_mb=512 -timeout=60 -print_final_stats=1 >"work/$3.log" 2>&1; } 2>"work/$3.time" || status=$?
        if [ "$status" -ne 0 ]; then
            tail -n 30 "work/$3.log"
            echo "$3: failed with status $status; the input is in fuzz/artifacts/$3"
            return 255 # ends xargs
        fi
        cpu=$(tail -1 "work/$3.time" | awk -v cpu="$cpu" '{ print int(cpu + $1 + $2 + 1) }')
        inputs=$((inputs + $(sed -n 's/^stat::number_of_executed_units: *//p' "work/$3.log")))
    done
    echo "$3: $inputs inputs in $cpu s of a processor, no failure; $(grep -o 'cov: .* corp: [0-9]*' "work/$3.log" | tail -1)"
}
export -f run_target
printf '%s\n' "$@" |
    xargs -P "${FUZZ_JOBS:-$(nproc)}" -I {} bash -c 'run_target "$@"' _ "${CARGO_TARGET_DIR:-target}/$host/release" "$seconds" {}
echo "fuzz: $# targets, $seconds s each, no failure"
