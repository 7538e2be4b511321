package oci

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"brig/instance/fault"
)

// certificatesFor reads what containers-certs.d(5) says is for a registry: *.crt in
// DIR/HOST[:PORT] are authorities to trust besides the host's own, NAME.cert with
// NAME.key is who brig is. The first of dirs that has a directory for the registry
// counts. Without any, it is nil, and Go's own rules hold.
func certificatesFor(dirs []string, host string, insecure bool) (*tls.Config, error) {
	var c *tls.Config
	for _, dir := range dirs {
		list, err := os.ReadDir(filepath.Join(dir, host))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fault.New(fault.Invalid, "cannot read the certificates for %s: %w", host, err)
		}
		if c, err = certificatesIn(filepath.Join(dir, host), list); err != nil {
			return nil, fault.New(fault.Invalid, "cannot use the certificates for %s: %w", host, err)
		}
		break
	}
	if insecure {
		if c == nil {
			c = &tls.Config{}
		}
		c.InsecureSkipVerify = true // by the word of the administrator
	}
	return c, nil
}

func certificatesIn(dir string, list []os.DirEntry) (*tls.Config, error) {
	c := &tls.Config{}
	for _, e := range list {
		path := filepath.Join(dir, e.Name())
		switch filepath.Ext(e.Name()) {
		case ".crt":
			data, err := os.ReadFile(path)
			if err != nil {
				return nil, err
			}
			if c.RootCAs == nil {
				// Without the host's own, what is here is all there is to trust.
				if c.RootCAs, err = x509.SystemCertPool(); err != nil {
					c.RootCAs = x509.NewCertPool()
				}
			}
			if !c.RootCAs.AppendCertsFromPEM(data) {
				return nil, errors.New(path + " has no certificate in PEM form")
			}
		case ".cert":
			pair, err := tls.LoadX509KeyPair(path, strings.TrimSuffix(path, ".cert")+".key")
			if err != nil {
				return nil, err
			}
			c.Certificates = append(c.Certificates, pair)
		}
	}
	return c, nil
}
