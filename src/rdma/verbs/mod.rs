//! RDMA devices through libibverbs and librdmacm: RoCE, InfiniBand and iWARP cards, soft-RoCE, soft-iWARP.
//!
//! One reliable connected queue pair per connection, made through the RDMA connection manager; completion queues
//! per device, in which every posted request has its place; one epoll descriptor over connection manager, completion
//! channels and async events; requests posted as `ibv_post_send` chains, which every device library has. The
//! libraries are loaded at run time: without them, or without a device, everything fails with an error that says so.
//!
//! May import the boundary's types (`super`), `libc`, `rustix`, `tracing` and std. Only `sys` names the FFI crate.
#![allow(unsafe_code)]

mod cm;
mod completions;
mod conn;
mod connector;
mod device;
mod errors;
mod events;
mod inventory;
mod post;
mod provider;
mod quirks;
mod resources;
mod sockaddr;
mod sys;
#[cfg(test)]
mod tests;
mod windows;

pub use inventory::{DeviceInfo, device_for, devices};
pub use provider::Verbs;
