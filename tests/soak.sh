#!/bin/bash
# Runs SEEDS seeds of the crash simulator from SEED_START on, in pieces, on every core. What has been run with the same
# sources is not run again; a run that was broken off goes on where it was. target/soak/ID holds what was done (ID: a
# checksum of the sources), and the sums of all IDs are printed with the commits they were at. Exit status 0 only if all
# hold; the last line names a failing seed otherwise. Usage: soak.sh SEEDS SEED_START
# SOAK_CORES: processes at once. SOAK_STATE: another directory than target/soak.
set -u
cd "$(dirname "$0")/.."
seeds=${1:-10000}
start=${2:-1000000}
piece=500
cores=${SOAK_CORES:-$(nproc)}
root=${SOAK_STATE:-target/soak}
built=$(cargo test --locked -p wb-core --features sim --profile sim --test simulation --no-run 2>&1) || { echo "$built"; exit 2; }
binary=$(sed -n 's/.*Executable.*(\(.*\))$/\1/p' <<<"$built" | tail -1)
id=$(git ls-files -z wb-core Cargo.lock | sort -z | xargs -0 cat | sha256sum | cut -c1-16)
mkdir -p "$root/$id"
state=$(realpath "$root/$id")
# For people: the last commit that changed these sources, and its time for the order.
[ -e "$state/commit" ] || git log -1 --format='%h %ct' -- wb-core Cargo.lock >"$state/commit"

run_piece() { # binary state first count
    local name=$2/$3.$4 status cpu
    if [ -e "$name.ok" ]; then return 0; fi
    # Run from the crate, as cargo does; the path of the binary is made absolute before.
    (
        cd wb-core && WB_SEED_START=$3 WB_SEEDS=$4 "$1" --exact --nocapture engine::soak >"$name.log" 2>&1
        status=$?
        times >"$name.time"
        exit $status
    )
    status=$?
    if [ "$status" -eq 0 ]; then
        # The last line of `times` is of the children: "0m1.200s 0m0.100s", in user and in system mode.
        cpu=$(tail -1 "$name.time" | tr 'ms' '  ' | awk '{ print $1 * 60 + $2 + $3 * 60 + $4 }')
        # "500 seeds, 913 crashes (...), cpu 7.9"
        echo "$(sed -n 's/.*engine: \([0-9]* seeds, .*\)/\1/p' "$name.log" | tail -1), cpu $cpu" >"$name.tmp"
        mv "$name.tmp" "$name.ok"
        rm -f "$name.log" "$name.time"
    elif grep -q 'WB_SEED=' "$name.log"; then
        return 255 # ends xargs
    else
        # Killed from outside, or out of memory: no seed failed, and the piece is not done.
        echo "piece $3.$4 ended with status $status" >>"$name.log"
        return 255
    fi
}
export -f run_piece

rm -f "$state"/*.log "$state"/*.time "$state"/*.tmp
first=$start
end=$((start + seeds))
while [ "$first" -lt "$end" ]; do
    count=$((end - first < piece ? end - first : piece))
    echo "$(realpath "$binary") $state $first $count"
    first=$((first + count))
done | xargs -P "$cores" -L 1 bash -c 'run_piece "$@"' _
failed=$?

# One line for each state of the sources, the oldest first, and the sum of all. CPU seconds are those of whole pieces.
for commit in "$root"/*/commit; do
    read -r hash when <"$commit"
    cat "$(dirname "$commit")"/*.ok 2>/dev/null | awk -v hash="$hash" -v when="$when" '
        { seeds += $1; crashes += $3; for (i = 1; i < NF; i++) if ($i == "cpu") cpu += $(i + 1) }
        END { print when, hash, seeds + 0, crashes + 0, cpu + 0 }'
done | sort -n | awk '
    function line(name, seeds, crashes, cpu) {
        printf "%s: %d seeds, %d crashes, %.0f per minute and core\n", name, seeds, crashes, cpu ? crashes / cpu * 60 : 0
    }
    $3 { line("passed at " $2, $3, $4, $5); seeds += $3; crashes += $4; cpu += $5; from = from ? from : $2; to = $2 }
    END { if (seeds) line("passed in all, from " from " to " to, seeds, crashes, cpu) }'
if [ "$failed" -ne 0 ]; then
    logs=("$state"/*.log)
    tail -n 40 "${logs[0]}"
    seed=$(grep -ho 'WB_SEED=[0-9]*' "${logs[@]}" | head -1)
    echo "FAILED: ${seed:-no seed; see ${logs[0]}}"
    exit 1
fi
echo "ok: $seeds seeds from $start on"
