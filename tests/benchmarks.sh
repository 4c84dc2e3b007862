#!/bin/bash
# Puts a recorded comparison into the documents: tests/benchmarks.sh RESULT.json
# docs/benchmarks.json is the result itself, docs/benchmarks.svg its picture; tables go into docs/BENCHMARKS.md and README.md.
# A test holds the tables against docs/benchmarks.json. Make a result with:
#   wb-bench --compare bcache,dm-cache,dm-writecache,dm-writeboost --save RESULT.json --html REPORT.html
set -euo pipefail
result=$(realpath "$1")
cd "$(dirname "$0")/.."
bench=${WB_BENCH:-target/release/wb-bench}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
[[ $result -ef docs/benchmarks.json ]] || cp "$result" docs/benchmarks.json
"$bench" report docs/benchmarks.json --picture docs/benchmarks.svg --markdown > "$work/tables"
/usr/bin/python3 - docs/benchmarks.json > "$work/about" <<'PYTHON'
import json, sys, time
run = json.load(open(sys.argv[1]))
facts = run["setup"]["facts"]
day = time.strftime("%Y-%m-%d", time.gmtime(run["started_unix_s"]))
ours = next((system for system in run["systems"] if system["name"] == "writeboost"), {"commands": []})
transport = "ublk" if "--ublk" in " ".join(ours["commands"]) else "NBD"
print(f"Run of {day}: `{run['command'].split(' --save')[0]}`, {run['elapsed_s'] / 60:.0f} minutes, on {facts['processor']}; {facts['QEMU']};")
print(f"guest: {facts['guest']}; {facts['SSD of the guest']}, {facts['disk of the guest']}; {facts['fio']}; our cache over {transport}.")
PYTHON
cat "$work/about" "$work/tables" > "$work/all"
# The first table alone.
awk '/^\|/ { print; found = 1; next } found { exit }' "$work/tables" > "$work/short"

# into FILE MARK TEXT: TEXT in place of what stands between the marks.
into() {
    awk -v text="$3" -v mark="$2" '
        index($0, "<!-- " mark) { print; while ((getline line < text) > 0) print line; skip = 1 }
        index($0, "<!-- end of " mark) { skip = 0 }
        !skip && !index($0, "<!-- " mark) { print }
    ' "$1" > "$work/new"
    cp "$work/new" "$1"
}
into docs/BENCHMARKS.md results "$work/all"
into README.md benchmarks "$work/short"
echo "docs/BENCHMARKS.md, README.md and docs/benchmarks.svg show $1"
