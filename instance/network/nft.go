package network

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// The table is written as a whole, in one transaction. In nft's words:
//
//	table ip brig {
//		chain prerouting {
//			type filter hook prerouting priority raw
//			iifname "brig0" ip saddr != SUBNET drop
//		}
//		chain forward {
//			type filter hook forward priority filter
//			oifname "brig0" iifname != "brig0" ct state != { established, related } ct status ! dnat drop
//		}
//		chain postrouting {
//			type nat hook postrouting priority srcnat
//			ip saddr SUBNET oifname != "brig0" masquerade
//		}
//	}
//
// So a guest cannot send from an address outside of the subnet, and nobody
// outside reaches a guest unasked, although the host forwards, except by a rule
// of the administrator that translates the destination.

// statusDNAT is the conntrack status bit of a translated destination
// (IPS_DST_NAT in linux/netfilter/nf_conntrack_common.h).
const statusDNAT = 1 << 5

func (n *Network) nftTable() *nftables.Table {
	return &nftables.Table{Name: n.table, Family: nftables.TableFamilyIPv4}
}

// writeTable makes the table, or makes it anew.
func (n *Network) writeTable(subnet netip.Prefix) error {
	conn, err := nftables.New(nftables.AsLasting())
	if err != nil {
		return fmt.Errorf("cannot reach nftables: %w", classify(err))
	}
	defer conn.CloseLasting()
	table := n.nftTable()
	if n.hasTable() {
		conn.DelTable(table)
	}
	conn.AddTable(table)
	chain := func(name string, kind nftables.ChainType, hook *nftables.ChainHook, priority *nftables.ChainPriority, rule ...[]expr.Any) {
		c := conn.AddChain(&nftables.Chain{Name: name, Table: table, Type: kind, Hooknum: hook, Priority: priority})
		var exprs []expr.Any
		for _, part := range rule {
			exprs = append(exprs, part...)
		}
		conn.AddRule(&nftables.Rule{Table: table, Chain: c, Exprs: exprs})
	}
	chain("prerouting", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityRaw,
		ifname(expr.MetaKeyIIFNAME, expr.CmpOpEq, n.bridge), source(expr.CmpOpNeq, subnet), verdict(expr.VerdictDrop))
	chain("forward", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityFilter,
		ifname(expr.MetaKeyOIFNAME, expr.CmpOpEq, n.bridge), ifname(expr.MetaKeyIIFNAME, expr.CmpOpNeq, n.bridge),
		without(expr.CtKeySTATE, expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED),
		without(expr.CtKeySTATUS, statusDNAT), verdict(expr.VerdictDrop))
	chain("postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource,
		source(expr.CmpOpEq, subnet), ifname(expr.MetaKeyOIFNAME, expr.CmpOpNeq, n.bridge), []expr.Any{&expr.Masq{}})
	return nftError("write", n.table, conn.Flush())
}

// deleteTable removes the table if there is one.
func (n *Network) deleteTable() error {
	if !n.hasTable() {
		return nil
	}
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("cannot reach nftables: %w", classify(err))
	}
	conn.DelTable(n.nftTable())
	err = conn.Flush()
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return nftError("delete", n.table, err)
}

// hasTable tells whether the table is there. It is whole if so.
func (n *Network) hasTable() bool {
	conn, err := nftables.New()
	if err != nil {
		return false
	}
	_, err = conn.ListTableOfFamily(n.table, nftables.TableFamilyIPv4)
	return err == nil
}

// nftError says what failed. A kernel in which a part of nftables is missing
// answers that something does not exist.
func nftError(verb, table string, err error) error {
	if errors.Is(err, unix.ENOENT) {
		err = errors.Join(unix.EOPNOTSUPP, err)
	}
	if err != nil {
		return fmt.Errorf("cannot %s the nftables table %q: %w", verb, table, classify(err))
	}
	return nil
}

// Hindrance tells what in the host's firewall keeps instances from the outside
// although the network is up, and what to do; it is empty if nothing does. Other
// tables are not brig's to change: a packet has to be let through by all of
// them.
func (n *Network) Hindrance() (string, error) {
	conn, err := nftables.New()
	if err != nil {
		return "", fmt.Errorf("cannot reach nftables: %w", classify(err))
	}
	chains, err := conn.ListChains()
	if err != nil {
		return "", fmt.Errorf("cannot read the host's firewall: %w", classify(err))
	}
	docker := false
	var dropping *nftables.Chain
	for _, c := range chains {
		family := c.Table.Family
		if family != nftables.TableFamilyIPv4 && family != nftables.TableFamilyINet {
			continue
		}
		docker = docker || c.Name == "DOCKER-USER"
		if c.Hooknum != nil && *c.Hooknum == *nftables.ChainHookForward && c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop {
			dropping = c
		}
	}
	if dropping == nil {
		return "", nil
	}
	chain := "FORWARD"
	if docker {
		chain = "DOCKER-USER"
	}
	return fmt.Sprintf("the host's firewall (table %q, chain %q) drops what it does not know; if instances cannot reach the outside: "+
		"iptables -I %s -i %s -j ACCEPT; iptables -I %s -o %s -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
		dropping.Table.Name, dropping.Name, chain, n.bridge, chain, n.bridge), nil
}

// ifname compares the name of an interface of the packet.
func ifname(key expr.MetaKey, op expr.CmpOp, name string) []expr.Any {
	data := make([]byte, unix.IFNAMSIZ)
	copy(data, name)
	return []expr.Any{
		&expr.Meta{Key: key, Register: 1},
		&expr.Cmp{Op: op, Register: 1, Data: data},
	}
}

// source compares the network of the packet's source address.
func source(op expr.CmpOp, subnet netip.Prefix) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: net.CIDRMask(subnet.Bits(), 32), Xor: make([]byte, 4)},
		&expr.Cmp{Op: op, Register: 1, Data: subnet.Addr().AsSlice()},
	}
}

// without matches packets whose connection has none of the bits.
func without(key expr.CtKey, bits uint32) []expr.Any {
	mask := binary.NativeEndian.AppendUint32(nil, bits)
	return []expr.Any{
		&expr.Ct{Key: key, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: mask, Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: make([]byte, 4)},
	}
}

func verdict(kind expr.VerdictKind) []expr.Any { return []expr.Any{&expr.Verdict{Kind: kind}} }
