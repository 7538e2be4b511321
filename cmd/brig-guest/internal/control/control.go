// Package control is how process 1 of a virtual machine and the agent beside it
// tell each other what happens: short messages over a pair of sockets.
package control

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// maxMessage bounds a message: a state with its reason.
const maxMessage = 8 << 10

// Message is what one side tells the other.
type Message struct {
	// From process 1. When process 1 becomes the image's init it says nothing
	// more: its end closes, and that means that init runs.
	State string `json:"state,omitempty"` // as wire has them
	Code  int    `json:"code,omitempty"`
	Text  string `json:"text,omitempty"`

	// From the agent.
	Stop     bool `json:"stop,omitempty"`     // ask the main process to end
	Reported bool `json:"reported,omitempty"` // the host knows the last state
}

// Pair makes the two ends. Both are closed on exec, so the one that is to stay
// with a child has to be handed over.
func Pair() (a, b *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("cannot make control sockets: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "control"), os.NewFile(uintptr(fds[1]), "control"), nil
}

// Open takes over an end that was inherited as file descriptor fd.
func Open(fd uintptr) (*os.File, error) {
	unix.CloseOnExec(int(fd))
	if err := unix.SetNonblock(int(fd), true); err != nil {
		return nil, fmt.Errorf("cannot use control socket: %w", err)
	}
	return os.NewFile(fd, "control"), nil
}

// Send tells the other side m.
func Send(f *os.File, m Message) error {
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if len(b) > maxMessage {
		return errors.New("control message is too long")
	}
	_, err = f.Write(b)
	return err
}

// Receive waits for what the other side tells. io.EOF means that it is gone.
func Receive(f *os.File) (Message, error) {
	buf := make([]byte, maxMessage)
	n, err := f.Read(buf)
	if err != nil {
		if errors.Is(err, unix.ECONNRESET) {
			err = io.EOF
		}
		return Message{}, err
	}
	var m Message
	return m, json.Unmarshal(buf[:n], &m)
}
