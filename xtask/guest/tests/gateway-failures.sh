# devices: rxe siw
# timeout: 300
# long: 900
# stage: interop
# uses: samba
#
# Mounts through the gateway survive, with the data right, what ends or disturbs their connection: the
# gateway is stopped or killed and started again, the server behind it is killed, the link is cut. And
# they do not mind that others are refused, who learn it at once and may come later.
set -e
# The short form: once is enough.
[ "$DEVICE" = rxe ] || [ -n "$LONG" ] || exit 0
. "$REPO/xtask/guest/samba.sh"
. "$REPO/xtask/guest/gateway.sh"
. "$REPO/xtask/guest/mount.sh"
. "$REPO/xtask/guest/link.sh"
PEER="cifs, gateway, Samba" USERNAME=root MEASURE=by_gateway
start_samba
STORE=$SAMBA_SHARE
# Why connections ended, should one be too many.
trap 'grep -hs "\"end\"" /tmp/gateway.*.log || true' EXIT

reconnected() {
    dmesg | grep -c 'CIFS: VFS: RDMA transport re-established' || true
}

# Random writes and reads of a file that something happens to. The writes are slow enough to be under
# way then, and are verified afterwards. Of reads past the cache that are in flight when a connection
# ends, Linux 6.12's client tells EAGAIN, over TCP as well: they are made again.
during() { # reconnects or stays: whether a new connection is needed; what happens
    local before writes reads
    mount_share /mnt/a rdma,cache=none,hard${OPTIONS:+,$OPTIONS}
    head -c 3m /dev/urandom >/tmp/file
    cp /tmp/file /mnt/a/file
    before=$(reconnected)
    rm -f /tmp/enough
    random_mix /mnt/a 4m --rw=randwrite --rate=,400k --verify_backlog=0 &
    writes=$!
    read_on /mnt/a/file &
    reads=$!
    sleep 4
    kill -0 $writes $reads
    echo "--- ${*:2}" | tee /dev/kmsg
    "${@:2}"
    wait $writes
    touch /tmp/enough
    wait $reads
    cmp /tmp/file /mnt/a/file
    rm /mnt/a/file
    echo "connections that came in its place: $(($(reconnected) - before))"
    [ "$1" = stays ] || [ "$(reconnected)" -gt "$before" ]
    unmount /mnt/a
}

read_on() { # file
    local status reads=0 repeated=0
    while [ ! -e /tmp/enough ]; do
        status=0
        cmp /tmp/file "$1" 2>/dev/null || status=$?
        case $status in
        0) reads=$((reads + 1)) ;;
        1) return 1 ;;
        *) repeated=$((repeated + 1)) ;;
        esac
    done
    echo "$reads reads of the file, $repeated that had to be made again"
    [ $reads -gt 0 ]
}

# Requests that the client waits for.
waited_for() { sed -n '/MIDs:/,$p' /proc/fs/cifs/DebugData | grep -c 'State: 2 '; }

# Linux 6.12's client hangs for good if its connection ends while one of its Sends is under way: it
# waits for the Send's success, with its lock held. Whoever is killed cannot spare it that. So the
# server stops first, with requests that it owes answers to, and then those who make requests.
gateway_again() {
    pkill -STOP smbd
    sleep 1
    pkill -STOP -x 'fio|cmp'
    sleep 1
    echo "requests without an answer: $(waited_for)"
    [ "$(waited_for)" -gt 0 ]
    stop_gateway KILL
    pkill -CONT smbd
    sleep 1
    start_gateway $provider
    pkill -CONT -x 'fio|cmp'
}
gateway_in_order() {
    stop_gateway TERM
    start_gateway $provider
}
samba_again() {
    pkill -KILL smbd
    sleep 1
    run_samba
}
no_place() {
    mount_share /mnt/a rdma,cache=none
    if mount_share /mnt/b rdma,cache=none,nosharesock; then
        echo "a mount for which there is no place"
        return 1
    fi
    grep '"limit":"--max-connections"' "$GATEWAY_LOG"
    copies /mnt/a 1 1048577
    unmount /mnt/a
    # The gateway may have to be told yet.
    sleep 1
    mount_share /mnt/b rdma,cache=none,nosharesock
    copies /mnt/b 1 1048577
    unmount /mnt/b
}
link_cut() { # seconds
    cut_link
    sleep "$1"
    mend_link
}

failures() { # provider of the gateway
    provider="--provider $1"
    PROVIDER="gateway on $1, cifs on $DEVICE"
    start_gateway $provider
    scenario "gateway stopped and restarted" 150 during reconnects gateway_in_order
    scenario "gateway killed and restarted" 150 during reconnects gateway_again
    [ -z "$LONG" ] || at_length "$1"
    stop_gateway TERM
    start_gateway $provider --max-connections 1
    scenario "no place for a second mount" 100 no_place
    stop_gateway TERM
}
at_length() { # provider of the gateway
    local OPTIONS=echo_interval=2
    scenario "Samba killed and restarted" 150 during reconnects samba_again
    # On soft-RoCE the client ends its connection itself, within two seconds of a cut or after it, and
    # then hangs, also with `ksmbd`.
    if [ "$DEVICE" = siw ]; then
        scenario "link cut for 5 s" 150 during stays link_cut 5
        scenario "link cut for 20 s" 150 during stays link_cut 20
    fi
}

failures verbs
[ "$DEVICE" != siw ] || failures iwarp
