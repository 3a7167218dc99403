# For test scripts: the gateway on $LISTEN ($REMOTE unless set) in front of a server on TCP, $BACKEND
# (127.0.0.1).

# An earlier script's are not counted.
rm -f /tmp/gateway.*.log

start_gateway() { # words
    local number i
    number=$(ls /tmp/gateway.*.log 2>/dev/null | wc -l)
    GATEWAY_LOG=/tmp/gateway.$number.log
    rm -f /tmp/gateway.port
    gateway --listen "${LISTEN:-$REMOTE}" --backend "${BACKEND:-127.0.0.1}" --stats 1 --json \
        --port-file /tmp/gateway.port "$@" >"$GATEWAY_LOG" 2>&1 &
    # Scenarios run in shells of their own: they must find it too.
    echo $! >/tmp/gateway.pid
    # Its end is no news to the shell.
    disown
    for ((i = 0; i < 100; i++)); do
        [ -s /tmp/gateway.port ] && return 0
        sleep 0.1
    done
    echo "the gateway does not listen" >&2
    cat "$GATEWAY_LOG" >&2
    return 1
}

stop_gateway() { # TERM, or KILL; waits for its end
    local pid i
    pid=$(cat /tmp/gateway.pid)
    kill -"$1" "$pid"
    for ((i = 0; i < 200; i++)); do
        kill -0 "$pid" 2>/dev/null || return 0
        sleep 0.1
    done
    echo "the gateway does not end on SIG$1" >&2
    return 1
}

# For $MEASURE: what all gateways have counted.
by_gateway() { # start or stop
    local placed messages log
    # It counts every second.
    sleep 1.2
    for log in /tmp/gateway.*.log; do
        grep '^{"open"' "$log" | tail -1
    done | tr ',}' '\n' | awk -F: '
        /rdma_/ { placed += $2 }
        /messages_/ { messages += $2 }
        END { printf "%.0f %.0f\n", placed, messages }' >/tmp/gateway.totals
    read -r placed messages </tmp/gateway.totals
    if [ "$1" = start ]; then
        PLACED_BEFORE=$placed MESSAGES_BEFORE=$messages
    else
        PLACED=$((placed - PLACED_BEFORE)) MESSAGES=$((messages - MESSAGES_BEFORE))
    fi
}
