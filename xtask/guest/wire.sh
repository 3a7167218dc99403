# Run by session.sh (bash -e) in a single guest: two addresses of this machine with a real wire
# between them.
#
# v0 and v1 are the ends of a virtual cable. A packet from one own address to another would normally
# take the short way over `lo`; policy routing sends it through the cable instead, so that captures,
# counters and faults (tc netem) are those of a network. rdma_cm's server side looks up the route
# back by the device that received: hence the rules with iif (IPv4) and oif (IPv6) v0 and v1.
mtu=4500 # room for RoCE's largest path MTU, 4096
mac=02:00:00:00:00:0
ip link add v0 mtu $mtu address ${mac}1 type veth peer name v1 mtu $mtu address ${mac}2
sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv6.conf.all.accept_dad=0

end() { # device, last digit of the peer's MAC, own address, peer's, own IPv6 address, peer's
    local v4=net.ipv4.conf.$1 v6=net.ipv6.conf.$1
    sysctl -qw "$v4.accept_local=1" "$v4.rp_filter=0" "$v4.arp_ignore=1"
    sysctl -qw "$v6.accept_dad=0" "$v6.accept_ra=0"
    ip link set "$1" up
    ip addr add "$3/24" dev "$1"
    ip addr add "$5/64" dev "$1" nodad
    ip neigh replace "$4" lladdr $mac$2 dev "$1"
    ip neigh replace "$6" lladdr $mac$2 dev "$1"
}
route() { # device, own address, peer's address, family, table
    ip "$4" route add "$3" dev "$1" src "$2" table "$5"
    ip "$4" rule add pref 10 iif lo to "$3" lookup "$5"
    ip "$4" rule add pref 10 iif "$1" to "$3" lookup "$5"
    ip "$4" rule add pref 10 oif "$1" to "$3" lookup "$5"
}
end v0 2 "$LOCAL" "$REMOTE" "$LOCAL6" "$REMOTE6"
end v1 1 "$REMOTE" "$LOCAL" "$REMOTE6" "$LOCAL6"
route v0 "$LOCAL" "$REMOTE" -4 101
route v1 "$REMOTE" "$LOCAL" -4 102
route v0 "$LOCAL6" "$REMOTE6" -6 101
route v1 "$REMOTE6" "$LOCAL6" -6 102
for family in -4 -6; do
    # The table of own addresses is asked after our rules, not before them.
    ip $family rule add pref 100 lookup local
    ip $family rule del pref 0
done
rdma link add "$LOCAL_DEVICE" type "$DEVICE" netdev v0
rdma link add "$REMOTE_DEVICE" type "$DEVICE" netdev v1
