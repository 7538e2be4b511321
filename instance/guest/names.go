package guest

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"
)

// maxNames bounds the files that WriteNames reads.
const maxNames = 1 << 20

// WriteNames gives a guest its name and its name servers: /etc/hostname, a line
// in /etc/hosts and /etc/resolv.conf. It may be repeated, and changes no file
// that is right already. Without DNS resolv.conf is left alone.
func WriteNames(root *Root, s Settings) error {
	if err := root.MkdirAll("/etc"); err != nil {
		return fmt.Errorf("cannot write host name: %w", err)
	}
	var errs []error
	if s.Hostname != "" {
		errs = append(errs, root.Write("/etc/hostname", []byte(s.Hostname+"\n")))
		old, _ := root.Read("/etc/hosts", maxNames)
		errs = append(errs, root.Write("/etc/hosts", hosts(old, s.Hostname)))
	}
	if len(s.DNS) > 0 {
		errs = append(errs, writeResolver(root, s))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("cannot write host name and name servers: %w", err)
	}
	return nil
}

// hosts makes the content of /etc/hosts: what there is, with 127.0.1.1 naming
// this host, which is how Debian does it.
func hosts(old []byte, name string) []byte {
	if len(bytes.TrimSpace(old)) == 0 {
		old = []byte("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n")
	}
	line := "127.0.1.1\t" + name
	var out []string
	done := false
	for l := range strings.Lines(string(old)) {
		l = strings.TrimSuffix(l, "\n")
		if f := strings.Fields(l); len(f) > 0 && f[0] == "127.0.1.1" {
			if done {
				continue
			}
			l, done = line, true
		}
		out = append(out, l)
	}
	if !done {
		out = append(out, line)
	}
	return []byte(strings.Join(out, "\n") + "\n")
}

// writeResolver writes /etc/resolv.conf. Where it is a link into /run, a
// resolver of the image's own keeps it, and until that runs its target serves.
// A link to nowhere is replaced.
func writeResolver(root *Root, s Settings) error {
	const name = "/etc/resolv.conf"
	var b strings.Builder
	for _, a := range s.DNS {
		fmt.Fprintf(&b, "nameserver %s\n", a)
	}
	content := []byte(b.String())
	if target, err := root.readlink(name); err == nil {
		if !path.IsAbs(target) {
			target = path.Join("/etc", target)
		}
		if strings.HasPrefix(path.Clean(target), "/run/") {
			if err := root.MkdirAll(path.Dir(target)); err != nil {
				return err
			}
			return root.Write(target, content)
		}
	}
	err := root.Write(name, content)
	if errors.Is(err, fs.ErrNotExist) {
		if err := root.remove(name); err != nil {
			return err
		}
		err = root.Write(name, content)
	}
	return err
}
