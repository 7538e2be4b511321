// Package wire is the protocol between brig on the host and brig-guest in a
// virtual machine: how the two find each other on a byte stream that outlives
// both (Greet, Await), how many conversations share it (Client, Server), and
// what is said in each (Request, Reply, Frame, Event).
//
// A guest is hostile to its host. Whatever the host reads is bounded in size,
// and what a guest could make the host keep is bounded in number.
package wire

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"

	"brig/instance"
)

// Where brig-guest listens.
const (
	PortName  = "org.brig.agent" // name of the virtio-serial port
	VSockPort = 0x62726967       // on AF_VSOCK, where the host has it
)

// ConfigFile is the name of the QEMU fw_cfg file that holds the guest's
// settings, ConfigPath is where the guest finds it.
const (
	ConfigFile = "opt/brig/boot.json"
	ConfigPath = "/sys/firmware/qemu_fw_cfg/by_name/" + ConfigFile + "/raw"
)

// MaxJSON bounds a message, MaxText the text of an error in it.
const (
	MaxJSON = 1 << 20
	MaxText = 4 << 10
)

// The operations. Each stream carries one: a Request, a Reply, and then what
// the operation says.
const (
	OpPing   = "ping"   // Reply.Info
	OpEvents = "events" // then Event messages, each answered by an Ack
	OpStop   = "stop"   // asks the guest to end; the reply comes before the end
	OpExec   = "exec"   // then Frames both ways until FrameExit
	OpSync   = "sync"   // writes out what file systems hold back
	OpFreeze = "freeze" // file systems stay frozen until the stream closes, OpThaw or Request.Seconds
	OpThaw   = "thaw"
	OpFiles  = "files"  // then what package files says
	OpUnused = "unused" // an error unless nobody in the guest uses Request.Disk
	OpNIC    = "nic"    // sets up the network card Request.NIC, which it has just been given
)

// Request is the first message on a stream.
type Request struct {
	Op      string `json:"op"`
	Seconds int    `json:"seconds,omitempty"` // OpFreeze: thaw by itself after so many
	Exec    *Exec  `json:"exec,omitempty"`
	Disk    string `json:"disk,omitempty"` // OpUnused: the serial number of a disk

	NIC *instance.NIC `json:"nic,omitempty"` // OpNIC
}

// Exec is what to run.
type Exec struct {
	Args     []string `json:"args"`
	Env      []string `json:"env,omitempty"`
	User     string   `json:"user,omitempty"`
	Dir      string   `json:"dir,omitempty"`
	Stdin    bool     `json:"stdin,omitempty"`
	Terminal *Size    `json:"terminal,omitempty"`
}

// Size of a terminal in characters.
type Size struct {
	Width  uint16 `json:"width"`
	Height uint16 `json:"height"`
}

// Reply answers a Request.
type Reply struct {
	Class string `json:"class,omitempty"` // of the error
	Error string `json:"error,omitempty"` // empty: it worked
	Info  *Info  `json:"info,omitempty"`
	Count int    `json:"count,omitempty"` // OpFreeze: file systems frozen
}

// Info is how the guest is.
type Info struct {
	Version    string      `json:"version"`
	State      string      `json:"state"` // of the main process or init
	System     bool        `json:"system"`
	Interfaces []Interface `json:"interfaces,omitempty"`
}

// Interface is one network interface as the guest sees it.
type Interface struct {
	Name      string   `json:"name"`
	MAC       string   `json:"mac,omitempty"`
	MTU       int      `json:"mtu,omitempty"`
	Addresses []string `json:"addresses,omitempty"`
}

// The states of a guest.
const (
	Starting = "starting"
	Running  = "running" // init was executed, or the main process was started
	Exited   = "exited"  // the main process ended; Event.Code
	Failed   = "failed"  // the guest cannot start; Event.Text
)

// Event tells the host that the guest's state is another one now. The first on
// a stream tells the present state.
type Event struct {
	State string `json:"state"`
	Code  int    `json:"code,omitempty"`
	Text  string `json:"text,omitempty"`
}

// Ack answers an Event.
type Ack struct{}

// Write sends one message.
func Write(w io.Writer, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("cannot encode message: %w", err)
	}
	if len(body) > MaxJSON {
		return fmt.Errorf("cannot send message: it has %d bytes, at most %d fit", len(body), MaxJSON)
	}
	buf := make([]byte, 4, 4+len(body))
	binary.BigEndian.PutUint32(buf, uint32(len(body)))
	_, err = w.Write(append(buf, body...))
	return err
}

// Read receives one message of at most MaxJSON bytes.
func Read(r io.Reader, v any) error {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > MaxJSON {
		return fmt.Errorf("message of %d bytes is too long", n)
	}
	body, err := readExactly(r, int(n))
	if err != nil {
		return err
	}
	if err := json.Unmarshal(body, v); err != nil {
		return fmt.Errorf("message makes no sense: %w", err)
	}
	return nil
}

// readExactly reads n bytes and takes memory only as they arrive, so that a
// peer cannot make the reader allocate by announcing alone.
func readExactly(r io.Reader, n int) ([]byte, error) {
	const step = 16 << 10
	body := make([]byte, 0, min(n, step))
	for len(body) < n {
		at := len(body)
		body = append(body, make([]byte, min(n-at, step))...)
		if _, err := io.ReadFull(r, body[at:]); err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
	}
	return body, nil
}
