# devices: rxe siw
# timeout: 420
# long: 1800
# stage: interop
# uses: samba
#
# The kernel's client mounts Samba through the gateway, with RDMA: on the kernel's devices, and with
# the gateway on the software iWARP against soft-iWARP.
set -e
. "$REPO/xtask/guest/samba.sh"
. "$REPO/xtask/guest/gateway.sh"
. "$REPO/xtask/guest/wire-capture.sh"
. "$REPO/xtask/guest/mount.sh"
PEER="cifs, gateway, Samba" USERNAME=root
small="0 1 4095 4096 1048577"
start_samba
STORE=$SAMBA_SHARE

# A session whose two ends say what carries it: RDMA the client, TCP the server.
two_views() { # options
    mount_share /mnt/a "$1"
    by_rdma
    [ "$(connections all)" = 1 ]
    smbstatus -s /tmp/samba/smb.conf -p
    smbstatus -s /tmp/samba/smb.conf -p | grep -q 'ipv4:127.0.0.1:'
    ss -Htn 'sport = :445' | grep -q '127.0.0.1:445'
    copies /mnt/a $small
    unmount /mnt/a
}

sessions_of() { # provider of the gateway
    PROVIDER="gateway on $1, cifs on $DEVICE"
    start_gateway --provider "$1"
    MEASURE=by_capture
    scenario "session" 60 two_views cache=none,rdma
    [[ $PLACED -ge 2097154 && $MESSAGES -lt 200000 ]]
    negotiated 1364 173910 1364 1048576
    # Nothing is placed in signed sessions.
    scenario "signed session" 90 session /mnt/a rdma,cache=none,sign $small
    [[ $PLACED = 0 && $MESSAGES -ge 2097154 ]]
    negotiated 1364 173910 1364 1048576
    MEASURE=by_gateway
    mount_share /mnt/a rdma,cache=none
    scenario "random mix" 300 random_mix /mnt/a ${LONG:+3}2m
    unmount /mnt/a
    [ -z "$LONG" ] || at_length
    stop_gateway TERM
    grep '"end"' "$GATEWAY_LOG"
}

at_length() {
    mount_share /mnt/a rdma,cache=none
    scenario "copies" 300 copies /mnt/a 1m 256m
    unmount /mnt/a
    scenario "signed copies" 300 session /mnt/a rdma,cache=none,sign 16m
    mount_share /mnt/a rdma
    scenario "source tree" 200 source_tree /mnt/a src xtask examples tests
    unmount /mnt/a
    scenario "4 mounts at once" 200 sessions 4 rdma,cache=none $small 16m
}

sessions_of verbs
[ "$DEVICE" != siw ] || sessions_of iwarp
