//! The ports of SMB Direct.

use crate::rdma::Fabric;

/// The port of SMB Direct on InfiniBand and RoCE ([MS-SMBD] 1.9). It is a port of RDMA's own, so that an SMB server
/// on TCP port 445 of the same host is not in the way.
pub const PORT: u16 = 445;

/// The port of SMB Direct on iWARP ([MS-SMBD] 1.9). iWARP runs over TCP and takes TCP's ports, where 445 is that of
/// SMB over TCP.
pub const IWARP_PORT: u16 = 5445;

/// The port of SMB Direct on a fabric.
pub const fn port_for(fabric: Fabric) -> u16 {
    match fabric {
        Fabric::Iwarp => IWARP_PORT,
        Fabric::Roce | Fabric::Infiniband => PORT,
    }
}
