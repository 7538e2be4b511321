package qmp

import (
	"errors"
	"fmt"
	"net"
	"reflect"
	"sync/atomic"
	"unsafe"

	"github.com/digitalocean/go-qemu/qmp"
)

// maxGreeting bounds what a QEMU may say before it is asked anything: it says 200 bytes.
const maxGreeting = 64 << 10

// A guest that has taken over its QEMU can say anything here. Answers and events are
// lines, of which go-qemu reads at most 64 KiB each, but the greeting it decodes however
// long it is: within Deadline that is all of the host's memory.
type boundedGreeting struct {
	net.Conn
	place *net.Conn // where go-qemu keeps the connection
	read  int       // by the one goroutine that reads during the greeting
	over  atomic.Bool
}

var errGreeting = errors.New("its greeting has no end")

func (b *boundedGreeting) Read(p []byte) (int, error) {
	if b.over.Load() {
		return b.Conn.Read(p)
	}
	if b.read >= maxGreeting {
		return 0, errGreeting
	}
	n, err := b.Conn.Read(p[:min(len(p), maxGreeting-b.read)])
	b.read += n
	return n, err
}

// end lets go-qemu have its connection back, which has to be a Unix socket to it when a
// file is handed over. Its reader, started before, keeps reading through b.
func (b *boundedGreeting) end() {
	b.over.Store(true)
	*b.place = b.Conn
}

// bound puts itself between a monitor and its connection, which go-qemu makes itself and
// lets nobody in to.
func bound(mon *qmp.SocketMonitor) (*boundedGreeting, error) {
	field := reflect.ValueOf(mon).Elem().FieldByName("c")
	if !field.IsValid() || field.Type() != reflect.TypeFor[net.Conn]() {
		return nil, fmt.Errorf("cannot bound what QEMU says: this go-qemu keeps its connection elsewhere")
	}
	place := (*net.Conn)(unsafe.Pointer(field.UnsafeAddr()))
	b := &boundedGreeting{Conn: *place, place: place}
	*place = b
	return b, nil
}
