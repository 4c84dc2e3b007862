#!/bin/bash
# Builds the kernel module dm-writeboost for the 6.1 kernel of comparison guests. It does not build for newer kernels.
# Fetches Debian's packages (kernel, its headers, dm-writeboost-dkms), unpacks them in the folder of guests and builds there;
# nothing is installed, nothing of the module's source comes near this repository. Does nothing where the module is there.
set -euo pipefail
cd "$(dirname "$0")/.."
guests=${WB_GUEST_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/writeboost/guest}

wb-guest/src/fetch-kernel.sh "$guests" 6.1
tree=$(printf '%s\n' "$guests"/6.1-linux-image-* | sort -V | tail -n 1)
image=${tree##*/6.1-linux-image-}
modules=$(printf '%s\n' "$tree"/usr/lib/modules/*/ "$tree"/lib/modules/*/ | grep -v '\*' | head -n 1)
release=$(basename "$modules")
if [[ -e $modules/extra/dm-writeboost.ko ]]; then exit 0; fi

abi=${image%-cloud-amd64}
work=$(mktemp -d "$guests/.dm-writeboost-XXXXXX")
trap 'rm -rf "$work"' EXIT
headers=linux-headers-$abi-cloud-amd64
packages=("$headers" "linux-headers-$abi-common" linux-kbuild-6.1 dm-writeboost-dkms)
echo "setup: building dm-writeboost for $release, in $guests"
for package in "${packages[@]}"; do
    # As root apt would use a user who cannot write here; it says so in a warning that does not matter.
    (cd "$work" && apt-get -qq download "$package" > /dev/null 2>&1) || {
        echo "setup: cannot download $package: run \`apt-get update\`" >&2
        exit 1
    }
done
compiler=$(dpkg-deb -f "$work/$headers"_*.deb Depends | grep -o 'gcc-[0-9]*' | tail -n 1)
command -v "$compiler" > /dev/null || {
    echo "setup: the kernel's compiler is missing: apt-get install $compiler make" >&2
    exit 1
}
for package in "$work"/*.deb; do dpkg-deb -x "$package" "$work/root"; done
# The headers name each other by the places where they would be installed.
grep -rlI --include=Makefile --include='*.mk' --include=.kernelvariables '/usr/src/\|/usr/lib/linux-kbuild' "$work/root/usr/src/linux-headers-$abi-"* \
    | xargs -r sed -i "s|/usr/src/linux-headers|$work/root/usr/src/linux-headers|g; s|/usr/lib/linux-kbuild|$work/root/usr/lib/linux-kbuild|g"
source=$(printf '%s\n' "$work"/root/usr/src/dm-writeboost-*/ | head -n 1)
[[ -e $source/Makefile && -e $source/dm-writeboost.h ]] || source=$(dirname "$(find "$source" -name 'dm-writeboost.h' | head -n 1)")
if ! make -C "$work/root/usr/src/$headers" M="$source" CC="$compiler" modules > "$work/log" 2>&1; then
    tail -n 20 "$work/log" >&2
    echo "setup: dm-writeboost does not build" >&2
    exit 1
fi
mkdir -p "$modules/extra"
cp "$source/dm-writeboost.ko" "$modules/extra/"
echo "setup: $modules/extra/dm-writeboost.ko"
