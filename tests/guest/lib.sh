# Functions for scenarios, which run with `sh -eu`.

fail() {
    echo "FAILED: $*"
    for log in /tmp/*.log; do
        [ -e "$log" ] || continue
        echo "--- $log"
        tail -n 30 "$log"
    done
    exit 1
}

# must_fail TEXT COMMAND...: the command fails, and says TEXT.
must_fail() {
    text=$1
    shift
    if "$@" > /tmp/must_fail 2>&1; then fail "succeeded: $*"; fi
    grep -q -e "$text" /tmp/must_fail || fail "$* does not say '$text' but: $(cat /tmp/must_fail)"
}

# within SECONDS COMMAND...: until the command succeeds.
within() {
    seconds=$1 begun=$(date +%s)
    shift
    until "$@" 2> /dev/null; do
        [ $(($(date +%s) - begun)) -le "$seconds" ] || fail "not within $seconds s: $*"
        sleep 0.1
    done
}

# start NAME CACHE BACKING OPTIONS...: a daemon that serves; its process id is then in /tmp/NAME.pid.
start() {
    name=$1 cache=$2 backing=$3
    shift 3
    # Counted before it starts: its own line is one more.
    touch "/tmp/$name.log"
    lines=$(grep -c ' ready: ' "/tmp/$name.log" || true)
    wb-daemon run --name "$name" --cache "$cache" --backing "$backing" "$@" 2>> "/tmp/$name.log" &
    echo $! > "/tmp/$name.pid"
    begun=$(date +%s)
    until [ "$(grep -c ' ready: ' "/tmp/$name.log")" -gt "$lines" ]; do
        kill -0 "$(cat "/tmp/$name.pid")" 2> /dev/null || fail "the daemon $name does not start"
        [ $(($(date +%s) - begun)) -le 60 ] || fail "the daemon $name does not get ready"
        sleep 0.05
    done
}

pid() { cat "/tmp/$1.pid"; }

# gone NAME: its process has ended.
gone() { ! kill -0 "$(pid "$1")" 2> /dev/null; }

# removed N: nothing is left of a device.
removed() {
    for path in "/dev/ublkb$1" "/dev/ublkc$1" "/sys/block/ublkb$1" "/run/writeboost/ublkb$1.env"; do
        [ ! -e "$path" ] || fail "$path is left"
    done
}

# nothing_left: no process and no file of a daemon that has stopped, nor any device.
nothing_left() {
    ! pidof wb-daemon || fail 'a daemon is left'
    left=$(find /run/writeboost /dev/shm /dev/writeboost /dev/ublkb* /dev/ublkc* ! -type d 2> /dev/null || true)
    [ -z "$left" ] || fail "left: $left"
}

# The shell would take busybox's own, which know less.
dd() { /usr/bin/dd "$@"; }
blkdiscard() { /usr/bin/blkdiscard "$@"; }
