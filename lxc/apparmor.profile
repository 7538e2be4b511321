# Unprivileged containers of brig. Their user namespace keeps them from the host
# already; this is a second wall around what only the host is to touch.
profile @NAME@ flags=(attach_disconnected,mediate_deleted) {
  capability,
  dbus,
  file,
  mount,
  network,
  pivot_root,
  remount,
  umount,
  unix,

  # Others may signal and trace a container; it may do so only to its own.
  signal (receive),
  signal (send) peer=@NAME@,
  ptrace (readby, tracedby),
  ptrace peer=@NAME@,

  deny /proc/acpi/** rwklx,
  deny /proc/bus/** wklx,
  deny /proc/kcore rwklx,
  deny /proc/sysrq-trigger rwklx,
  deny /sys/firmware/** wklx,
  deny /sys/kernel/debug/** rwklx,
  deny /sys/kernel/security/** rwklx,
  deny /sys/kernel/tracing/** rwklx,
}
