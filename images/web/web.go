// Package web is how images come over HTTP: a transport that does not wait for
// ever, repeats what failed for a moment, and refuses what no request of ours may
// do. It knows nothing of what is fetched; servers are as hostile as what they
// send.
package web

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"syscall"
	"time"

	"brig/images"
	"brig/instance/fault"
)

// Patience says how long to wait for a server. A zero field means its default.
type Patience struct {
	Connect time.Duration // for a connection and TLS; 10 s
	Answer  time.Duration // for the header of an answer; 30 s
	Stall   time.Duration // for the next 32 KiB of a body, or its end; 30 s
	Backoff time.Duration // before the first repetition, doubled each time; 500 ms
	Waits   time.Duration // for all waits between repetitions of one request; 60 s
	Repeats int           // of one request; 4
}

// WithDefaults fills in what is zero.
func (p Patience) WithDefaults() Patience {
	return Patience{
		Connect: or(p.Connect, 10*time.Second),
		Answer:  or(p.Answer, 30*time.Second),
		Stall:   or(p.Stall, 30*time.Second),
		Backoff: or(p.Backoff, 500*time.Millisecond),
		Waits:   or(p.Waits, time.Minute),
		Repeats: or(p.Repeats, 4),
	}
}

func or[T comparable](v, byDefault T) T {
	var zero T
	if v == zero {
		return byDefault
	}
	return v
}

// NewTransport is the connection to servers: it keeps to p where Go's own waits
// for ever. Nil certificates are Go's own rules.
func NewTransport(p Patience, certificates *tls.Config) http.RoundTripper {
	return &http.Transport{
		TLSClientConfig:       certificates,
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: p.Connect, KeepAlive: 30 * time.Second}).DialContext,
		TLSHandshakeTimeout:   p.Connect,
		ResponseHeaderTimeout: p.Answer,
		ForceAttemptHTTP2:     true,
		MaxIdleConnsPerHost:   8,
		IdleConnTimeout:       time.Minute,
		DisableCompression:    true, // sizes and digests are those of the bytes on the wire
	}
}

var errPlainHTTP = errors.New("plain HTTP is used only on this host's own loopback addresses, and to registries with insecure = true in registries.conf")

// Guard refuses what no request of ours may do, first attempts, redirects and
// token requests alike: plain HTTP that others can see or change, and, on
// behalf of a server elsewhere, requests into this host or its network.
type Guard struct {
	Next  http.RoundTripper
	Home  string // host of the server, with its port
	What  string // that kind of server: registry
	Plain bool   // the administrator allows plain HTTP to it
}

// RoundTrip implements http.RoundTripper.
func (g *Guard) RoundTrip(req *http.Request) (*http.Response, error) {
	host := req.URL.Hostname()
	if req.URL.Scheme != "https" && !images.LoopbackHost(host) && !(g.Plain && req.URL.Host == g.Home) {
		return nil, errPlainHTTP
	}
	if req.Response != nil && req.URL.Scheme != "https" && req.Response.Request != nil && req.Response.Request.URL.Scheme == "https" {
		return nil, fault.New(fault.Forbidden, "the %s redirects from HTTPS to plain HTTP", g.What)
	}
	if req.Response != nil && req.URL.Host != g.Home && inside(host) && !inside(hostOnly(g.Home)) {
		return nil, fault.New(fault.Forbidden, "the %s redirects to %q, an address inside this network", g.What, req.URL.Host)
	}
	return g.Next.RoundTrip(req)
}

func hostOnly(host string) string {
	if h, _, err := net.SplitHostPort(host); err == nil {
		return h
	}
	return host
}

func inside(host string) bool {
	if images.LoopbackHost(host) {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && (ip.IsPrivate() || ip.IsLinkLocalUnicast() || ip.IsUnspecified())
}

// Retrier repeats requests that a server could not answer now, and bounds how
// long an answer may take to arrive.
type Retrier struct {
	Next     http.RoundTripper
	Patience Patience
}

// RoundTrip implements http.RoundTripper.
func (t *Retrier) RoundTrip(req *http.Request) (*http.Response, error) {
	left := t.Patience.Waits
	for n := 0; ; n++ {
		resp, err := t.once(req)
		if n == t.Patience.Repeats || req.Body != nil && req.Body != http.NoBody || !temporary(resp, err) {
			return resp, err
		}
		pause := t.pause(n)
		if resp != nil {
			pause = max(pause, RetryAfter(resp))
		}
		if pause > left {
			return resp, err
		}
		left -= pause
		if resp != nil {
			resp.Body.Close()
		}
		if err := Sleep(req.Context(), pause); err != nil {
			return nil, err
		}
	}
}

// pause doubles from one repetition to the next, with up to a quarter more so
// that many clients do not come back together.
func (t *Retrier) pause(n int) time.Duration {
	d := t.Patience.Backoff << n
	return d + rand.N(d/4+1)
}

func (t *Retrier) once(req *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(req.Context())
	resp, err := t.Next.RoundTrip(req.WithContext(ctx))
	if err != nil {
		cancel(nil)
		return nil, err
	}
	resp.Body = newStallReader(ctx, cancel, resp.Body, t.Patience.Stall)
	return resp, nil
}

// temporary tells whether the same request may succeed soon. A refused
// connection or an unknown host is not worth the wait of a person.
func temporary(resp *http.Response, err error) bool {
	if err != nil {
		return BrokenOff(err)
	}
	switch resp.StatusCode {
	case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusInternalServerError,
		http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return false
}

// BrokenOff tells whether the other side ended the connection too early.
func BrokenOff(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// RetryAfter is how long the server asks to wait, or 0.
func RetryAfter(resp *http.Response) time.Duration {
	v := resp.Header.Get("Retry-After")
	if n, err := strconv.ParseUint(v, 10, 31); err == nil {
		return time.Duration(n) * time.Second
	}
	if t, err := http.ParseTime(v); err == nil {
		return max(0, time.Until(t))
	}
	return 0
}

// Sleep waits, unless ctx ends.
func Sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}

// stallBytes have to arrive in each period of Patience.Stall. A sender that
// only keeps the connection alive, a byte now and then, ends in a timeout.
const stallBytes = 32 << 10

// stallReader ends a request whose body arrives too slowly.
type stallReader struct {
	io.ReadCloser
	ctx    context.Context // of the request; its cause tells about the stall
	cancel context.CancelCauseFunc
	timer  *time.Timer
	period time.Duration
	got    int
}

func newStallReader(ctx context.Context, cancel context.CancelCauseFunc, body io.ReadCloser, period time.Duration) *stallReader {
	stalled := fault.New(fault.Timeout, "the server sent less than %d bytes in %s", stallBytes, period)
	return &stallReader{
		ReadCloser: body,
		ctx:        ctx,
		cancel:     cancel,
		timer:      time.AfterFunc(period, func() { cancel(stalled) }),
		period:     period,
	}
}

func (r *stallReader) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	if r.got += n; r.got >= stallBytes {
		r.got = 0
		r.timer.Reset(r.period)
	}
	if err != nil && err != io.EOF {
		if cause := context.Cause(r.ctx); cause != nil {
			err = cause
		}
	}
	return n, err
}

func (r *stallReader) Close() error {
	r.timer.Stop()
	err := r.ReadCloser.Close()
	r.cancel(nil)
	return err
}

// TimedOut tells whether the other side did not answer in time.
func TimedOut(err error) bool {
	if errors.Is(err, context.DeadlineExceeded) {
		return true
	}
	e, ok := errors.AsType[net.Error](err)
	return ok && e.Timeout()
}
