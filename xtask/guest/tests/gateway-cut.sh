# devices: rxe siw
# timeout: 400
# form: long
# stage: interop
# uses: samba
#
# The link is cut for good amid transfers, as far as the gateway can tell: its connection ends with a
# reason, all that belonged to it is released, and once the link is there again clients are served
# as before. Soft-RoCE gives up by itself; of soft-iWARP's TCP only the keepalive learns anything,
# after its 120 s and 5 s.
#
# The client is not the kernel's: on soft-RoCE that of Linux 6.12 hangs after such a cut.
set -e
. "$REPO/xtask/guest/samba.sh"
. "$REPO/xtask/guest/gateway.sh"
. "$REPO/xtask/guest/mount.sh"
. "$REPO/xtask/guest/link.sh"
PEER="smb2 over SMB Direct, gateway, Samba" PROVIDER="verbs on $DEVICE" MEASURE=by_gateway
start_samba

client() { # sizes, further options
    smb-client --provider verbs --user guest --sizes "$1" --together 0 "${@:2}" "$REMOTE:$PORT"
}
objects() { # what there is on the gateway's device, by kind; and its connections to Samba
    local kind
    for kind in qp mr pd cq; do
        printf '%s %s, ' $kind "$(rdma resource show $kind | grep -cE "(link|dev) $REMOTE_DEVICE\b")"
    done
    printf 'tcp %s\n' "$(ss -Htn 'dport = :445' | grep -c ESTAB)"
}
ended() { # how many connections; seconds to wait for so many
    local i
    for ((i = 0; i < $2; i++)); do
        [ "$(grep -c '"end"' "$GATEWAY_LOG")" -lt "$1" ] || return 0
        sleep 1
    done
    return 1
}
released() { # what there was before
    local i
    for ((i = 0; i < 20; i++)); do
        [ "$(objects)" != "$1" ] || return 0
        sleep 1
    done
    return 1
}

cut_amid_transfers() {
    local before pid
    before=$(objects)
    client 64MiB,64MiB+1,64MiB+2,64MiB+3 --ways v1 >/tmp/client.log 2>&1 &
    pid=$!
    sleep 4
    kill -0 $pid
    echo "before: $before; amid: $(objects)"
    cut_link
    # Nothing but the gateway's own means ends its side.
    ended 2 170
    grep '"end"' "$GATEWAY_LOG" | tail -1
    released "$before"
    mend_link
    echo "after: $(objects)"
    # The client has failed as well.
    if wait $pid; then return 1; fi
    tail -1 /tmp/client.log
}

start_gateway --provider verbs
# What the first client leaves for the next one is there then.
client 1MiB
ended 1 20
scenario "link cut for good amid transfers" 240 cut_amid_transfers
[[ $PLACED -gt 0 ]]
grep '"end"' "$GATEWAY_LOG" | sed -n 2p | grep -vq 'closed by the client'
scenario "clients after the cut" 100 client 1,4096,1MiB+1,16MiB
stop_gateway TERM
