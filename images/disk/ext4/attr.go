package ext4

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
)

const (
	attributeMagic  = 0xea020000
	attributeHeader = 32 // of a block
	maxAttributes   = 64 << 10
)

// attribute is an extended attribute as the disk holds it.
type attribute struct {
	index byte // of the prefix of its name
	name  string
	value []byte
}

// prefixes of names; the two access lists are all of a name.
var prefixes = []struct {
	index byte
	name  string
}{
	{2, "system.posix_acl_access"}, {3, "system.posix_acl_default"}, {1, "user."}, {4, "trusted."}, {6, "security."},
}

// attributeOf leaves out what a host gives files by itself.
func attributeOf(name string, value []byte) (attribute, bool, error) {
	switch name {
	case "security.selinux", "security.ima", "security.evm":
		return attribute{}, false, nil
	}
	for _, p := range prefixes {
		rest, ok := strings.CutPrefix(name, p.name)
		if !ok || (rest == "") == strings.HasSuffix(p.name, ".") {
			continue
		}
		a := attribute{p.index, rest, value}
		var err error
		if p.index == 2 || p.index == 3 {
			a.value, err = accessList(value)
		}
		return a, true, err
	}
	return attribute{}, false, nil
}

// accessList makes the disk's form of the kernel's: only users and groups have an id.
func accessList(value []byte) ([]byte, error) {
	const version, user, group = 2, 0x02, 0x08
	if len(value) < 4 || (len(value)-4)%8 != 0 || le.Uint32(value) != version {
		return nil, fault.New(fault.Invalid, "it is no access list")
	}
	out := le32(1)
	for e := value[4:]; len(e) > 0; e = e[8:] {
		n := 4
		if tag := le.Uint16(e); tag == user || tag == group {
			n = 8
		}
		out = append(out, e[:n]...)
	}
	return out, nil
}

// attributes reads those of a file with the calls that list and get them, in the
// order of the disk.
func attributes(list func([]byte) (int, error), get func(string, []byte) (int, error)) ([]attribute, error) {
	n, err := list(nil)
	if n == 0 || errors.Is(err, unix.EOPNOTSUPP) {
		return nil, nil
	}
	buf := make([]byte, maxAttributes)
	if err == nil {
		n, err = list(buf)
	}
	if err != nil {
		return nil, fmt.Errorf("attributes: %w", err)
	}
	var all []attribute
	value := make([]byte, maxAttributes)
	for name := range strings.SplitSeq(strings.TrimRight(string(buf[:n]), "\x00"), "\x00") {
		n, err := get(name, value)
		if err != nil {
			return nil, fmt.Errorf("attribute %q: %w", name, err)
		}
		a, ok, err := attributeOf(name, slices.Clone(value[:n]))
		if err != nil {
			return nil, fmt.Errorf("attribute %q: %w", name, err)
		}
		if ok {
			all = append(all, a)
		}
	}
	slices.SortFunc(all, func(a, b attribute) int {
		return cmp.Or(cmp.Compare(a.index, b.index), cmp.Compare(len(a.name), len(b.name)), cmp.Compare(a.name, b.name))
	})
	return all, nil
}

// setAttributes puts attributes into the inode if they fit, and else into a block.
func (s *system) setAttributes(i *inode, all []attribute) error {
	if len(all) == 0 {
		return nil
	}
	inline := make([]byte, inodeSize-attributesAt)
	le.PutUint32(inline, attributeMagic)
	if putAttributes(inline[4:], 0, all, false) {
		i.inline = inline
		return nil
	}
	block := make([]byte, BlockSize)
	if !putAttributes(block[attributeHeader:], attributeHeader, all, true) {
		return fault.New(fault.Unsupported, "its extended attributes take more than the %d bytes that a disk has for them", BlockSize)
	}
	b, err := s.takeBlock()
	if err != nil {
		return err
	}
	le.PutUint32(block[0:], attributeMagic)
	le.PutUint32(block[4:], 1) // inode that uses it
	le.PutUint32(block[8:], 1) // block
	var hash uint32
	for _, a := range all {
		hash = hash<<16 ^ hash>>16 ^ a.hash()
	}
	le.PutUint32(block[12:], hash)
	le.PutUint32(block[16:], checksum(s.seed, le.AppendUint64(nil, uint64(b)), block))
	i.acl = b
	i.blocks++
	return s.out.add(b, block)
}

// putAttributes writes entries from the front of to and their values from its back.
// Values are told by their distance from base bytes before to. It tells whether all
// fit, with the four bytes of zeros after the last entry.
func putAttributes(to []byte, base int, all []attribute, hashed bool) bool {
	at, end := 0, len(to)
	for _, a := range all {
		size, padded := (16+len(a.name)+3)&^3, (len(a.value)+3)&^3
		if at+size+4 > end-padded {
			return false
		}
		e := to[at:]
		e[0], e[1] = byte(len(a.name)), a.index
		if end -= padded; len(a.value) > 0 {
			le.PutUint16(e[2:], uint16(base+end))
		}
		le.PutUint32(e[8:], uint32(len(a.value)))
		if hashed {
			le.PutUint32(e[12:], a.hash())
		}
		copy(e[16:], a.name)
		copy(to[end:], a.value)
		at += size
	}
	return true
}

// hash is that of an entry in a block.
func (a attribute) hash() uint32 {
	var h uint32
	for k := range len(a.name) {
		h = h<<5 ^ h>>27 ^ uint32(a.name[k])
	}
	padded := append(slices.Clone(a.value), 0, 0, 0)
	for k := 0; k < len(a.value); k += 4 {
		h = h<<16 ^ h>>16 ^ le.Uint32(padded[k:])
	}
	return h
}
