#!/bin/sh
# What scenario.service runs: the scenario, then the end of the guest, as its last boot or for the next one.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=dumb
echo "guest: systemd up after $(cut -d' ' -f1 /proc/uptime) s"
sh -eu /scenario < /dev/null
code=$?
if [ $code != 0 ]; then
    systemctl --no-pager --failed
    journalctl -b --no-pager -o short-monotonic | grep -v ' kernel: ' | grep -v 'systemd-tmpfiles\|audit' | tail -n 150
fi
/end $code
# Services and mounts end as at every shutdown.
[ $code = 0 ] && systemctl poweroff || poweroff -f
