# devices: rxe siw
# timeout: 300
#
# The block store: file content goes between the server's file and the client's memory by RDMA, also where that is
# several buffers; both sides' checksums are equal, and nothing is left in the kernel. On soft-RoCE also with memory
# windows, which the server's responses invalidate.
set -e
counts() { for kind in qp mr pd cq; do rdma resource show $kind | wc -l; done; }
# Whether no count is above what it was before.
back() { paste /tmp/before /tmp/after | awk '$2 > $1 { more = 1 } END { exit more }'; }
counts >/tmp/before
stored() { # what is stored, and how
    rm -f /tmp/direct.port
    direct serve --provider verbs --address "$REMOTE" --port 0 --port-file /tmp/direct.port --once &
    server=$!
    direct client --provider verbs --address "$REMOTE" --port-file /tmp/direct.port "$@" >/tmp/direct.log || {
        cat /tmp/direct.log
        return 1
    }
    cat /tmp/direct.log
    wait $server
}
stored --total 4MiB
stored --total 1MiB --sizes 100000 --buffers 7
if [ "$DEVICE" = rxe ]; then
    stored --total 1MiB --sizes 1,4KiB,1MiB,8MiB,64MiB --soft-roce-windows
    grep -Eq '[1-9][0-9,]* invalidated by the server' /tmp/direct.log
fi
# The kernel may take a moment to forget a process.
for _ in $(seq 20); do
    counts >/tmp/after
    back && break
    sleep 0.5
done
echo "queue pairs, regions, domains, completion queues, before and after:"
paste /tmp/before /tmp/after
back
