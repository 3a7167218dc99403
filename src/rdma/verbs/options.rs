//! What can be chosen about RDMA devices.

/// Options of a [`Verbs`](super::Verbs) provider. The defaults suit every device and every peer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct VerbsOptions {
    /// Use memory windows on soft-RoCE too, so that its peers can be asked to invalidate what is exposed to them, as those
    /// of RDMA cards are. For trying that out, with **peers that are trusted and links that lose nothing**:
    /// as long as there is a window, any peer of the device can crash the kernel (seen with Linux 6.12) by invalidating
    /// one that is free, and a lost packet can end a connection that exposes memory. Default: off. Memory is registered for
    /// each exposure instead, which has neither fault.
    pub soft_roce_windows: bool,
}
