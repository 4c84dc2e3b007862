# The first boot: the service is started by hand.
is() { systemctl show --value -p "$1" "$2"; }
alive() { [ "$(is ActiveState writeboost@data)" = active ]; }
on_device() { [ "$(findmnt -n -o SOURCE /srv)" = /dev/ublkb0 ]; }

udevadm settle
[ ! -e /dev/ublk-control ] || fail 'the driver is loaded already, so the test cannot see that the unit does it'
wb-format /dev/disk/by-id/virtio-ssd > /dev/null
systemctl start writeboost@data
alive && [ $(is Type writeboost@data) = notify ] || fail 'not active'
is StatusText writeboost@data | grep 'ready: data on cache' || fail "status: $(is StatusText writeboost@data)"
# The hardening leaves it what it needs.
! journalctl -u writeboost@data | grep -e 'cannot be locked' -e 'I/O flusher' || fail 'a right is missing'
[ $(awk '/VmLck/ { print $2 }' /proc/$(is MainPID writeboost@data)/status) -gt 1000 ] || fail 'memory is not locked'
[ $(cat /proc/$(is MainPID writeboost@data)/oom_score_adj) = -900 ] || fail 'oom_score_adj'

# The name, and lsblk.
udevadm settle
[ /dev/writeboost/data -ef /dev/ublkb0 ] || fail 'no /dev/writeboost/data'
lsblk -n -o NAME,TYPE /dev/writeboost/data | grep '^ublkb0 *disk' || fail lsblk
lsblk -n -o NAME | grep '^ublkb0' || fail 'hidden from lsblk'
# Partitions have names as those of other disks do.
uuid=11111111-2222-4333-8444-555555555555
printf 'label: gpt\nsize=100MiB, name=first, uuid=%s\n' $uuid | sfdisk -q /dev/writeboost/data
udevadm settle
for name in writeboost/data-part1 disk/by-partuuid/$uuid disk/by-partlabel/first; do
    [ /dev/$name -ef /dev/ublkb0p1 ] || fail "no /dev/$name"
done
sfdisk -q --delete /dev/writeboost/data
blkdiscard /dev/writeboost/data
udevadm settle
[ ! -e /dev/writeboost/data-part1 ] || fail 'a name without a partition'

mkfs.ext4 -q -L data /dev/writeboost/data
udevadm settle
[ /dev/disk/by-uuid/$(blkid -s UUID -o value /dev/ublkb0) -ef /dev/ublkb0 ] || fail 'no by-uuid'
[ /dev/disk/by-label/data -ef /dev/ublkb0 ] || fail 'no by-label'

# From fstab; busy from here on.
systemctl start srv.mount
on_device || fail 'not mounted'
wb-busy file /srv/direct 4 direct /tmp/stop > /tmp/direct &
a=$!
must_fail 'is mounted at /srv' wb-daemon stop --name data

# Killed: restarted by systemd, the mount stays.
for i in 1 2 3; do
    old=$(is MainPID writeboost@data)
    sleep 0.$((i * 3))
    kill -9 $old
    restarted() { alive && [ $(is MainPID writeboost@data) != $old ]; }
    within 30 restarted
    on_device && kill -0 $a || fail "the mount or its user did not survive kill $i"
done
[ $(is NRestarts writeboost@data) = 3 ] || fail 'another number of restarts'
[ $(is ActiveState srv.mount) = active ] || fail 'the mount unit is not active'

# Reloaded: another program in the same process.
old=$(is MainPID writeboost@data)
cp /usr/bin/wb-daemon /usr/bin/wb-daemon.new
mv /usr/bin/wb-daemon.new /usr/bin/wb-daemon
systemctl reload writeboost@data
upgraded() { [ "$(readlink /proc/$old/exe)" = /usr/bin/wb-daemon ]; }
within 20 upgraded
within 20 wb-daemon status --name data
sleep 1
alive && [ $(is MainPID writeboost@data) = $old ] || fail "after reload: $(is ActiveState writeboost@data)"
is StatusText writeboost@data | grep 'ready: data on cache' || fail "status: $(is StatusText writeboost@data)"
on_device && kill -0 $a || fail 'the mount or its user did not survive the reload'

# A restart keeps the device and the mount.
systemctl restart writeboost@data
on_device && alive && kill -0 $a || fail 'the mount or its user did not survive the restart'
touch /tmp/stop
wait $a || fail 'something is missing'
cat /tmp/direct
# Again, under the eyes of nobody, and stopped cleanly.
systemctl stop srv.mount
systemctl stop writeboost@data
[ $(is ActiveState writeboost@data) = inactive ] && [ $(is Result writeboost@data) = success ] || fail 'not stopped cleanly'
removed 0
within 5 nothing_left
wb-check /dev/vda

# Left mounted and busy: the shutdown has to unmount it first, and the daemon to end after that.
systemctl start srv.mount writeboost@data
echo kept > /srv/kept
