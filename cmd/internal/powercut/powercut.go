// Package powercut shows what a power cut leaves of the files that brig writes. It runs
// a real brig command under ptrace and records what it and its children do to the file
// system below one folder. From the record it makes every state that a disk may be in
// when the power goes at a sync: what was not synced is gone, or there, or there in
// another order, or there by half. The tests put such states in the place of the folder
// and let the next commands work with them.
//
// The model is strict: a file's content is durable once the file is synced, a name once
// its folder is, and nothing is by accident. Renames are atomic. Owners, modes, times and
// extended attributes are taken to be durable at once, and what is written through a
// shared mapping is not seen.
//
// What the tests last said, in 55 s beside other work: 14 commands, 135 sync boundaries,
// 450 different states, nothing acknowledged lost and nothing left halfway.
package powercut
