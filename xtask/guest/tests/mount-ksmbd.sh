# devices: rxe siw
# timeout: 1200
# form: long
# stage: interop
#
# The kernel's client on the kernel's server. What it does there over SMB Direct is the control for
# what it does on a gateway. At last over the gateway with ksmbd on TCP behind it.
set -e
. "$REPO/xtask/guest/ksmbd.sh"
. "$REPO/xtask/guest/wire-capture.sh"
. "$REPO/xtask/guest/gateway.sh"
. "$REPO/xtask/guest/mount.sh"
PEER="cifs and ksmbd" PROVIDER="kernel, $DEVICE" STORE=/srv/share USERNAME=test
small="0 1 4095 4096 1048577"
start_ksmbd

MEASURE=by_capture
scenario "session" 90 session /mnt/a rdma,cache=none $small
[[ $PLACED -ge 2097154 && $MESSAGES -lt 200000 ]]
negotiated 1364 173910 1364 173910
# Nothing is placed in signed sessions.
scenario "signed session" 90 session /mnt/a rdma,cache=none,sign $small
[[ $PLACED = 0 && $MESSAGES -ge 2097154 ]]
negotiated 1364 173910 1364 173910
MEASURE=
mount_share /mnt/a rdma,cache=none
scenario "SMB Direct 1.0" 10 by_rdma
scenario "copies" 300 copies /mnt/a 1m 256m
scenario "random mix" 300 random_mix /mnt/a 32m
unmount /mnt/a
mount_share /mnt/a rdma
scenario "source tree" 200 source_tree /mnt/a src xtask examples tests
unmount /mnt/a
scenario "4 mounts at once" 200 sessions 4 rdma,cache=none $small 16m

# The client tries port 5445 first. On soft-iWARP that is ksmbd's own.
if [ "$DEVICE" != rxe ]; then
    ksmbd.control -s
    exit
fi
PEER="cifs, gateway, ksmbd" PROVIDER="gateway on verbs, cifs on rxe" MEASURE=by_gateway
BACKEND=$REMOTE LISTEN=$REMOTE:5445
start_gateway
scenario "session" 90 session /mnt/a rdma,cache=none $small 16m
[[ $PLACED -ge 35651586 ]]
mount_share /mnt/a rdma,cache=none
scenario "random mix" 300 random_mix /mnt/a 32m
unmount /mnt/a
stop_gateway TERM
ksmbd.control -s
