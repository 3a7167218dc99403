# For test scripts: a second cable like that of wire.sh, v2 <-> v3, with a device on each end:
# 10.0.2.1 on ${DEVICE}2 and 10.0.2.2 on ${DEVICE}3 ($REMOTE_2). It goes with the script.

REMOTE_2=10.0.2.2

second_wire() {
    local mac=02:00:00:00:01:0
    ip link add v2 mtu 4500 address ${mac}1 type veth peer name v3 mtu 4500 address ${mac}2
    trap no_second_wire EXIT
    second_end v2 2 10.0.2.1 $REMOTE_2 103
    second_end v3 1 $REMOTE_2 10.0.2.1 104
    rdma link add "${DEVICE}2" type "$DEVICE" netdev v2
    rdma link add "${DEVICE}3" type "$DEVICE" netdev v3
}

second_end() { # interface, last digit of the peer's MAC, own address, peer's, table
    local v4=net.ipv4.conf.$1 from
    sysctl -qw "$v4.accept_local=1" "$v4.rp_filter=0" "$v4.arp_ignore=1"
    ip link set "$1" up
    ip addr add "$3/24" dev "$1"
    ip neigh replace "$4" lladdr 02:00:00:00:01:0$2 dev "$1"
    ip route add "$4" dev "$1" src "$3" table "$5"
    for from in "iif lo" "iif $1" "oif $1"; do
        ip rule add pref 11 $from to "$4" lookup "$5"
    done
}

no_second_wire() {
    while ip rule del pref 11 2>/dev/null; do :; done
    rdma link del "${DEVICE}2" || true
    rdma link del "${DEVICE}3" || true
    ip link del v2 || true
}
