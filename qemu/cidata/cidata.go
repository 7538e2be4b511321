// Package cidata makes the disk on which cloud-init's NoCloud finds its seed
// (https://docs.cloud-init.io/en/latest/reference/datasources/nocloud.html): a FAT12
// file system labelled CIDATA, of files in its root directory with long names. The
// format is Microsoft's "FAT: General Overview of On-Disk Format" 1.03.
package cidata

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"unicode/utf16"

	"brig/instance/fault"
)

// The geometry. A FAT12 file system has less than 4085 clusters.
const (
	sector        = 512
	clusterSize   = 4 * sector
	sectors       = 8192
	fatSectors    = 6
	rootEntries   = 512
	entrySize     = 32
	fatStart      = 1
	rootStart     = fatStart + 2*fatSectors
	dataStart     = rootStart + rootEntries*entrySize/sector
	clusters      = (sectors - dataStart) / (clusterSize / sector)
	firstCluster  = 2
	endOfChain    = 0xfff
	attrVolume    = 0x08
	attrLongName  = 0x0f
	attrFile      = 0x20
	charsInName   = 13
	lastNameEntry = 0x40
)

// Image is the content of the disk with these files. Their names are of at most 30
// letters, digits and signs of ASCII.
func Image(files map[string]string) ([]byte, error) {
	image := make([]byte, sectors*sector)
	bootSector(image)
	root := image[rootStart*sector : dataStart*sector]
	copy(root, "CIDATA     ")
	root[11] = attrVolume
	root = root[entrySize:]
	fat := image[fatStart*sector : (fatStart+fatSectors)*sector]
	link(fat, 0, 0xff8)
	link(fat, 1, endOfChain)
	next := firstCluster
	for i, name := range slices.Sorted(maps.Keys(files)) {
		content := files[name]
		used := (len(content) + clusterSize - 1) / clusterSize
		if next+used > firstCluster+clusters {
			return nil, fault.New(fault.Exhausted, "cannot make a disk for cloud-init: %d KiB fit", clusters*clusterSize>>10)
		}
		start := next
		if used == 0 {
			start = 0
		}
		root = root[directoryEntries(root, name, i, start, len(content)):]
		copy(image[dataStart*sector+(next-firstCluster)*clusterSize:], content)
		for c := next; c < next+used; c++ {
			to := c + 1
			if to == next+used {
				to = endOfChain
			}
			link(fat, c, to)
		}
		next += used
	}
	copy(image[(fatStart+fatSectors)*sector:], fat)
	return image, nil
}

func bootSector(b []byte) {
	le := binary.LittleEndian
	copy(b, "\xeb\x3c\x90BRIG    ")
	le.PutUint16(b[11:], sector)
	b[13] = clusterSize / sector
	le.PutUint16(b[14:], fatStart)
	b[16] = 2 // file allocation tables
	le.PutUint16(b[17:], rootEntries)
	le.PutUint16(b[19:], sectors)
	b[21] = 0xf8 // a fixed disk
	le.PutUint16(b[22:], fatSectors)
	le.PutUint16(b[24:], 32) // sectors a track
	le.PutUint16(b[26:], 2)  // heads
	b[36], b[38] = 0x80, 0x29
	copy(b[39:], "brig"+"CIDATA     "+"FAT12   ")
	b[510], b[511] = 0x55, 0xaa
}

// link says which cluster comes after another: 12 bits each.
func link(fat []byte, cluster, next int) {
	at := cluster * 3 / 2
	old := binary.LittleEndian.Uint16(fat[at:])
	if cluster%2 == 0 {
		old = old&0xf000 | uint16(next)
	} else {
		old = old&0x000f | uint16(next)<<4
	}
	binary.LittleEndian.PutUint16(fat[at:], old)
}

// directoryEntries writes the entries of a file, those of its long name first, and
// gives their size.
func directoryEntries(to []byte, name string, number, cluster, size int) int {
	short := fmt.Sprintf("SEED%04d   ", number)
	sum := byte(0)
	for _, c := range []byte(short) {
		sum = sum>>1 | sum<<7
		sum += c
	}
	chars := utf16.Encode([]rune(name))
	count := (len(chars) + charsInName - 1) / charsInName
	if len(chars) < count*charsInName {
		chars = append(chars, 0)
	}
	for len(chars) < count*charsInName {
		chars = append(chars, 0xffff)
	}
	at := 0
	for n := count; n > 0; n-- {
		e := to[at : at+entrySize]
		e[0] = byte(n)
		if n == count {
			e[0] |= lastNameEntry
		}
		e[11], e[13] = attrLongName, sum
		for i, c := range chars[(n-1)*charsInName : n*charsInName] {
			place := 1 + 2*i
			switch {
			case i >= 11:
				place = 28 + 2*(i-11)
			case i >= 5:
				place = 14 + 2*(i-5)
			}
			binary.LittleEndian.PutUint16(e[place:], c)
		}
		at += entrySize
	}
	e := to[at : at+entrySize]
	copy(e, short)
	e[11] = attrFile
	binary.LittleEndian.PutUint16(e[24:], 0x21) // the first of January 1980
	binary.LittleEndian.PutUint16(e[18:], 0x21)
	binary.LittleEndian.PutUint16(e[16:], 0x21)
	binary.LittleEndian.PutUint16(e[26:], uint16(cluster))
	binary.LittleEndian.PutUint32(e[28:], uint32(size))
	return at + entrySize
}
