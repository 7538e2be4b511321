package oci

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync/atomic"

	"brig/instance/fault"
)

// mirrored is an image in a registry of which others have copies. They are asked in
// their order, the registry itself last, and the one that answered stays the first to
// be asked for the image's other parts.
type mirrored struct {
	places []*registry
	good   atomic.Int32 // index of the place to ask first
}

func (m *mirrored) local() bool { return false }

func (m *mirrored) Close() error {
	for _, g := range m.places {
		g.Close()
	}
	return nil
}

// try asks one place after the other, and tells which one answered. When none of them
// can, the class of the error is that of the registry itself.
func (m *mirrored) try(ctx context.Context, ask func(*registry) error) (which int, err error) {
	first := int(m.good.Load())
	failed := make([]error, len(m.places))
	for i := range m.places {
		n := (first + i) % len(m.places)
		err := ask(m.places[n])
		if err == nil {
			m.good.Store(int32(n))
			return n, nil
		}
		if ctx.Err() != nil {
			return n, err
		}
		failed[n] = err
	}
	last := len(failed) - 1
	var mirrors []string
	for _, err := range failed[:last] {
		mirrors = append(mirrors, err.Error())
	}
	return last, fmt.Errorf("%w; before, of its mirrors, %s", failed[last], strings.Join(mirrors, ", "))
}

func (m *mirrored) root(ctx context.Context) (doc document, err error) {
	_, err = m.try(ctx, func(g *registry) error {
		doc, err = g.root(ctx)
		return err
	})
	return doc, err
}

func (m *mirrored) manifest(ctx context.Context, d descriptor) (s stream, err error) {
	_, err = m.try(ctx, func(g *registry) error {
		s, err = g.manifest(ctx, d)
		return err
	})
	return s, err
}

// blob gives a blob that, when it breaks off, is asked of the next place.
func (m *mirrored) blob(ctx context.Context, d descriptor, offset int64) (s stream, err error) {
	n, err := m.try(ctx, func(g *registry) error {
		s, err = g.blob(ctx, d, offset)
		return err
	})
	if err == nil {
		s.ReadCloser = &leaving{ReadCloser: s.ReadCloser, m: m, from: int32(n)}
	}
	return s, err
}

// leaving turns to another place when what is read breaks off.
type leaving struct {
	io.ReadCloser
	m    *mirrored
	from int32
}

func (l *leaving) Read(p []byte) (int, error) {
	n, err := l.ReadCloser.Read(p)
	if err != nil && !errors.Is(err, io.EOF) && !fault.Is(err, fault.Cancelled) {
		l.m.good.CompareAndSwap(l.from, (l.from+1)%int32(len(l.m.places)))
	}
	return n, err
}
