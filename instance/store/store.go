// Package store keeps what brig knows in files: instance.json in each volume,
// locks, and intents. It writes atomically and durably, and takes no decision.
package store
