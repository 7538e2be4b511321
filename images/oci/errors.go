package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"brig/images/web"
	"brig/instance/fault"
)

// explain gives the failure of a request its class and the name of the
// registry. URLs are left out: those of redirects hold secrets.
func (g *registry) explain(err error) error {
	if e, ok := errors.AsType[*transport.Error](err); ok {
		said := ""
		if len(e.Errors) > 0 {
			said = fmt.Sprintf("%s %s", e.Errors[0].Code, e.Errors[0].Message)
		}
		return g.statusFault(e.StatusCode, said, 0)
	}
	// Only the outermost: a failed login over HTTPS and HTTP holds two of them.
	if e, ok := err.(*url.Error); ok {
		err = e.Err
	}
	if _, ok := errors.AsType[*fault.Error](err); ok {
		return fmt.Errorf("registry %s: %w", g.name.Host, err)
	}
	switch {
	case errors.Is(err, context.Canceled):
		return err
	case web.TimedOut(err):
		return fault.New(fault.Timeout, "registry %s does not answer: %w", g.name.Host, err)
	case web.BrokenOff(err):
		return fault.New(fault.Unavailable, "registry %s hung up without an answer: %w", g.name.Host, err)
	}
	return fault.New(fault.Unavailable, "registry %s cannot be used: %w", g.name.Host, err)
}

// status makes an error of an answer that is not the one that was hoped for.
func (g *registry) status(resp *http.Response) error {
	var body struct {
		Errors []struct{ Code, Message string }
	}
	said := ""
	data, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err == nil && json.Unmarshal(data, &body) == nil && len(body.Errors) > 0 {
		said = body.Errors[0].Code + " " + body.Errors[0].Message
	}
	return g.statusFault(resp.StatusCode, said, web.RetryAfter(resp))
}

func (g *registry) statusFault(code int, said string, wait time.Duration) error {
	if said = oneLine(said, 200); said != "" {
		said = ": " + said
	}
	answer := fmt.Sprintf("registry %s answers %d %s%s", g.name.Host, code, http.StatusText(code), said)
	switch {
	case code == http.StatusUnauthorized, code == http.StatusForbidden:
		return fault.New(fault.Forbidden, "%s; if the image exists, `docker login %s` (or podman login) stores credentials that brig uses", answer, g.name.Host)
	case code == http.StatusNotFound:
		return fault.New(fault.NotFound, "%s; check its name and tag", answer)
	case code == http.StatusTooManyRequests && wait > 0:
		return fault.New(fault.Unavailable, "%s; it asks to come back in %s", answer, wait.Round(time.Second))
	case code == http.StatusTooManyRequests:
		return fault.New(fault.Unavailable, "%s; try again later", answer)
	}
	return fault.New(fault.Unavailable, "%s", answer)
}

// readError classes what went wrong while a part of an image was read, after n
// bytes.
func readError(err error, d descriptor, n int64) error {
	if _, ok := errors.AsType[*fault.Error](err); ok {
		return err
	}
	switch {
	case errors.Is(err, context.Canceled):
		return err
	case web.TimedOut(err):
		return fault.New(fault.Timeout, "%s stopped coming after %d bytes: %w", d.Digest, n, err)
	case web.BrokenOff(err) && d.Size >= 0:
		return fault.New(fault.Unavailable, "%s was truncated after %d of %d bytes", d.Digest, n, d.Size)
	case web.BrokenOff(err):
		return fault.New(fault.Unavailable, "%s was truncated after %d bytes", d.Digest, n)
	}
	return fault.New(fault.Unavailable, "cannot read %s: %w", d.Digest, err)
}
