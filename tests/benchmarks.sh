#!/bin/bash
# Puts the tables of a recorded comparison into docs/BENCHMARKS.md: tests/benchmarks.sh RESULT.json
# Make the result with: wb-bench --compare bcache,dm-cache,dm-writecache --save RESULT.json --html REPORT.html
set -euo pipefail
cd "$(dirname "$0")/.."
result=$1
bench=${WB_BENCH:-target/release/wb-bench}
page=docs/BENCHMARKS.md
tables=$(mktemp)
trap 'rm -f "$tables"' EXIT
/usr/bin/python3 - "$result" > "$tables" <<'PYTHON'
import json, sys, time
run = json.load(open(sys.argv[1]))
facts = run["setup"]["facts"]
day = time.strftime("%Y-%m-%d", time.gmtime(run["started_unix_s"]))
print(f"Run of {day}: `{run['command'].split(' --save')[0]}`, {run['elapsed_s'] / 60:.0f} minutes, on {facts['processor']}; {facts['QEMU']};")
print(f"guest: {facts['guest']}; {facts['fio']}.")
PYTHON
"$bench" report "$result" --markdown >> "$tables"
awk -v tables="$tables" '
    /^<!-- results/ { print; while ((getline line < tables) > 0) print line; skip = 1 }
    /^<!-- end of results/ { skip = 0 }
    !skip && !/^<!-- results/ { print }
' "$page" > "$page.new"
mv "$page.new" "$page"
echo "$page has the tables of $result"
