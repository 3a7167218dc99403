# Run by session.sh (bash -e) in each guest of a pair: its addresses and, if asked for, its RDMA
# device on the link.
ip link set eth0 mtu 4500 up
sysctl -qw net.ipv6.conf.eth0.accept_dad=0 net.ipv6.conf.eth0.accept_ra=0
ip addr add "$LOCAL/24" dev eth0
ip addr add "$LOCAL6/64" dev eth0 nodad
[ -z "$DEVICE" ] || rdma link add "$LOCAL_DEVICE" type "$DEVICE" netdev eth0
