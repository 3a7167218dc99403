#!/bin/bash
# Process 1 of the guest after init.sh: sets up the devices, runs the command, leaves its status in
# /out.
#
# /out/status is the command's exit status; without it the guest has died. The command's output goes
# through a pipe (so that /dev/stdout can be opened again) to a virtio port, apart from the kernel's
# messages on the serial line.
export PATH=/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin
export HOME=/root TERM=dumb LC_ALL=C.UTF-8
. /out/environment
ulimit -l unlimited
hostname "$GUEST"
ip link set lo up
touch /out/ready

port=$(grep -lx output /sys/class/virtio-ports/*/name)
port=${port%/name}
mkfifo /run/output
cat </run/output >"/dev/${port##*/}" &
drain=$!
exec 3>/run/output

(
    if [ -n "$NETWORK" ]; then
        bash -e "$REPO/xtask/guest/$NETWORK.sh" || exit 125
    fi
    export PATH="$BIN:$PATH"
    cd "$WORKDIR" || exit 125
    exec bash /out/command.sh
) </dev/null >&3 2>&1 3>&-
status=$?

exec 3>&-
# A process that the command left behind may hold the pipe: do not wait for it for ever.
for _ in $(seq 40); do
    kill -0 $drain 2>/dev/null || break
    sleep 0.05
done
dmesg >/out/dmesg.txt
echo $status >/out/status
sync
sleep 0.1
# Ends QEMU at once (isa-debug-exit); powering off is the slower way.
printf '\0' | dd of=/dev/port bs=1 seek=$((0xf4)) 2>/dev/null
echo o >/proc/sysrq-trigger
sleep 60
