# devices: rxe siw
# timeout: 600
#
# Connections killed amid 32 transfers, by either side, leave nothing in the kernel: 200 of them, or $RUNS. The same is so
# after a peer that goes on writing to memory that was reclaimed.
set -e
counts() { for kind in qp mr pd cq; do rdma resource show $kind | wc -l; done; }
counts >/tmp/before
rude nothing_arrives_after_reclaim_on_a_device --exact
killed killed_connections_leave_nothing_on_a_device --exact --nocapture
# The kernel may take a moment to forget a process.
for _ in $(seq 20); do
    counts >/tmp/after
    cmp -s /tmp/before /tmp/after && break
    sleep 0.5
done
echo "queue pairs, regions, domains, completion queues, before and after:"
paste /tmp/before /tmp/after
cmp /tmp/before /tmp/after
