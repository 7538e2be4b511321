package ext4

import "golang.org/x/sys/unix"

// tailSize is that of the checksum at the end of each block of a directory.
const tailSize = 12

// name is an entry of a directory.
type name struct {
	inode int64
	kind  byte
	name  string
}

// kindOf is how entries tell the type of a file.
func kindOf(mode uint32) byte {
	return map[uint32]byte{
		unix.S_IFREG: 1, unix.S_IFDIR: 2, unix.S_IFCHR: 3, unix.S_IFBLK: 4, unix.S_IFIFO: 5, unix.S_IFSOCK: 6, unix.S_IFLNK: 7,
	}[mode&unix.S_IFMT]
}

// writeNames writes the content of the directory i, into the blocks it has first.
func (s *system) writeNames(i *inode, parent int64, names []name, has []int64) error {
	names = append([]name{{i.n, 2, "."}, {parent, 2, ".."}}, names...)
	seed := s.seedOf(i.n)
	for logical := int64(0); len(names) > 0 || logical < int64(len(has)); logical++ {
		block := make([]byte, BlockSize)
		names = names[putNames(block[:BlockSize-tailSize], names):]
		tail := block[BlockSize-tailSize:]
		le.PutUint16(tail[4:], tailSize)
		tail[7] = 0xde
		le.PutUint32(tail[8:], checksum(seed, block[:BlockSize-tailSize]))
		var at int64
		if logical < int64(len(has)) {
			at = has[logical]
		} else {
			var err error
			if at, err = s.takeBlock(); err != nil {
				return err
			}
		}
		i.add(logical, at)
		i.size += BlockSize
		if err := s.out.add(at, block); err != nil {
			return err
		}
	}
	return nil
}

// putNames writes as many names as fit and tells how many. The last one takes the
// rest.
func putNames(to []byte, names []name) int {
	at, last := 0, 0
	for n, e := range names {
		size := (8 + len(e.name) + 3) &^ 3
		if at+size > len(to) {
			le.PutUint16(to[last+4:], uint16(len(to)-last))
			return n
		}
		le.PutUint32(to[at:], uint32(e.inode))
		le.PutUint16(to[at+4:], uint16(size))
		to[at+6], to[at+7] = byte(len(e.name)), e.kind
		copy(to[at+8:], e.name)
		last, at = at, at+size
	}
	le.PutUint16(to[last+4:], uint16(len(to)-last))
	return len(names)
}
