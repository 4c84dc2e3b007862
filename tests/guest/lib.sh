# Functions for scenarios, which run with `sh -eu`.

fail() {
    echo "FAILED: $*"
    exit 1
}
