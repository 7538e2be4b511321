package main

import (
	"fmt"
	"os"
	"testing"

	"brig/instance"
	"brig/instance/instancetest"
)

// bin is the folder with the built programs.
var bin string

func TestMain(m *testing.M) {
	if os.Getuid() != 0 {
		fmt.Println("the tests of the built programs need root")
		os.Exit(0)
	}
	var err error
	if bin, err = os.MkdirTemp("", "brig-bin-"); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	if err := instancetest.Build(bin); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	code := m.Run()
	os.RemoveAll(bin)
	os.Exit(code)
}

func TestParity(t *testing.T) {
	for _, form := range []instance.Type{instance.Container, instance.VirtualMachine} {
		t.Run(string(form), func(t *testing.T) {
			instancetest.Parity(t, instancetest.New(t, bin), form)
		})
	}
}

func TestSnapshots(t *testing.T) {
	for _, form := range []instance.Type{instance.Container, instance.VirtualMachine} {
		t.Run(string(form), func(t *testing.T) {
			instancetest.Snapshots(t, instancetest.New(t, bin), form)
		})
	}
}

func TestDevices(t *testing.T) {
	for _, form := range []instance.Type{instance.Container, instance.VirtualMachine} {
		t.Run(string(form), func(t *testing.T) {
			instancetest.Devices(t, instancetest.New(t, bin), form)
		})
	}
}

func TestVolumes(t *testing.T) {
	for _, form := range []instance.Type{instance.Container, instance.VirtualMachine} {
		t.Run(string(form), func(t *testing.T) {
			instancetest.Volumes(t, instancetest.New(t, bin), form)
		})
	}
}
