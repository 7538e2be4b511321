#!/bin/sh
# Runs in the tree of the guest, last. Nothing starts by itself in it but what a
# host needs and the lab: services that load kernel modules or work on a
# schedule would only take time.
set -eu

echo lab >/etc/hostname
echo '127.0.0.1 localhost lab' >/etc/hosts
: >/etc/resolv.conf
systemd-machine-id-setup
mkdir -p /lab /usr/lib/modules

systemctl set-default multi-user.target
for unit in \
	apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service \
	fstrim.timer systemd-tmpfiles-clean.timer blk-availability.service lvm2-monitor.service \
	lxc.service lxc-net.service lxc-monitord.service nftables.service \
	zfs-mount.service zfs-share.service zfs-volume-wait.service zfs-zed.service \
	zfs-import-cache.service zfs-import-scan.service zfs-load-module.service \
	getty@tty1.service serial-getty@ttyS0.service systemd-networkd.service systemd-resolved.service \
	systemd-random-seed.service systemd-journal-flush.service systemd-update-utmp.service \
	modprobe@drm.service systemd-pstore.service systemd-sysusers.service systemd-binfmt.service proc-sys-fs-binfmt_misc.automount; do
	ln -sf /dev/null "/etc/systemd/system/$unit"
done
mkdir -p /etc/systemd/journald.conf.d
printf '[Journal]\nStorage=volatile\n' >/etc/systemd/journald.conf.d/lab.conf

# Delegated: tests make cgroups of their own below the unit's.
cat >/etc/systemd/system/lab.service <<'END'
[Unit]
Description=What the host of the lab asks for
After=basic.target systemd-udev-trigger.service
# The machine is of no use without it.
SuccessAction=poweroff-force
FailureAction=poweroff-force

[Service]
ExecStart=/lab/guest
StandardOutput=journal+console
Delegate=yes
KillMode=process
TasksMax=infinity
LimitNOFILE=1048576
OOMScoreAdjust=-900

[Install]
WantedBy=multi-user.target
END
systemctl enable lab.service
