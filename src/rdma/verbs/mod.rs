//! RDMA devices through libibverbs and librdmacm: RoCE, InfiniBand and iWARP cards, soft-RoCE, soft-iWARP.
//!
//! One reliable connected queue pair per connection, made through the RDMA connection manager; completion queues
//! per device, in which every posted request has its place; one epoll descriptor over connection manager, completion
//! channels and async events; requests posted as `ibv_post_send` chains, which every device library has. The
//! libraries are loaded at run time: without them, or without a device, everything fails with an error that says so.
//!
//! A device that is removed takes its connections along ([`RdmaError::DeviceRemoved`](super::RdmaError::DeviceRemoved)),
//! is closed, and may come back. Some drivers let it be removed only when no program has it open, and tell nobody
//! (soft-RoCE and soft-iWARP): the provider notices by the kernel's device events. librdmacm keeps the last device of a
//! machine open until there is another.
//!
//! May import the boundary's types (`super`), `libc`, `rustix`, `tracing` and std. Only `sys` names the FFI crate.
#![allow(unsafe_code)]

mod cm;
mod completions;
mod conn;
mod connector;
mod context;
mod creation;
mod device;
mod domain;
mod errors;
mod events;
mod gids;
mod interfaces;
mod inventory;
mod link;
mod listener;
mod nudge;
mod options;
mod post;
mod provider;
mod quirk_list;
mod quirks;
mod removal;
mod resources;
mod sockaddr;
mod step;
mod sys;
#[cfg(test)]
mod tests;
mod windows;

pub use gids::Gid;
pub use interfaces::{Interface, interfaces};
pub use inventory::{DeviceInfo, device_for, devices};
pub use link::{LinkLayer, LinkState};
pub use options::VerbsOptions;
pub use provider::Verbs;
pub use sys::library_present;
