#!/bin/bash
# run-tests.sh [SECONDS SCRIPT]...: runs test scripts one after the other in the guest, each in a
# session of its own. Leaves a line per script in /out/results: name, exit status, seconds; and in
# /out/failures the last lines of those that failed. Status 1 if one of them failed.
failed=0
: >/out/results
: >/out/failures
pipe=/tmp/output-pipe output=/tmp/output
mkfifo $pipe
# All that run, but for the kernel's own threads.
processes() { ps --ppid 2 -p 2 --deselect -o pid=; }
while [ $# -ge 2 ]; do
    name=$(basename "$2" .sh)
    printf '\n--- %s%s\n' "$name" "${DEVICE:+ on $DEVICE}"
    # Kernel messages from here on are this test's.
    echo "smbdirect-test: $name" >/dev/kmsg
    started=$SECONDS
    tee $output <$pipe &
    exec 3>$pipe
    before=" $(processes | tr -s '\n ' ' ') "
    # In a mount namespace of its own: what it mounts is gone with it.
    setsid --wait unshare --mount timeout --kill-after=10 "$1" bash "$2" >&3 2>&1
    status=$?
    # What it left behind must not disturb the next one: servers may have sessions of their own.
    for process in $(processes); do
        [[ $before == *" $process "* ]] || kill -KILL "$process" 2>/dev/null
    done
    exec 3>&-
    # A process that cannot be killed may hold the pipe: not waited for without end.
    for _ in {1..50}; do
        kill -0 $! 2>/dev/null || break
        sleep 0.1
    done
    for link in v0 v1; do
        tc qdisc del dev $link root 2>/dev/null
        ip link set $link up 2>/dev/null
    done
    seconds=$((SECONDS - started))
    case $status in
    0) end="ok ($seconds s)" ;;
    124 | 137) end="TIMED OUT after $1 s" ;;
    *) end="FAILED, status $status ($seconds s)" ;;
    esac
    echo "--- $name: $end"
    if [ $status != 0 ]; then
        failed=1
        printf '%s\n--- %s%s: %s\n' "$(tail -n 30 $output)" "$name" "${DEVICE:+ on $DEVICE}" "$end" >>/out/failures
    fi
    echo "$name $status $seconds" >>/out/results
    shift 2
done
exit $failed
