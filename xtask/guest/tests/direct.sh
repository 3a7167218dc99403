# devices: rxe siw
# timeout: 240
#
# The block store: file content goes between the server's file and the client's memory by RDMA; both sides' checksums
# are equal, and nothing is left in the kernel.
set -e
count() { rdma resource show "$1" | wc -l; }
before="$(count qp) $(count mr) $(count pd) $(count cq)"
direct serve --provider verbs --address "$REMOTE" --port 0 --port-file /tmp/port --once &
server=$!
direct client --provider verbs --address "$REMOTE" --port-file /tmp/port --total 4MiB
wait $server
after="$(count qp) $(count mr) $(count pd) $(count cq)"
echo "queue pairs, regions, domains, completion queues: $before before, $after after"
[ "$before" = "$after" ]
