package verify

import (
	"encoding/binary"
	"slices"
	"strings"
)

const (
	accessACL  = "system.posix_acl_access"
	defaultACL = "system.posix_acl_default"
	capability = "security.capability"
)

// ofTheHost tells which extended attributes a host gives files by itself. They
// are not looked at.
func ofTheHost(name string) bool {
	switch name {
	case "security.selinux", "security.ima", "security.evm":
		return true
	}
	return strings.HasPrefix(name, "btrfs.") || strings.HasPrefix(name, "system.") && name != accessACL && name != defaultACL
}

// normal brings attributes to the one form the kernel shows them in for files of
// this mode.
func normal(xattrs map[string]string, mode uint32) map[string]string {
	for _, name := range []string{accessACL, defaultACL} {
		value, ok := xattrs[name]
		if !ok {
			continue
		}
		if value = normalACL(value, name == accessACL, mode); value == "" {
			delete(xattrs, name)
		} else {
			xattrs[name] = value
		}
	}
	if value, ok := xattrs[capability]; ok {
		xattrs[capability] = normalCapability(value)
	}
	if len(xattrs) == 0 {
		return nil
	}
	return xattrs
}

// Tags of the entries of an access control list.
const (
	aclUserObj  = 0x01
	aclUser     = 0x02
	aclGroupObj = 0x04
	aclGroup    = 0x08
	aclMask     = 0x10
	aclOther    = 0x20
)

// normalACL gives an access list the rights of the mode, as chmod does, and
// nothing for one that says no more than the mode.
func normalACL(value string, access bool, mode uint32) string {
	raw := []byte(value)
	if len(raw) < 4 || (len(raw)-4)%8 != 0 {
		return value
	}
	var tags []uint16
	for e := raw[4:]; len(e) > 0; e = e[8:] {
		tags = append(tags, binary.LittleEndian.Uint16(e))
	}
	masked := slices.Contains(tags, aclMask)
	extended := masked || slices.Contains(tags, aclUser) || slices.Contains(tags, aclGroup)
	if len(tags) == 0 || access && !extended {
		return ""
	}
	for i, tag := range tags {
		e := raw[4+8*i:][:8]
		if tag != aclUser && tag != aclGroup {
			binary.LittleEndian.PutUint32(e[4:], 0xffffffff)
		}
		if !access {
			continue
		}
		switch {
		case tag == aclUserObj:
			binary.LittleEndian.PutUint16(e[2:], uint16(mode>>6&7))
		case tag == aclMask, tag == aclGroupObj && !masked:
			binary.LittleEndian.PutUint16(e[2:], uint16(mode>>3&7))
		case tag == aclOther:
			binary.LittleEndian.PutUint16(e[2:], uint16(mode&7))
		}
	}
	return string(raw)
}

// normalCapability makes the third form of capabilities, which names the root
// user of a namespace, the second where that is the host's.
func normalCapability(value string) string {
	const second, third = 0x02000000, 0x03000000
	if len(value) != 24 || value[20:] != "\x00\x00\x00\x00" {
		return value
	}
	raw := []byte(value[:20])
	magic := binary.LittleEndian.Uint32(raw)
	if magic&0xff000000 != third {
		return value
	}
	binary.LittleEndian.PutUint32(raw, magic&0x00ffffff|second)
	return string(raw)
}
