#!/bin/sh
# Runs in a Debian with a compiler and the headers of one kernel. Leaves in /out
# that kernel and its modules, with those of ZFS among them.
#
# ZFS is configured as Debian's zfs-dkms does it, but only its kernel modules
# are built, and without the debugging data that nobody here would read.
set -eu

kernel=$(ls /lib/modules)
build=/lib/modules/$kernel/build
source=/usr/src/linux-headers-${kernel%-cloud-amd64}-common
jobs=$(nproc)
mkdir /fetch /out
cd /fetch
apt-get download -qq zfs-dkms "linux-image-$kernel"
dpkg-deb -x zfs-dkms_*.deb /zfs
dpkg-deb -x linux-image-*.deb /image

# took tells how long a part of the work was, in seconds.
began=$(date +%s)
took() {
	ended=$(date +%s)
	echo "lab: $1 took $((ended - began)) s" >&2
	began=$ended
}

# quietly shows what a command said only if it fails.
quietly() {
	"$@" >/log 2>&1 || { tail -n 50 /log >&2; exit 1; }
}

cd /zfs/usr/src/zfs-*
export TEST_JOBS=$jobs
quietly ./configure --disable-dependency-tracking --with-config=kernel --with-linux="$source" --with-linux-obj="$build"
took 'configuring ZFS'
quietly make -C module -j"$jobs" CONFIG_DEBUG_INFO= CONFIG_DEBUG_INFO_BTF= CONFIG_DEBUG_INFO_BTF_MODULES=
took 'compiling ZFS'

modules=/image/lib/modules/$kernel
mkdir "$modules/updates"
mv module/spl.ko module/zfs.ko "$modules/updates/"
depmod -b /image "$kernel"
mv "/image/boot/vmlinuz-$kernel" "$modules/vmlinuz"
rm -f "$modules/build" "$modules/source"
mv "$modules" /out/
