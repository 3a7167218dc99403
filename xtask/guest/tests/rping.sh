# devices: rxe siw
# timeout: 180
# stage: interop
#
# The bed itself: the kernel's RDMA devices talk to each other over the wire, IPv4 and IPv6, and the
# bytes cross it.
set -e
sent() { cat /sys/class/net/v0/statistics/tx_bytes; }
for address in "$REMOTE" "$REMOTE6"; do
    before=$(sent)
    timeout 30 rping -s -a "$address" -C 20 -S 4096 &
    server=$!
    sleep 1
    timeout 30 rping -c -a "$address" -C 20 -S 4096
    # The server side may wait for the next request when the client has gone.
    kill $server 2>/dev/null || true
    wait $server || true
    crossed=$(($(sent) - before))
    echo "$DEVICE $address: $crossed bytes over v0"
    [ $crossed -gt 80000 ]
done

# A provider of ours on either side: on soft-iWARP the one in user space, over the same TCP.
case $DEVICE in
rxe) provider=verbs ;;
siw) provider=iwarp ;;
esac
port=7200
for size in 64 1000 4096 65535; do
    port=$((port + 1))
    timeout 60 rping -s -a "$REMOTE" -p $port -S $size -C 100 &
    server=$!
    # Nothing may connect to siw's listener to find out whether it is there.
    until rdma resource show cm_id | grep -q "src-addr $REMOTE:$port .*LISTEN\|$REMOTE:$port.*LISTEN\|LISTEN.*$REMOTE:$port"; do
        kill -0 $server
        sleep 0.1
    done
    timeout 60 rping_peer client $provider "$REMOTE:$port" $size 100
    kill $server 2>/dev/null || true
    wait $server || true

    port=$((port + 1))
    timeout 60 rping_peer server $provider "$REMOTE:$port" $size 100 >/tmp/rping.log 2>&1 &
    server=$!
    until grep -q listening /tmp/rping.log; do
        kill -0 $server || cat /tmp/rping.log
        sleep 0.1
    done
    timeout 60 rping -c -a "$REMOTE" -I "$LOCAL" -p $port -S $size -C 100 -V
    wait $server || { cat /tmp/rping.log && false; }
    tail -n 1 /tmp/rping.log
done
