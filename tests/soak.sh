#!/bin/bash
# Runs SEEDS seeds of the crash simulator from SEED_START on, in pieces, on every core. What has been run with the same
# sources is not run again, and adds up in target/soak/ID (ID: a checksum of the sources). Exit status 0 only if all hold;
# the last line names a failing seed otherwise. Usage: soak.sh SEEDS SEED_START
set -u
cd "$(dirname "$0")/.."
seeds=${1:-10000}
start=${2:-1000000}
piece=500
cores=${SOAK_CORES:-$(nproc)}
built=$(cargo test --locked -p wb-core --features sim --profile sim --test simulation --no-run 2>&1) || { echo "$built"; exit 2; }
binary=$(sed -n 's/.*Executable.*(\(.*\))$/\1/p' <<<"$built" | tail -1)
id=$(git ls-files -z wb-core Cargo.lock | sort -z | xargs -0 cat | sha256sum | cut -c1-16)
state=target/soak/$id
mkdir -p "$state"

run_piece() { # binary state first count
    local log=$2/$3.$4.log
    if [ -e "$2/$3.$4.ok" ]; then return 0; fi
    # Run from the crate, as cargo does; the path of the binary is made absolute before.
    if (cd wb-core && WB_SEED_START=$3 WB_SEEDS=$4 "$1" --exact --nocapture engine::soak) >"$log" 2>&1; then
        grep -h '^engine:\|\.\.\. engine:' "$log" | sed 's/.*engine: //' >"$2/$3.$4.ok"
        rm "$log"
    else
        return 255 # ends xargs
    fi
}
export -f run_piece

first=$start
end=$((start + seeds))
while [ "$first" -lt "$end" ]; do
    count=$((end - first < piece ? end - first : piece))
    echo "$(realpath "$binary") $state $first $count"
    first=$((first + count))
done | xargs -P "$cores" -L 1 bash -c 'run_piece "$@"' _
failed=$?

cat "$state"/*.ok 2>/dev/null | awk -v id="$id" '
    { seeds += $1; crashes += $3 }
    END { printf "so far with these sources (%s): %d seeds, %d crashes, no failure among them\n", id, seeds, crashes }'
if [ "$failed" -ne 0 ]; then
    logs=("$state"/*.log)
    tail -n 40 "${logs[0]}"
    seed=$(grep -ho 'WB_SEED=[0-9]*' "${logs[@]}" | head -1)
    echo "FAILED: ${seed:-see ${logs[0]}}"
    exit 1
fi
echo "ok: $seeds seeds from $start on"
