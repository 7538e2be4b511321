package cli

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"brig/instance/fault"
)

// seedOptions are the flags that stand for cloud-init.* keys.
type seedOptions struct {
	userData string
	sshKeys  []string
}

func (o *seedOptions) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&o.userData, "user-data", "", "File with cloud-init's user-data, or a script to run once")
	f.StringArrayVar(&o.sshKeys, "ssh-key", nil, "File with public SSH keys for root (may be repeated)")
}

const userDataKey = "cloud-init.user-data"

// into sets the keys.
func (o *seedOptions) into(config map[string]string) error {
	if o.userData != "" {
		if _, twice := config[userDataKey]; twice {
			return fault.New(fault.Invalid, "--user-data and the key %s exclude each other", userDataKey)
		}
		data, err := readSmall(o.userData)
		if err != nil {
			return fmt.Errorf("cannot use --user-data: %w", err)
		}
		config[userDataKey] = strings.ReplaceAll(string(data), "\r\n", "\n")
	}
	n := 0
	for _, file := range o.sshKeys {
		data, err := readSmall(file)
		if err != nil {
			return fmt.Errorf("cannot use --ssh-key: %w", err)
		}
		before := n
		for line := range strings.Lines(string(data)) {
			if line = strings.TrimSpace(line); line == "" || strings.HasPrefix(line, "#") {
				continue
			}
			if strings.Contains(line, "PRIVATE KEY") {
				return fault.New(fault.Invalid, "cannot use --ssh-key %q: it is a private key; give the file that ends in .pub", file)
			}
			n++
			config[fmt.Sprintf("cloud-init.ssh-keys.key%d", n)] = "root:" + line
		}
		if n == before {
			return fault.New(fault.Invalid, "cannot use --ssh-key %q: it has no key", file)
		}
	}
	return nil
}

// maxSmall bounds what is read whole.
const maxSmall = 1 << 20

func readSmall(name string) ([]byte, error) {
	f, err := os.Open(name)
	if os.IsNotExist(err) {
		return nil, fault.New(fault.NotFound, "there is no file %q", name)
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxSmall+1))
	if err == nil && len(data) > maxSmall {
		err = fault.New(fault.Invalid, "%q has more than %d bytes", filepath.Base(name), maxSmall)
	}
	return data, err
}
