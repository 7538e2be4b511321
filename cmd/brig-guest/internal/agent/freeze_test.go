package agent

import (
	"bufio"
	"slices"
	"strings"
	"testing"
)

func TestDiskMountsAreFoundOnce(t *testing.T) {
	const info = `22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
23 22 0:21 / /proc rw - proc proc rw
24 22 254:16 / /srv/with\040space rw,relatime - xfs /dev/vdb rw
25 22 254:0 /var /mnt/again rw,relatime - ext4 /dev/vda rw
26 22 254:32 / /media ro,relatime - ext4 /dev/vdc ro
27 22 0:40 / /home rw - fuse.x /dev/fuse rw
28 22 254:48 / /cd rw - iso9660 /dev/sr0 rw
29 22 0:45 / /data rw master:3 - btrfs /dev/vdd rw,subvol=/
broken line
`
	got, err := parseMounts(bufio.NewScanner(strings.NewReader(info)))
	want := []string{"/", "/srv/with space", "/data"}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("parseMounts = %q, %v, want %q", got, err, want)
	}
}
