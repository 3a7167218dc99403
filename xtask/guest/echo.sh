# For test scripts: an echo server on one end of the cable and a client on the other, with proof
# that the bytes crossed.

# The server's words, then `--`, then the client's. SIZES, COUNT, CONNECTIONS and IN_FLIGHT say how
# much.
echo_over_the_wire() {
    local server_words=() pid status=0
    while [ "$1" != -- ]; do
        server_words+=("$1")
        shift
    done
    shift
    rm -f /tmp/port
    local before_out before_in before_packets
    before_out=$(wire_bytes tx) before_in=$(wire_bytes rx) before_packets=$(device_packets)

    echo_server --address "$REMOTE" --port "$PORT" --port-file /tmp/port --accept "$CONNECTIONS" \
        "${server_words[@]}" >/tmp/server.log 2>&1 &
    pid=$!
    echo_client --address "$REMOTE" --port-file /tmp/port --connections "$CONNECTIONS" \
        --sizes "$SIZES" --count "$COUNT" --in-flight "$IN_FLIGHT" "$@" || status=$?
    # After a failure of the client nobody may come any more.
    [ $status = 0 ] || kill $pid 2>/dev/null || true
    wait $pid || status=1
    if [ $status != 0 ]; then
        echo "--- the server's output" && cat /tmp/server.log
        return 1
    fi
    local payload crossed_out crossed_in packets
    payload=$(payload_bytes)
    crossed_out=$(($(wire_bytes tx) - before_out)) crossed_in=$(($(wire_bytes rx) - before_in))
    packets=$(($(device_packets) - before_packets))
    echo "crossed the wire: $payload bytes of messages each way;" \
        "$LOCAL_LINK sent $crossed_out and received $crossed_in bytes"
    [ $crossed_out -ge "$payload" ] && [ $crossed_in -ge "$payload" ] || return 1
    if [ "$DEVICE" = rxe ]; then
        echo "rdma statistic: $LOCAL_DEVICE sent $packets packets"
        [ $packets -ge $((payload / 4096)) ] || return 1
    fi
}

wire_bytes() { # tx or rx: what `ip -s link` shows
    cat "/sys/class/net/$LOCAL_LINK/statistics/$1_bytes"
}

device_packets() { # siw has no counters
    if [ "$DEVICE" = rxe ]; then
        rdma statistic show link "$LOCAL_DEVICE/1" | grep -o 'sent_pkts [0-9]*' | cut -d' ' -f2
    else
        echo 0
    fi
}

payload_bytes() { # of all messages, each way
    local size sum=0
    for size in ${SIZES//,/ }; do
        case $size in
        *KiB) size=$((${size%KiB} << 10)) ;;
        *MiB) size=$((${size%MiB} << 20)) ;;
        esac
        sum=$((sum + size))
    done
    echo $((sum * COUNT * CONNECTIONS))
}
