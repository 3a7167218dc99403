//! What to do about a connection that failed.

use smbdirect::proto;
use smbdirect::rdma::{RdmaError, RdmaOperation};
use smbdirect::transport::{DisconnectReason, Error};

/// Whether the RDMA connection itself was there when it failed.
pub(crate) fn was_connected(error: &Error) -> bool {
    matches!(
        error,
        Error::Closed(DisconnectReason::Protocol(_) | DisconnectReason::Peer)
    )
}

/// What to do; empty where the error says it itself.
pub(crate) fn of(error: &Error) -> &'static str {
    match error {
        Error::Rdma(error) => of_rdma(error),
        Error::Closed(DisconnectReason::Protocol(proto::DisconnectReason::Timeout(_))) => {
            "something that is not SMB Direct listens there: check which service has the port"
        }
        Error::Closed(DisconnectReason::Protocol(_)) => {
            "the server's and this side's SMB Direct do not agree: the server's log may say more"
        }
        Error::Closed(DisconnectReason::Peer) => {
            "the server closed the connection: its log says why (limits, access rules)"
        }
        _ => "",
    }
}

fn of_rdma(error: &RdmaError) -> &'static str {
    match error {
        RdmaError::Refused => {
            "is SMB Direct on at the server, and bound to this address? (Windows: \
             Get-SmbServerNetworkInterface; ksmbd: `interfaces`, and an RDMA device on it)"
        }
        RdmaError::Rejected { .. } => {
            "the server refuses this client, or (iWARP) has another service there, such as SMB over TCP on port 445"
        }
        RdmaError::Timeout(RdmaOperation::Connect) => {
            "a firewall? RoCE v2 uses UDP port 4791, iWARP TCP port 5445; or the server has no RDMA \
             device of this fabric at this address"
        }
        RdmaError::Timeout(_) | RdmaError::Unreachable => {
            "is the address right, and the link up? (`ip neigh`, `ip route get ADDRESS`, `rdma link`)"
        }
        RdmaError::BadHandshake | RdmaError::ConnectionLost => {
            "what listens there does not speak iWARP: SMB over TCP, or another service"
        }
        _ => "",
    }
}
