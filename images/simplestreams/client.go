package simplestreams

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"

	"brig/images/web"
	"brig/instance/fault"
)

// client talks to one server.
type client struct {
	address  string // without a slash at the end
	host     string
	patience web.Patience
	http     *http.Client
}

// products reads the whole index, sorted by the names of products.
func (c *client) products(ctx context.Context) ([]product, error) {
	data, err := c.document(ctx, "streams/v1/index.json", maxIndex)
	if err != nil {
		return nil, err
	}
	var s stream
	if err := decode("its streams/v1/index.json", data, &s); err != nil {
		return nil, err
	}
	paths := s.paths()
	if len(paths) == 0 || len(paths) > maxStreams {
		return nil, fault.New(fault.Unavailable, "its index names %d files with images: want 1 to %d", len(paths), maxStreams)
	}
	var all []product
	left := int64(maxProducts)
	for _, p := range paths {
		if err := checkPath(p); err != nil {
			return nil, err
		}
		data, err := c.document(ctx, p, left)
		if err != nil {
			return nil, err
		}
		left -= int64(len(data))
		var list products
		if err := decode(fmt.Sprintf("its %.100s", p), data, &list); err != nil {
			return nil, err
		}
		for _, name := range slices.Sorted(maps.Keys(list.Products)) {
			all = append(all, list.Products[name])
		}
	}
	return all, nil
}

// document fetches a file of at most most bytes.
func (c *client) document(ctx context.Context, path string, most int64) ([]byte, error) {
	resp, err := c.get(ctx, path, 0)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, most+1))
	switch {
	case err != nil:
		return nil, c.readFault(path, int64(len(data)), err)
	case int64(len(data)) > most:
		return nil, fault.New(fault.Exhausted, "server %s sends more than %d bytes for %s", c.host, most, path)
	}
	return data, nil
}

// get asks for a file from an offset on.
func (c *client) get(ctx context.Context, path string, offset int64) (*http.Response, error) {
	target, err := url.JoinPath(c.address, path)
	if err != nil {
		return nil, fault.New(fault.Invalid, "%w", err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
	if err != nil {
		return nil, fault.New(fault.Invalid, "%w", err)
	}
	req.Header.Set("User-Agent", "brig")
	want := http.StatusOK
	if offset > 0 {
		req.Header.Set("Range", "bytes="+strconv.FormatInt(offset, 10)+"-")
		want = http.StatusPartialContent
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.explain(err)
	}
	if resp.StatusCode == http.StatusOK && offset > 0 {
		// It does not know ranges: what is known already is passed over.
		if _, err := io.CopyN(io.Discard, resp.Body, offset); err != nil {
			resp.Body.Close()
			return nil, c.readFault(path, 0, err)
		}
		return resp, nil
	}
	if resp.StatusCode != want {
		resp.Body.Close()
		return nil, c.status(path, resp)
	}
	return resp, nil
}

// explain gives the failure of a request its class and the name of the server.
// URLs are left out: those of redirects may hold secrets.
func (c *client) explain(err error) error {
	if e, ok := errors.AsType[*url.Error](err); ok {
		err = e.Err
	}
	if _, ok := errors.AsType[*fault.Error](err); ok {
		return fmt.Errorf("server %s: %w", c.host, err)
	}
	switch {
	case errors.Is(err, context.Canceled):
		return err
	case web.TimedOut(err):
		return fault.New(fault.Timeout, "server %s does not answer: %w", c.host, err)
	case web.BrokenOff(err):
		return fault.New(fault.Unavailable, "server %s hung up without an answer: %w", c.host, err)
	}
	return fault.New(fault.Unavailable, "server %s cannot be used: %w", c.host, err)
}

func (c *client) status(path string, resp *http.Response) error {
	answer := fmt.Sprintf("server %s answers %d %s for %s", c.host, resp.StatusCode, http.StatusText(resp.StatusCode), path)
	switch resp.StatusCode {
	case http.StatusNotFound, http.StatusGone:
		if path == "streams/v1/index.json" {
			return fault.New(fault.NotFound, "%s: it is no server of simplestreams images", answer)
		}
		return fault.New(fault.Unavailable, "%s, which its index names; try again: the image may be replaced just now", answer)
	case http.StatusRequestedRangeNotSatisfiable:
		return fault.New(fault.Unavailable, "%s: the file was truncated", answer)
	case http.StatusUnauthorized, http.StatusForbidden:
		return fault.New(fault.Forbidden, "%s", answer)
	}
	return fault.New(fault.Unavailable, "%s; try again later", answer)
}

// readFault classes what went wrong while a file was read, after n bytes.
func (c *client) readFault(path string, n int64, err error) error {
	if _, ok := errors.AsType[*fault.Error](err); ok {
		return fmt.Errorf("server %s: %w", c.host, err)
	}
	switch {
	case errors.Is(err, context.Canceled):
		return err
	case web.TimedOut(err):
		return fault.New(fault.Timeout, "%s stopped coming from %s after %d bytes: %w", path, c.host, n, err)
	case web.BrokenOff(err):
		return fault.New(fault.Unavailable, "%s was truncated by %s after %d bytes", path, c.host, n)
	}
	return fault.New(fault.Unavailable, "cannot read %s from %s: %w", path, c.host, err)
}

// body reads one item from its beginning to its end, goes on where the connection
// broke, and gives no more than the index says.
type body struct {
	ctx   context.Context
	c     *client
	it    item
	resp  *http.Response
	n     int64
	again int // repetitions that are left
}

func (c *client) open(ctx context.Context, it item) *body {
	return &body{ctx: ctx, c: c, it: it, again: c.patience.Repeats}
}

func (b *body) Read(p []byte) (int, error) {
	for {
		if b.resp == nil {
			resp, err := b.c.get(b.ctx, b.it.Path, b.n)
			if err != nil {
				return 0, err
			}
			b.resp = resp
		}
		n, err := b.resp.Body.Read(p)
		b.n += int64(n)
		switch {
		case b.n > b.it.Size:
			return 0, fault.New(fault.Unavailable, "%s is longer than the %d bytes that the index promises (wrong size)", b.it.Path, b.it.Size)
		case err == nil || n > 0 && err != io.EOF:
			return n, nil
		case err == io.EOF && b.n == b.it.Size:
			return n, io.EOF
		case err == io.EOF:
			err = io.ErrUnexpectedEOF
		}
		if !web.BrokenOff(err) || b.again == 0 {
			if errors.Is(err, io.ErrUnexpectedEOF) {
				err = fault.New(fault.Unavailable, "%s was truncated by %s after %d of %d bytes", b.it.Path, b.c.host, b.n, b.it.Size)
			}
			return n, b.c.readFault(b.it.Path, b.n, err)
		}
		b.Close()
		b.resp = nil
		if err := web.Sleep(b.ctx, b.c.patience.Backoff<<(b.c.patience.Repeats-b.again)); err != nil {
			return n, err
		}
		b.again--
		if n > 0 {
			return n, nil
		}
	}
}

func (b *body) Close() error {
	if b.resp == nil {
		return nil
	}
	return b.resp.Body.Close()
}
