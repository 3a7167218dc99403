# For scripts of a pair, in the guests and on the host: signals between them, by files that all
# three see.
flag() { # name
    touch "$SHARED/flag-$1"
}
wait_flag() { # name, seconds (60): status 1 if it was not raised in that time
    local i
    for ((i = 0; i < ${2:-60} * 10; i++)); do
        [ -e "$SHARED/flag-$1" ] && return 0
        sleep 0.1
    done
    echo "flag $1 was not raised within ${2:-60} s" >&2
    return 1
}
