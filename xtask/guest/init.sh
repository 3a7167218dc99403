#!/bin/busybox sh
# First process of the guest, from the initial RAM disk. It puts the host's root file system (9p,
# read only) under an overlay that lives in memory, and hands over to session.sh of the repository.
/bin/busybox mkdir -p /proc /sys /dev /host /layers /root /out
/bin/busybox --install -s /bin
export PATH=/bin

fail() {
    echo "guest: $1" >/dev/console
    poweroff -f
}
share() { # tag, mount point, further options
    mount -t 9p -o "trans=virtio,version=9p2000.L,msize=512000,$3" "$1" "$2" ||
        fail "9p share $1: no mount"
}
overlay() { # name, lower directory, mount point
    upper=/layers/$1/upper work=/layers/$1/work
    mkdir -p "$upper" "$work" "$3"
    mount -t overlay -o "lowerdir=$2,upperdir=$upper,workdir=$work" overlay "$3" ||
        fail "overlay on $2: no mount"
}

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs -o size=90% tmpfs /layers
share host /host ro,cache=loose
overlay root /host /root

mount -t tmpfs -o mode=1777 tmpfs /root/tmp
mount -t tmpfs tmpfs /root/run
mkdir -p /root/run/lock /root/out /root/usr/lib/modules
share out /root/out cache=none
. /root/out/environment
# What the fresh /tmp and /run have hidden of the repository and its build directory comes back.
index=0
for path in "$REPO" "$TARGET"; do
    case "$path" in
    /tmp/* | /run/*) index=$((index + 1)); overlay "path$index" "/host$path" "/root$path" ;;
    esac
done
if [ -n "$SHARED" ]; then
    mkdir -p "/root$SHARED"
    share shared "/root$SHARED" cache=none
fi

# Only the list of built-in modules, so that `modprobe` of one of them succeeds.
mount -t tmpfs tmpfs /root/usr/lib/modules
cp -a /lib/modules/. /root/usr/lib/modules/
mount -t proc proc /root/proc
mount -t sysfs sysfs /root/sys
mount -t debugfs debugfs /root/sys/kernel/debug
mount -t devtmpfs devtmpfs /root/dev
mkdir -p /root/dev/pts /root/dev/shm
mount -t devpts devpts /root/dev/pts
mount -t tmpfs -o mode=1777 tmpfs /root/dev/shm
exec switch_root /root /bin/bash "$REPO/xtask/guest/session.sh"
