#!/bin/sh
# Unpacks the newest Debian cloud kernel of a series (default 6.12) into a directory, without installing it.
# usage: fetch-kernel.sh DIRECTORY [SERIES]
set -eu
dir=$1 series=${2:-6.12}
[ "$(uname -m)" = x86_64 ] || { echo "guests need an x86-64 machine" >&2; exit 1; }
for program in apt-cache apt-get dpkg-deb; do
    command -v "$program" >/dev/null || {
        echo "$program is missing: unpack a kernel package yourself as $dir/$series-<name>" >&2
        exit 1
    }
done
pattern="^linux-image-$(printf %s "$series" | sed 's/\./\\./g')\..*-cloud-amd64\$"
package=$(apt-cache search --names-only "$pattern" | cut -d' ' -f1 | sort -V | tail -n 1)
if [ -z "$package" ]; then
    echo "apt knows no linux-image-$series.*-cloud-amd64: run \`apt-get update\`, or add Debian's backports" >&2
    exit 1
fi
target=$dir/$series-$package
if [ -e "$target/.complete" ]; then exit 0; fi
mkdir -p "$dir"
work=$(mktemp -d "$dir/.fetch-XXXXXX")
trap 'rm -rf "$work"' EXIT
# As root apt would use a user who cannot write here; it says so in a warning that does not matter.
(cd "$work" && apt-get -qq download "$package" >&2 2>/dev/null) || {
    echo "cannot download $package: run \`apt-get update\`, look at \`apt-get download $package\`" >&2
    exit 1
}
dpkg-deb -x "$work"/*.deb "$work/tree"
touch "$work/tree/.complete"
rm -rf "$target"
mv "$work/tree" "$target"
