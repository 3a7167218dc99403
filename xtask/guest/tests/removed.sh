# devices: rxe siw
# timeout: 240
#
# RDMA devices are deleted amid transfers while the process goes on, and added again: what is on them
# ends with that as the reason and is given back, what is on others goes on, and so does a listener
# that is on several.
set -e
export THIRD=10.0.9.1 THIRD_LINK=d0 THIRD_DEVICE=${DEVICE}2
ip link add $THIRD_LINK mtu 4500 type dummy
ip link set $THIRD_LINK up
ip addr add $THIRD/24 dev $THIRD_LINK
rdma link add $THIRD_DEVICE type $DEVICE netdev $THIRD_LINK
status=0
removed --nocapture || status=$?
rdma link
ip link del $THIRD_LINK
exit $status
