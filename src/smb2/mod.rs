//! Helpers for SMB layers: the parts of [MS-SMB2] that concern RDMA, as a codec and nothing more.
//!
//! An SMB server or client on top of this crate has its own SMB2 messages. What it needs besides is
//! here, as pure functions over bytes:
//!
//! - [`Placement`]: the descriptors in a READ or WRITE request ([MS-SMB2] 2.2.19, 2.2.21);
//! - [`PlacedRead`]: the response to a READ whose data was placed by RDMA ([MS-SMB2] 2.2.20);
//! - [`RdmaTransform`] and [`CryptoTransform`]: what describes encrypted or signed data that goes
//!   by RDMA ([MS-SMB2] 2.2.43), without any cryptography;
//! - [`TransformCapabilities`]: the negotiate context 0x0007 ([MS-SMB2] 2.2.3.1.6, 2.2.4.1.6);
//! - [`NetworkInterface`]: how clients find out that a server speaks RDMA ([MS-SMB2] 2.2.32.5).
//!
//! All fields are little-endian unless said otherwise. Reserved fields are sent as zero and ignored
//! on receipt. No input panics or makes these functions allocate more than its own size allows.
//!
//! Imports nothing but [`BufferDescriptorV1`](crate::proto::wire::BufferDescriptorV1), `thiserror`
//! and the standard library.
#![forbid(unsafe_code)]

mod capabilities;
mod channel;
mod error;
mod fields;
mod interface;
mod placement;
mod read_response;
#[cfg(test)]
mod tests;
mod transform;

pub use capabilities::{RDMA_TRANSFORM_CAPABILITIES, TransformCapabilities};
pub use channel::{Channel, ChannelRules, Dialect, Operation};
pub use error::{CapabilitiesError, InterfaceError, RequestError, ResponseError, TransformError};
pub use interface::{FSCTL_QUERY_NETWORK_INTERFACE_INFO, NetworkInterface};
pub use placement::Placement;
pub use read_response::PlacedRead;
pub use transform::{CryptoTransform, RdmaTransform, TransformType};
