# devices: rxe siw
# timeout: 600
#
# The verbs provider on the kernel's RDMA devices: its own tests and the provider contract, one test
# after the other.
set -e
unit-tests verbs --test-threads=1
rdma resource show
