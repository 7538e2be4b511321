package boot

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"io"
	"os"
	"strings"

	"brig/instance/fault"
)

// maxImage bounds a kernel image.
const maxImage = 256 << 20

// The parts of the boot protocol's header that are read here
// (https://docs.kernel.org/arch/x86/boot.html).
const (
	magicAt   = 0x202
	magic     = "HdrS"
	versionAt = 0x20e // of the pointer, which counts from 0x200
	headSize  = 64 << 10
)

// imageVersion reads what uname -r will say from a bzImage.
func imageVersion(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	head, err := io.ReadAll(io.LimitReader(f, headSize))
	if err != nil {
		return "", err
	}
	return versionIn(head)
}

// versionIn reads the version from the first bytes of a bzImage. Anything else
// is invalid.
func versionIn(head []byte) (string, error) {
	notKernel := fault.New(fault.Invalid, "cannot use it as a kernel: it is not a bzImage for x86_64")
	if len(head) < versionAt+2 || string(head[magicAt:magicAt+len(magic)]) != magic {
		return "", notKernel
	}
	at := int(binary.LittleEndian.Uint16(head[versionAt:])) + 0x200
	if at == 0x200 || at >= len(head) {
		return "", notKernel
	}
	text := head[at:min(at+256, len(head))]
	if end := bytes.IndexAny(text, " \x00"); end >= 0 {
		text = text[:end]
	}
	version := string(text)
	if !validName(version) {
		return "", notKernel
	}
	return version, nil
}

// compareVersions orders kernel versions: numbers by their value, the rest by
// their characters.
func compareVersions(a, b string) int {
	for a != "" && b != "" {
		var x, y string
		x, a = token(a)
		y, b = token(b)
		if isDigit(x[0]) && isDigit(y[0]) {
			x, y = strings.TrimLeft(x, "0"), strings.TrimLeft(y, "0")
			if c := cmp.Or(cmp.Compare(len(x), len(y)), cmp.Compare(x, y)); c != 0 {
				return c
			}
		} else if c := cmp.Compare(x, y); c != 0 {
			return c
		}
	}
	return cmp.Compare(len(a), len(b))
}

// token cuts a run of digits or of other characters off s.
func token(s string) (head, rest string) {
	n := 1
	for n < len(s) && isDigit(s[n]) == isDigit(s[0]) {
		n++
	}
	return s[:n], s[n:]
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }
