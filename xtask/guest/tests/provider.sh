# devices: rxe siw
# timeout: 600
#
# The verbs provider on the kernel's RDMA devices: its own tests, one after the other, and the provider contract.
set -e
unit-tests verbs --test-threads=1
provider_contract --nocapture
rdma resource show
