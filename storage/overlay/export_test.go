package overlay

// The rule by which disks are merged, for the tests.
const LongDisk = longDisk

var Run = run
