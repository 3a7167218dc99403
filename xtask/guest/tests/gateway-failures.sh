# devices: rxe siw
# timeout: 240
# long: 900
# stage: interop
# uses: samba
#
# Mounts through the gateway survive, with the data right, what ends their connection: the gateway is
# killed and started again, the server behind it is, the link is cut and restored.
set -e
. "$REPO/xtask/guest/samba.sh"
. "$REPO/xtask/guest/gateway.sh"
. "$REPO/xtask/guest/mount.sh"
. "$REPO/xtask/guest/link.sh"
PEER="cifs, gateway, Samba" USERNAME=root MEASURE=by_gateway
start_samba
STORE=$SAMBA_SHARE

reconnected() {
    dmesg | grep -c 'CIFS: VFS: RDMA transport re-established' || true
}

# Random writes and reads of a file that something happens to. The writes are slow enough to be under
# way then, and are verified afterwards. Of reads past the cache that are in flight when a connection
# ends, Linux 6.12's client tells EAGAIN, over TCP as well: they are made again.
during() { # reconnects or stays: whether a new connection is needed; what happens
    local before writes reads
    mount_share /mnt/a rdma,cache=none,hard,echo_interval=2
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

gateway_again() {
    stop_gateway KILL
    sleep 1
    start_gateway $provider
}
samba_again() {
    pkill -KILL smbd
    run_samba
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
    scenario "gateway killed and restarted" 150 during reconnects gateway_again
    [ -z "$LONG" ] || at_length "$1"
    stop_gateway TERM
}
at_length() { # provider of the gateway
    # The client comes back at once and again and again while there is no Samba; Linux 6.12's has
    # crashed in that: no oftener than needed.
    [ "$1" = iwarp ] || scenario "Samba killed and restarted" 150 during reconnects samba_again
    if [ "$DEVICE" = rxe ]; then
        # Longer than soft-RoCE tries again, and the connection ends. Linux 6.12's client then hangs,
        # with ksmbd as well.
        scenario "link cut for 1 s" 150 during stays link_cut 1
    else
        scenario "link cut for 5 s" 150 during stays link_cut 5
        scenario "link cut for 20 s" 150 during stays link_cut 20
    fi
}

# The short form: once is enough.
[ "$DEVICE" = rxe ] || [ -n "$LONG" ] || exit 0
failures verbs
[ "$DEVICE" != siw ] || failures iwarp
