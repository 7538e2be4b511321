package diskfile

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"io"
)

// The firmwares that start a disk.
const (
	BIOS = "bios"
	UEFI = "uefi"
)

// Types of GPT partitions, as they are on disk.
const (
	guidESP  = "28732ac11ff8d211ba4b00a0c93ec93b"
	guidBoot = "4861682149646f6e744e656564454649"
)

const (
	bootCode   = 440 // bytes of an MBR
	typeESP    = 0xef
	typeGPT    = 0xee
	maxEntries = 256
)

// Firmware tells which firmware starts the raw disk r of size bytes; empty: none
// does. A disk that both start is given to the BIOS, which needs nothing else.
func Firmware(r io.ReaderAt, size int64) (string, error) {
	mbr, err := at(r, 0, min(size, sector))
	if err != nil {
		return "", err
	}
	if len(mbr) < sector || mbr[510] != 0x55 || mbr[511] != 0xaa {
		return "", nil
	}
	code := !bytes.Equal(mbr[:bootCode], make([]byte, bootCode))
	esp, gpt := false, false
	for i := range 4 {
		switch mbr[446+i*16+4] {
		case typeESP:
			esp = true
		case typeGPT:
			gpt = true
		}
	}
	bios := code
	if gpt {
		types, err := gptTypes(r)
		if err != nil {
			return "", err
		}
		esp = types[guidESP]
		bios = code && (types[guidBoot] || !esp)
	}
	switch {
	case bios:
		return BIOS, nil
	case esp:
		return UEFI, nil
	}
	return "", nil
}

// gptTypes are the types of partitions that a GPT has.
func gptTypes(r io.ReaderAt) (map[string]bool, error) {
	types := map[string]bool{}
	h, err := at(r, sector, 92)
	if err != nil || len(h) < 92 || !bytes.HasPrefix(h, []byte("EFI PART")) {
		return types, err
	}
	first := binary.LittleEndian.Uint64(h[72:])
	count, size := binary.LittleEndian.Uint32(h[80:]), binary.LittleEndian.Uint32(h[84:])
	if first > maxSize/sector || count > maxEntries || size < 128 || size > 4096 {
		return types, nil
	}
	table, err := at(r, int64(first)*sector, int64(count)*int64(size))
	if err != nil {
		return nil, err
	}
	for ; len(table) >= int(size); table = table[size:] {
		types[hex.EncodeToString(table[:16])] = true
	}
	return types, nil
}
