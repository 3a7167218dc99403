# devices: rxe siw
# timeout: 360
# long: 600
# stage: interop
# uses: samba
#
# One session over two RDMA connections: the kernel's client binds a second channel to its session in
# Samba, each through a device of its own and an address of its own of the gateway.
#
# As the guest's kernel is built, without CONFIG_CIFS_DFS_UPCALL, Linux 6.12's client opens further
# channels only when its first connection has come again: hence the gateway is restarted first.
# It may have three, and Samba tells of a third interface, 127.0.0.1: that one has no RDMA, and the
# client joins none without to a session over RDMA.
set -e
. "$REPO/xtask/guest/samba.sh"
. "$REPO/xtask/guest/gateway.sh"
. "$REPO/xtask/guest/mount.sh"
. "$REPO/xtask/guest/second-wire.sh"
PEER="cifs, gateway, Samba" USERNAME=root MEASURE=by_gateway
PROVIDER="gateway on verbs, cifs on $DEVICE"
second_wire
rdma_of() { echo "\"$1;speed=10000000000,capability=RDMA\""; }
start_samba "server multi channel support = yes
    interfaces = lo $(rdma_of "$REMOTE") $(rdma_of "$REMOTE_2")"
STORE=$SAMBA_SHARE

start() { start_gateway --provider verbs --listen "$REMOTE_2"; }
have_two() { grep -q 'Extra Channels: 1' /proc/fs/cifs/DebugData; }
second_channel() {
    local i
    mount_share /mnt/a rdma,cache=none,hard,echo_interval=2,multichannel,max_channels=3
    stop_gateway TERM
    start
    for ((i = 0; i < 60; i++)); do
        # What makes the client connect again may fail meanwhile.
        ls /mnt/a >/dev/null 2>&1 || true
        ! have_two || break
        sleep 1
    done
    have_two
    grep -E 'ConnectionId|IPv4|Allocated' /proc/fs/cifs/DebugData
}
data_by_both() {
    copies /mnt/a 0 1 4095 4096 1048577 ${LONG:+256m}
    random_mix /mnt/a ${LONG:+3}2m
    have_two
    grep -A2 'Capabilities: None' /proc/fs/cifs/DebugData | grep -q 'IPv4: 127.0.0.1'
    unmount /mnt/a
}

start
scenario "second RDMA channel" 150 second_channel
scenario "data over two channels" 200 data_by_both
stop_gateway TERM
# Of the second gateway, whose log only the scenario's shell knows.
grep -h '"end"' /tmp/gateway.*.log | tee /tmp/ended
# Each of the two devices has placed data both ways.
for device in "${DEVICE}1" "${DEVICE}3"; do
    grep "\"device\":\"$device\"" /tmp/ended | grep '"placed_reads":[1-9]' | grep -q '"placed_writes":[1-9]'
done
