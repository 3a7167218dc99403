//! The boundary between the engine and whatever moves bytes by RDMA.
