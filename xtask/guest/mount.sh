# For test scripts: the kernel's SMB client on mounts of //$REMOTE/share ($SHARE, if set, instead of
# share), what is done on them, and a row for the table about each thing done. $PEER and $PROVIDER are
# the rows' first columns, $STORE is the share's directory as the server sees it.
#
# Whoever touches a mount whose server is gone may hang where no signal ends it: hence `bounded`,
# which waits for a child no longer than it said.

bounded() { # seconds, command: 124 if the time was over
    local end=$((SECONDS + $1)) pid
    shift
    (
        set -e
        "$@"
    ) &
    pid=$!
    while [ $SECONDS -lt $end ]; do
        if ! kill -0 $pid 2>/dev/null; then
            wait $pid
            return
        fi
        sleep 0.05
    done
    pkill -KILL --parent $pid
    kill -KILL $pid
    echo "not done in time: $*" >&2
    return 124
}

# Does something within a time, and says and writes down how it went, and what crossed meanwhile if
# $MEASURE names something that knows. Not for conditions: bash ignores `set -e` in them.
scenario() { # name, seconds, command
    local name=$1 limit=$2 status result=ok started=$EPOCHREALTIME tenths
    shift 2
    PLACED=- MESSAGES=-
    [ -z "$MEASURE" ] || $MEASURE start
    set +e
    bounded "$limit" "$@"
    status=$?
    set -e
    [ -z "$MEASURE" ] || $MEASURE stop || status=1
    [ $status = 0 ] || result=FAILED
    printf '%s\t%s\t%s\t%s\t%s\t%s\n' "$PEER" "$PROVIDER" "$name" $result "$PLACED" "$MESSAGES" \
        >>"$OUT/rows"
    tenths=$(((${EPOCHREALTIME/./} - ${started/./}) / 100000))
    echo "$name: $result, $PLACED bytes by RDMA, $MESSAGES in messages," \
        "$((tenths / 10)).$((tenths % 10)) s"
    return $status
}

mount_share() { # mount point, further options
    local options="vers=3.1.1,username=$USERNAME,password=secret${2:+,$2}"
    # With soft-iWARP the kernel's client can register 256 pages. It now and then makes 257 of 1 MiB
    # of a direct request, and then tries for ever.
    [ "$DEVICE" != siw ] || options+=,rsize=524288,wsize=524288
    mkdir -p "$1"
    bounded 40 mount -t cifs "//$REMOTE/${SHARE:-share}" "$1" -o "$options"
}

unmount() { # mount points
    local point
    for point; do
        bounded 20 umount "$point" && continue
        # What hangs stays behind, but no new caller finds it.
        bounded 5 umount -f -l "$point" || true
        return 1
    done
}

# What the kernel's client says of its connections.
connections() { # rdma or all: how many there are
    case $1 in
    rdma) grep -c '^RDMA' /proc/fs/cifs/DebugData ;;
    all) grep -c 'ConnectionId: ' /proc/fs/cifs/DebugData ;;
    esac
}

# All connections are RDMA, and speak SMB Direct 1.0.
by_rdma() {
    grep -E 'SMBDirect|max_send_size|fragmented|max_readwrite|^RDMA' /proc/fs/cifs/DebugData
    [[ $(connections rdma) -gt 0 && $(connections rdma) = $(connections all) ]]
    [ "$(grep -c 'SMBDirect (in hex) protocol version: 100' /proc/fs/cifs/DebugData)" = \
        "$(connections all)" ]
}

# Files onto the mount and back: byte for byte the same on the server, and read from there.
copies() { # mount point, sizes (as head understands them)
    local work directory size
    work=$(mktemp -d /tmp/copies.XXXX)
    directory=${work##*/}
    mkdir "$1/$directory"
    for size in "${@:2}"; do
        head -c "$size" /dev/urandom >"$work/$size"
        cp "$work/$size" "$1/$directory"
    done
    # Nothing may come from this machine's cache.
    sync -f "$1"
    echo 3 >/proc/sys/vm/drop_caches
    for size in "${@:2}"; do
        cmp "$work/$size" "$STORE/$directory/$size"
        cmp "$work/$size" "$1/$directory/$size"
    done
    rm -r "$work" "$1/$directory"
    [ ! -e "$STORE/$directory" ]
}

# A tree of source code unpacked on the mount, walked and compared.
source_tree() { # mount point, directories of the repository
    local point=$1
    shift
    mkdir "$point/tree"
    tar -C "$REPO" -cf - "$@" | tar -C "$point/tree" -xf -
    echo 3 >/proc/sys/vm/drop_caches
    (cd "$REPO" && find "$@" -printf '%y %p\n' | sort) >/tmp/tree.here
    (cd "$point/tree" && find "$@" -printf '%y %p\n' | sort) >/tmp/tree.there
    cmp /tmp/tree.here /tmp/tree.there
    local directory
    for directory; do
        diff -r "$REPO/$directory" "$point/tree/$directory"
    done
    echo "$(wc -l </tmp/tree.here) files and directories"
    rm -r "$point/tree"
    [ -z "$(ls "$point")" ]
}

# A session from its beginning to its end.
session() { # mount point, options, sizes
    mount_share "$1" "$2"
    copies "$1" "${@:3}"
    unmount "$1"
}

# Sessions of their own on one share, all at once.
sessions() { # how many, options, sizes
    local i pid pids=()
    for ((i = 0; i < $1; i++)); do
        mount_share "/mnt/at-once-$i" "$2,nosharesock"
    done
    [ "$(connections all)" -ge "$1" ]
    for ((i = 0; i < $1; i++)); do
        copies "/mnt/at-once-$i" "${@:3}" &
        pids+=($!)
    done
    for pid in "${pids[@]}"; do
        wait "$pid"
    done
    # With several ends at a time Linux 6.12's client now and then crashes its kernel: it ends a
    # connection once more (`rdma_disconnect`, work that it has put off) whose memory it has freed.
    local point
    for point in /mnt/at-once-*; do
        unmount "$point"
        sleep 1
    done
}

# For $MEASURE: what a capture shows. A session's beginning must be in it.
by_capture() { # start or stop
    if [ "$1" = start ]; then
        start_capture /tmp/wire
    else
        stop_capture /tmp/wire && examine_capture /tmp/wire
    fi
}

# Four jobs write and read at random places, 4 KiB to 1 MiB at a time, 32 requests each in flight,
# past the cache; every block that was written is read again and verified.
random_mix() { # mount point, bytes per job, further words for fio
    fio --name=mix --directory="$1" --size="$2" --numjobs=4 --rw=randrw --bsrange=4k-1m \
        --ioengine=libaio --iodepth=32 --direct=1 --fallocate=none --verify=crc32c --verify_fatal=1 \
        --verify_backlog=64 --group_reporting --eta=never --unlink=1 --output=/tmp/fio.log "${@:3}" || {
        cat /tmp/fio.log
        return 1
    }
    grep -E 'READ:|WRITE:|err=' /tmp/fio.log
}
