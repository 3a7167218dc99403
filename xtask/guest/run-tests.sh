#!/bin/bash
# run-tests.sh [SECONDS SCRIPT]...: runs test scripts one after the other in the guest, each in a
# session of its own. Leaves a line per script in /out/results: name, exit status, seconds. Status 1
# if one of them failed.
failed=0
: >/out/results
while [ $# -ge 2 ]; do
    name=$(basename "$2" .sh)
    printf '\n--- %s%s\n' "$name" "${DEVICE:+ on $DEVICE}"
    # Kernel messages from here on are this test's.
    echo "smbdirect-test: $name" >/dev/kmsg
    started=$SECONDS
    setsid timeout --kill-after=10 "$1" bash "$2" &
    session=$!
    wait $session
    status=$?
    # What it left behind must not disturb the next one.
    pkill -KILL --session $session
    for link in v0 v1; do
        tc qdisc del dev $link root 2>/dev/null
        ip link set $link up 2>/dev/null
    done
    seconds=$((SECONDS - started))
    case $status in
    0) echo "--- $name: ok ($seconds s)" ;;
    124 | 137) echo "--- $name: TIMED OUT after $1 s" ;;
    *) echo "--- $name: FAILED, status $status ($seconds s)" ;;
    esac
    [ $status = 0 ] || failed=1
    echo "$name $status $seconds" >>/out/results
    shift 2
done
exit $failed
