#!/bin/sh
# The guest's init: mounts, modules, scenario, artefacts, power off.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root DM_DISABLE_UDEV=1 TERM=dumb
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/shm /dev/pts
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /run
mount -t tmpfs -o mode=1777 tmpfs /tmp
mount -t debugfs debugfs /sys/kernel/debug 2>/dev/null
ln -s /proc/self/fd /dev/fd 2>/dev/null
ifconfig lo 127.0.0.1 up 2>/dev/null
ulimit -l unlimited 2>/dev/null
hostname guest
while read -r module; do
    insmod "/lib/modules/$module.ko" || echo "guest: module $module cannot be loaded"
done < /lib/modules/order
echo "guest: up after $(cut -d' ' -f1 /proc/uptime) s"
cd /root
# Another init, such as systemd, goes on from here; it runs /scenario and then `/end CODE` itself.
[ ! -x /second-init ] || exec /second-init
# In a session of its own: with a terminal, and no signals for the whole guest.
setsid sh -eu /scenario </dev/null
/end $?
poweroff -f
