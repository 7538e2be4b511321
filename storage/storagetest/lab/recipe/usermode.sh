#!/bin/sh
# Runs in a Debian. Leaves in /out a kernel that is a program of the host, and its
# modules. It is of the suite sid: in those before Linux 7, every program that starts
# takes several times as long. It needs a newer C library than the host has, which it
# finds beside it when it starts in its own folder.
set -eu

mkdir /fetch /out
cd /fetch
apt-get download -qq user-mode-linux/sid libc6/sid
dpkg-deb -x user-mode-linux_*.deb /image
dpkg-deb -x libc6_*.deb /libc
cd /image/usr/lib/uml/modules
version=$(ls)
cp -L /libc/usr/lib/x86_64-linux-gnu/libc.so.6 /libc/usr/lib64/ld-linux-x86-64.so.2 "$version/"
patchelf --set-interpreter ld-linux-x86-64.so.2 --output "$version/vmlinuz" /image/usr/bin/linux.uml
mkdir -p /tree/lib/modules
mv "$version" /tree/lib/modules/
depmod -b /tree "$version"
rm -f "/tree/lib/modules/$version/build" "/tree/lib/modules/$version/source"
mv "/tree/lib/modules/$version" /out/
