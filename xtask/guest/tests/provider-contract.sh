# devices: rxe siw
# timeout: 400
#
# The promises of the provider trait, kept by the kernel's RDMA devices.
provider_contract --nocapture
