# devices: rxe siw
# timeout: 600
#
# The transport suite on the kernel's RDMA devices, one test after the other: the machine is slow enough.
set -e
transport_verbs --test-threads=1
rdma resource show qp
