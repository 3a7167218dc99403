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
