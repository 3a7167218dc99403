//! Two providers over loopback, and raw peers.

mod basic;
mod rdma;
mod world;
