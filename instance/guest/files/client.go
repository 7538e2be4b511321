package files

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"brig/instance/fault"
	"brig/instance/guest"
	"brig/instance/guest/wire"
)

// Client is the host's side. It trusts nothing that it hears: what comes is bounded
// in size, and in how long nothing may come. A Client is for one goroutine; after an
// error of a Write or of the connection it is of no more use.
type Client struct {
	conn net.Conn
	in   *wire.FrameReader
	out  *wire.FrameWriter
}

// NewClient talks to a Serve at the other end of conn, and closes it in the end.
func NewClient(conn net.Conn) *Client {
	return &Client{conn: conn, in: wire.NewFrameReader(conn), out: wire.NewFrameWriter(conn)}
}

// Close ends the conversation.
func (c *Client) Close() error { return c.conn.Close() }

// quiet is how long nothing may come from inside.
const quiet = time.Minute

// alive begins the time anew.
func (c *Client) alive(ctx context.Context) func() {
	return func() {
		c.conn.SetDeadline(time.Now().Add(quiet))
		if ctx.Err() != nil {
			c.conn.SetDeadline(time.Unix(1, 0))
		}
	}
}

// begin makes the connection end with ctx, until end.
func (c *Client) begin(ctx context.Context) (end func()) {
	c.alive(ctx)()
	stop := context.AfterFunc(ctx, func() { c.conn.SetDeadline(time.Unix(1, 0)) })
	return func() { stop() }
}

// receive gives one reply, or the error in it.
func (c *Client) receive(ctx context.Context) (Reply, error) {
	c.alive(ctx)()
	var r Reply
	if err := wire.Read(c.conn, &r); err != nil {
		return r, lost(ctx, err)
	}
	if r.Error != "" {
		return r, fault.New(guest.Class(r.Class), "%s", guest.Printable(r.Error))
	}
	return r, nil
}

func lost(ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fault.New(fault.Timeout, "the machine did not answer within %v", quiet)
	}
	return fault.New(fault.Unavailable, "lost the connection to its files: %w", err)
}

// ask sends a request and gives its reply.
func (c *Client) ask(ctx context.Context, q Request) (Reply, error) {
	if err := wire.Write(c.conn, q); err != nil {
		return Reply{}, lost(ctx, err)
	}
	return c.receive(ctx)
}

// Do does one of the operations that carry no content and give nothing back.
func (c *Client) Do(ctx context.Context, q Request) error {
	defer c.begin(ctx)()
	_, err := c.ask(ctx, q)
	return err
}

// Stat tells about a file, or with noFollow about a link itself.
func (c *Client) Stat(ctx context.Context, path string, noFollow bool) (Info, error) {
	defer c.begin(ctx)()
	r, err := c.ask(ctx, Request{Op: OpStat, Path: []byte(path), NoFollow: noFollow})
	if err != nil {
		return Info{}, err
	}
	return r.info()
}

func (r Reply) info() (Info, error) {
	if r.Info == nil {
		return Info{}, nonsense("no answer")
	}
	i := *r.Info
	if i.Size < 0 || i.Mode&^0o7777 != 0 || len(i.Target) > maxPath || bytes.IndexByte(i.Target, 0) >= 0 {
		return i, nonsense("a file that cannot be")
	}
	return i, nil
}

func nonsense(what string) error {
	return fault.New(fault.Unavailable, "the machine talks nonsense: %s", what)
}

// List gives what is in a directory, in no order, or the one file that path is.
func (c *Client) List(ctx context.Context, path string) ([]Info, error) {
	defer c.begin(ctx)()
	r, err := c.ask(ctx, Request{Op: OpList, Path: []byte(path)})
	var all []Info
	size := 0
	for ; err == nil; r, err = c.receive(ctx) {
		for _, i := range r.List {
			if _, err := (Reply{Info: &i}).info(); err != nil {
				return nil, err
			}
			if !validName(i.Name) {
				return nil, nonsense("a file without a name")
			}
			if size += len(i.Name) + len(i.Target) + 100; size > maxNames {
				return nil, fault.New(fault.Exhausted, "it has too many files in one directory")
			}
			i.Xattrs = nil
			all = append(all, i)
		}
		if !r.More {
			return all, nil
		}
	}
	return nil, err
}

// validName tells whether a name can be one of a file in a directory.
func validName(name []byte) bool {
	return len(name) > 0 && len(name) <= 255 && bytes.IndexByte(name, '/') < 0 && bytes.IndexByte(name, 0) < 0 &&
		string(name) != "." && string(name) != ".."
}

// Sink takes the content of a file. Hole is as many zero bytes, which need not be
// stored.
type Sink interface {
	io.Writer
	Hole(n int64) error
}

// Read gives a file's content to what open makes of its attributes.
func (c *Client) Read(ctx context.Context, path string, noFollow bool, open func(Info) (Sink, error)) error {
	defer c.begin(ctx)()
	r, err := c.ask(ctx, Request{Op: OpRead, Path: []byte(path), NoFollow: noFollow})
	if err != nil {
		return err
	}
	i, err := r.info()
	if err != nil {
		return err
	}
	sink, err := open(i)
	if err != nil {
		return err
	}
	left := most(i.Size)
	for {
		c.alive(ctx)()
		f, err := c.in.Next()
		if err != nil {
			return lost(ctx, err)
		}
		n := int64(len(f.Data))
		switch f.Kind {
		case wire.FrameData:
			_, err = sink.Write(f.Data)
		case wire.FrameHole:
			if n, err = f.Length(); err == nil && n <= left {
				err = sink.Hole(n)
			}
		case wire.FrameEnd:
			_, err := c.receive(ctx)
			return err
		default:
			return nonsense("a frame of another kind")
		}
		if err != nil {
			return err
		}
		if left -= n; left < 0 {
			return nonsense("more than it said")
		}
	}
}

// Write makes or replaces the file that q is about, with what src holds: all of a
// regular file with its holes as they are, or what there is of any other. It is
// there as a whole or not at all.
func (c *Client) Write(ctx context.Context, q Request, src io.Reader) error {
	defer c.begin(ctx)()
	q.Op = OpWrite
	if err := wire.Write(c.conn, q); err != nil {
		return lost(ctx, err)
	}
	// An error may come before all is sent.
	answer := make(chan error, 1)
	go func() {
		var r Reply
		err := wire.Read(c.conn, &r)
		if err != nil {
			err = lost(ctx, err)
		} else if r.Error != "" {
			err = fault.New(guest.Class(r.Class), "%s", guest.Printable(r.Error))
		}
		if err != nil {
			c.conn.SetWriteDeadline(time.Unix(1, 0)) // sending has no more point
		}
		answer <- err
	}()
	err := c.content(ctx, src)
	if err == nil {
		if err = c.out.Data(wire.FrameEnd, nil); err != nil {
			err = &broken{err}
		}
	}
	if err == nil {
		c.alive(ctx)()
		return <-answer
	}
	// Whoever does not hear the end of a file drops it.
	if _, ok := errors.AsType[*broken](err); !ok {
		c.conn.Close()
		<-answer
		return err
	}
	if said := <-answer; said != nil {
		return said
	}
	return lost(ctx, err)
}

func (c *Client) content(ctx context.Context, src io.Reader) error {
	if f, ok := src.(*os.File); ok {
		if st, err := f.Stat(); err == nil && st.Mode().IsRegular() {
			return send(c.out, f, st.Size(), c.alive(ctx))
		}
		in, err := guest.Interruptible(ctx, f)
		if err != nil {
			return err
		}
		defer in.Close()
		src = in
	}
	buf := make([]byte, wire.MaxFrame)
	for {
		// What is slow to come is no fault of the machine's.
		c.conn.SetDeadline(time.Time{})
		n, err := src.Read(buf)
		c.alive(ctx)()
		if n > 0 {
			if err := c.out.Data(wire.FrameData, buf[:n]); err != nil {
				return &broken{err}
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("cannot read what to send: %w", err)
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
}
