package oci

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

// newTransport is the connection to a registry: it keeps to p where Go's own
// waits for ever.
func newTransport(p Patience, certificates *tls.Config) http.RoundTripper {
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

// guard refuses what no request of ours may do, first attempts, redirects and
// token requests alike: plain HTTP that others can see or change, and, on
// behalf of a registry elsewhere, requests into this host or its network.
type guard struct {
	next  http.RoundTripper
	home  string // host of the registry
	plain bool   // the administrator allows plain HTTP to it
}

func (g *guard) RoundTrip(req *http.Request) (*http.Response, error) {
	host := req.URL.Hostname()
	if req.URL.Scheme != "https" && !images.LoopbackHost(host) && !(g.plain && req.URL.Host == g.home) {
		return nil, errPlainHTTP
	}
	if req.Response != nil && req.URL.Host != g.home && inside(host) && !inside(hostOnly(g.home)) {
		return nil, fault.New(fault.Forbidden, "the registry redirects to %q, an address inside this network", req.URL.Host)
	}
	return g.next.RoundTrip(req)
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

// retrier repeats requests that a registry could not answer now, and bounds how
// long an answer may take to arrive.
type retrier struct {
	next http.RoundTripper
	p    Patience
}

func (t *retrier) RoundTrip(req *http.Request) (*http.Response, error) {
	left := t.p.Waits
	for n := 0; ; n++ {
		resp, err := t.once(req)
		if n == t.p.Repeats || req.Body != nil && req.Body != http.NoBody || !temporary(resp, err) {
			return resp, err
		}
		pause := t.pause(n)
		if resp != nil {
			pause = max(pause, retryAfter(resp))
		}
		if pause > left {
			return resp, err
		}
		left -= pause
		if resp != nil {
			resp.Body.Close()
		}
		if err := sleep(req.Context(), pause); err != nil {
			return nil, err
		}
	}
}

// pause doubles from one repetition to the next, with up to a quarter more so
// that many clients do not come back together.
func (t *retrier) pause(n int) time.Duration {
	d := t.p.Backoff << n
	return d + rand.N(d/4+1)
}

func (t *retrier) once(req *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(req.Context())
	resp, err := t.next.RoundTrip(req.WithContext(ctx))
	if err != nil {
		cancel(nil)
		return nil, err
	}
	resp.Body = newStallReader(ctx, cancel, resp.Body, t.p.Stall)
	return resp, nil
}

// temporary tells whether the same request may succeed soon. A refused
// connection or an unknown host is not worth the wait of a person.
func temporary(resp *http.Response, err error) bool {
	if err != nil {
		return brokenOff(err)
	}
	switch resp.StatusCode {
	case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusInternalServerError,
		http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return false
}

// brokenOff tells whether the other side ended the connection too early.
func brokenOff(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// retryAfter is how long the registry asks to wait, or 0.
func retryAfter(resp *http.Response) time.Duration {
	v := resp.Header.Get("Retry-After")
	if n, err := strconv.ParseUint(v, 10, 31); err == nil {
		return time.Duration(n) * time.Second
	}
	if t, err := http.ParseTime(v); err == nil {
		return max(0, time.Until(t))
	}
	return 0
}

func sleep(ctx context.Context, d time.Duration) error {
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
	stalled := fault.New(fault.Timeout, "the registry sent less than %d bytes in %s", stallBytes, period)
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
