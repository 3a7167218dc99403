//! Two providers over loopback, and raw peers.

mod basic;
mod captures;
mod load;
mod raw;
mod rdma;
mod rules;
mod world;
