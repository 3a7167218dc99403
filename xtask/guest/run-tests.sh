#!/bin/bash
# run-tests.sh [SECONDS SCRIPT]...: runs test scripts one after the other in the guest, each in a
# session of its own, up to the first that fails: the guest may be spoilt then. Leaves a line per
# script in /out/results: name, exit status, seconds; and in /out/failures the last lines of the one
# that failed, and what the kernel said of it meanwhile. Status 1 if one failed.
failed=0
: >/out/results
: >/out/failures
pipe=/tmp/output-pipe output=/tmp/output
mkfifo $pipe
# All that run, but for the kernel's own threads.
processes() { ps --ppid 2 -p 2 --deselect -o pid=; }
# The kernel's errors since the newest mark, the last 15 lines: what has their level, and the heads of warnings and
# oopses, which may have a lower one.
kernel_errors() {
    dmesg --raw | awk '
        /^<[0-9]+>\[[ 0-9.]+\] smbdirect-test: / { count = 0; next }
        match($0, /^<[0-9]+>/) {
            level = substr($0, 2, RLENGTH - 2) % 8
            text = substr($0, RLENGTH + 1)
            if (level <= 3 || text ~ /WARNING:|BUG:|Oops|RIP:/) lines[count++] = text
        }
        END { for (i = count > 15 ? count - 15 : 0; i < count; i++) print "kernel: " lines[i] }'
}
# How a script ended: its status, its seconds, its limit. A script that timeout(1) ends has 124 or 137, but so has one
# in which a command ran out of its own time, or that somebody else killed.
ending() {
    if [ "$1" = 0 ]; then
        echo "ok ($2 s)"
    elif [[ $1 == 124 || $1 == 137 ]] && [ "$2" -ge "$3" ]; then
        echo "TIMED OUT after $3 s"
    elif [ "$1" -gt 128 ] && signal=$(kill -l "$1" 2>/dev/null); then
        echo "FAILED, status $1 (SIG$signal, $2 s of $3 s)"
    else
        echo "FAILED, status $1 ($2 s of $3 s)"
    fi
}
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
    status=$? seconds=$((SECONDS - started))
    # What it left behind must not disturb the next one: servers may have sessions of their own.
    left=()
    for process in $(processes); do
        [[ $before == *" $process "* ]] || left+=("$process")
    done
    kill -KILL "${left[@]}" 2>/dev/null
    # What they had open, such as a port, is free once they are gone.
    for _ in {1..50}; do
        kill -0 "${left[@]}" 2>/dev/null || break
        sleep 0.1
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
    end=$(ending $status $seconds "$1")
    echo "--- $name: $end"
    if [ $status != 0 ]; then
        failed=1
        {
            printf '%s\n' "$(tail -n 30 $output)"
            kernel_errors
            echo "--- $name${DEVICE:+ on $DEVICE}: $end"
        } >>/out/failures
    fi
    echo "$name $status $seconds" >>/out/results
    [ $failed = 0 ] || break
    shift 2
done
exit $failed
