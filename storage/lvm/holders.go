package lvm

import (
	"cmp"

	"brig/storage/holders"
)

// number gives the device number of an active logical volume.
func (p *Pool) number(id string) (uint64, bool) {
	dev, _, err := dmNumber(dmName(p.vg, p.lvName(id)))
	return dev, err == nil
}

// mountedElsewhere tells whether a logical volume is mounted where an instance uses
// it, and not just where this driver mounts it, of which every mount namespace made
// since then has a copy.
func (p *Pool) mountedElsewhere(id string) bool {
	dev, active := p.number(id)
	if !active {
		return false
	}
	elsewhere := func(m holders.Mount) bool { return m.Device == dev && m.Point != p.mountPoint(id) }
	return len(holders.Namespaces(elsewhere)) > 0
}

// inUse is the end of a sentence about a logical volume that somebody has mounted,
// or has open.
func (p *Pool) inUse(id string) string {
	dev, active := p.number(id)
	if !active {
		return "is in use by nobody any more"
	}
	list := holders.Namespaces(func(m holders.Mount) bool { return m.Device == dev })
	if len(list) == 0 {
		list = holders.On(dev)
	}
	return "is in use" + cmp.Or(holders.By(list), " by the kernel or a program that is ending")
}
