package webhook

import (
	"encoding/binary"
	"net/netip"
)

// forbidden4 are the IPv4 ranges of which none belongs to a server on the public
// internet (IANA's registry of special-purpose addresses), and addresses outside them
// at which clouds serve what only their own machines may know.
var forbidden4 = prefixes(
	"0.0.0.0/8",        // this network; 0.0.0.0 reaches this machine
	"10.0.0.0/8",       // private
	"100.64.0.0/10",    // behind a carrier's NAT; a cloud's metadata at 100.100.100.200
	"127.0.0.0/8",      // this machine
	"168.63.129.16/32", // Azure's platform, a public address that is none
	"169.254.0.0/16",   // link-local; most clouds' metadata at 169.254.169.254
	"172.16.0.0/12",    // private
	"192.0.0.0/24",     // protocol assignments; a cloud's metadata at 192.0.0.192
	"192.0.2.0/24",     // documentation
	"192.88.99.0/24",   // relays of 6to4, given up
	"192.168.0.0/16",   // private
	"198.18.0.0/15",    // benchmarks
	"198.51.100.0/24",  // documentation
	"203.0.113.0/24",   // documentation
	"224.0.0.0/4",      // multicast
	"240.0.0.0/4",      // reserved; broadcast
)

// Of IPv6 only global unicast is called, so that loopback, link-local, unique local
// (fd00:ec2::254 among them), multicast, IPv4-compatible addresses and whatever is
// assigned later are out without being named. forbidden6 lies inside it.
var (
	global6    = netip.MustParsePrefix("2000::/3")
	forbidden6 = prefixes(
		"2001::/23",     // protocol assignments: Teredo, benchmarks, ORCHID
		"2001:db8::/32", // documentation
		"3fff::/20",     // documentation
	)

	nat64  = netip.MustParsePrefix("64:ff9b::/96")
	sixTo4 = netip.MustParsePrefix("2002::/16")
)

func prefixes(texts ...string) []netip.Prefix {
	list := make([]netip.Prefix, len(texts))
	for i, text := range texts {
		list[i] = netip.MustParsePrefix(text)
	}
	return list
}

// IsPublic reports whether the address is one that anybody on the internet can reach. An
// IPv6 address that stands for an IPv4 one is judged by that.
func IsPublic(a netip.Addr) bool {
	a = a.Unmap().WithZone("")
	switch {
	case !a.IsValid():
		return false
	case a.Is4():
		return !within(a, forbidden4)
	case nat64.Contains(a):
		return IsPublic(embedded4(a, 12))
	case sixTo4.Contains(a):
		return IsPublic(embedded4(a, 2))
	}
	return global6.Contains(a) && !within(a, forbidden6)
}

// embedded4 returns the IPv4 address that begins at that byte.
func embedded4(a netip.Addr, at int) netip.Addr {
	bytes := a.As16()
	var four [4]byte
	binary.BigEndian.PutUint32(four[:], binary.BigEndian.Uint32(bytes[at:]))
	return netip.AddrFrom4(four)
}

func within(a netip.Addr, list []netip.Prefix) bool {
	for _, p := range list {
		if p.Contains(a) {
			return true
		}
	}
	return false
}
