# The second boot: the service is enabled, and the filesystem in /etc/fstab is mounted at boot.
is() { systemctl show --value -p "$1" "$2"; }
alive() { [ "$(is ActiveState writeboost@data)" = active ]; }
on_device() { [ "$(findmnt -n -o SOURCE /srv)" = /dev/ublkb0 ]; }
alive && on_device || fail 'neither served nor mounted after boot'
[ "$(cat /srv/kept)" = kept ] || fail 'the file is missing'
# Ordered: served before it was mounted, and both before local-fs.target.
at() { systemctl show --value -p $2 $1; }
settled=$(at systemd-udev-settle.service ActiveEnterTimestampMonotonic)
begun=$(at writeboost@data InactiveExitTimestampMonotonic)
ready=$(at writeboost@data ActiveEnterTimestampMonotonic)
mounted=$(at srv.mount ActiveEnterTimestampMonotonic)
local=$(at local-fs.target ActiveEnterTimestampMonotonic)
echo "settled $settled begun $begun ready $ready mounted $mounted local-fs $local"
[ $settled -le $begun ] && [ $ready -le $mounted ] && [ $mounted -le $local ] || fail order
dmesg | grep 'EXT4-fs (ublkb0): recovery' && fail 'the filesystem was not unmounted at shutdown'
systemctl stop srv.mount
e2fsck -fn /dev/writeboost/data
systemctl stop writeboost@data
wb-check --verify-data /dev/vda
