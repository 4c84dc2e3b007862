#!/bin/sh
# The init before systemd: the rest of what makes the root look like a small Debian.
ln -s /usr/lib/systemd /lib/systemd
ln -s /usr/lib/udev /lib/udev
ln -s /usr/lib/tmpfiles.d /lib/tmpfiles.d
mkdir -p /var/log /var/lib /var/tmp /usr/lib/sysusers.d /etc/tmpfiles.d
ln -s /run /var/run
# systemd mounts its own.
umount /sys/kernel/debug
exec /usr/lib/systemd/systemd --show-status=no --log-target=journal
