# devices: rxe siw
# timeout: 240
#
# The block store: file content goes between the server's file and the client's memory by RDMA; both sides' checksums
# are equal, and nothing is left in the kernel.
set -e
counts() { for kind in qp mr pd cq; do rdma resource show $kind | wc -l; done; }
# Whether no count is above what it was before.
back() { paste /tmp/before /tmp/after | awk '$2 > $1 { more = 1 } END { exit more }'; }
counts >/tmp/before
direct serve --provider verbs --address "$REMOTE" --port 0 --port-file /tmp/direct.port --once &
server=$!
direct client --provider verbs --address "$REMOTE" --port-file /tmp/direct.port --total 4MiB
wait $server
# The kernel may take a moment to forget a process.
for _ in $(seq 20); do
    counts >/tmp/after
    back && break
    sleep 0.5
done
echo "queue pairs, regions, domains, completion queues, before and after:"
paste /tmp/before /tmp/after
back
