package store

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strings"

	"brig/instance/durable"
	"brig/instance/fault"
)

// identityFile is the file in the folder of state that holds the id of a brig.
const identityFile = "id"

// Identity gives the id of the brig with these folders: 16 hex digits that are made
// when it is asked for the first time, and move with its state.
func (d Dirs) Identity() (string, error) {
	id, err := d.readIdentity()
	if !errors.Is(err, os.ErrNotExist) {
		return id, err
	}
	if err := durable.MkdirAll(d.State, 0o700); err != nil {
		return "", fmt.Errorf("cannot make the id of this brig: %w", classed(err))
	}
	root, err := os.OpenRoot(d.State)
	if err != nil {
		return "", fmt.Errorf("cannot make the id of this brig: %w", err)
	}
	defer root.Close()
	var random [8]byte
	rand.Read(random[:])
	// Of two that make one at the same time, the first counts.
	if _, err := createFile(root, identityFile, []byte(hex.EncodeToString(random[:])+"\n")); err != nil {
		return "", err
	}
	return d.readIdentity()
}

func (d Dirs) readIdentity() (string, error) {
	root, err := os.OpenRoot(d.State)
	if err != nil {
		return "", fmt.Errorf("cannot read the id of this brig: %w", err)
	}
	defer root.Close()
	data, err := ReadFile(root, identityFile)
	if err != nil {
		return "", fmt.Errorf("cannot read the id of this brig: %w", err)
	}
	id := strings.TrimSpace(string(data))
	if !ValidID(id) {
		return "", fault.New(fault.Unavailable, "cannot read the id of this brig: %s/%s is damaged", d.State, identityFile)
	}
	return id, nil
}
