//! The one exchange that opens a connection, both sides of it ([MS-SMBD] 3.1.5.2, 3.1.5.3, 3.1.5.6,
//! 3.1.5.7).

use std::time::Duration;

use super::wire::{
    MIN_FRAGMENTED_SIZE, MIN_RECEIVE_SIZE, NegotiateRequest, NegotiateResponse, STATUS_SUCCESS,
    VERSION,
};
use super::{Config, DisconnectReason, PeerIncompatible, PeerMisbehaved};

/// What both sides agreed on.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Parameters {
    /// The protocol version, always 0x0100.
    pub version: u16,
    /// The largest message we send, in bytes, the 24 bytes of header included.
    pub max_send_size: u32,
    /// The largest message the peer sends, and the size of each receive, in bytes, header included.
    pub max_receive_size: u32,
    /// The largest upper-layer message the peer takes, in bytes.
    pub max_fragmented_send_size: u32,
    /// The largest upper-layer message we take, in bytes.
    pub max_fragmented_receive_size: u32,
    /// The most bytes moved by RDMA for one request of the upper layer.
    pub max_read_write_size: u32,
    /// The peer is probed after this time of silence.
    pub keepalive_interval: Duration,
    /// Credits that we got in negotiation; 0 for the acceptor, whose first credits come in a data
    /// transfer message.
    pub initial_send_credits: u16,
    /// Credits that we gave in negotiation; 0 for the initiator, for the same reason.
    pub initial_receive_credits: u16,
    /// Credits that the peer asked for in negotiation.
    pub peer_credit_target: u16,
}

impl Parameters {
    /// Bytes of payload in the largest message we send.
    pub fn max_send_payload(&self) -> u32 {
        self.max_send_size - super::wire::DATA_OFFSET
    }
}

/// The initiator's first message ([MS-SMBD] 3.1.5.2).
pub(crate) fn request(config: &Config) -> NegotiateRequest {
    NegotiateRequest {
        min_version: VERSION,
        max_version: VERSION,
        credits_requested: config.send_credit_target,
        preferred_send_size: config.max_send_size,
        max_receive_size: config.max_receive_size,
        max_fragmented_size: config.max_fragmented_size,
    }
}

/// The acceptor's judgement of a request, in the order of [MS-SMBD] 3.1.5.6. Only a missing common
/// version is answered (the caller sends the failure response); everything else just ends the
/// connection.
pub(crate) fn evaluate_request(
    config: &Config,
    request: &NegotiateRequest,
) -> Result<Parameters, DisconnectReason> {
    if !(request.min_version..=request.max_version).contains(&VERSION) {
        return Err(PeerIncompatible::NoCommonVersion {
            min: request.min_version,
            max: request.max_version,
        }
        .into());
    }
    check_common(
        request.credits_requested,
        request.max_receive_size,
        request.max_fragmented_size,
    )?;
    Ok(Parameters {
        version: VERSION,
        max_send_size: config.max_send_size.min(request.max_receive_size),
        max_receive_size: receive_size(config, request.preferred_send_size),
        max_fragmented_send_size: request.max_fragmented_size,
        max_fragmented_receive_size: config.max_fragmented_size,
        max_read_write_size: config.max_read_write_size,
        keepalive_interval: config.keepalive_interval,
        initial_send_credits: 0,
        initial_receive_credits: 0,
        peer_credit_target: request.credits_requested,
    })
}

/// The acceptor's answer to a good request ([MS-SMBD] 3.1.5.3).
pub(crate) fn response(
    config: &Config,
    parameters: &Parameters,
    credits_granted: u16,
) -> NegotiateResponse {
    NegotiateResponse {
        min_version: VERSION,
        max_version: VERSION,
        negotiated_version: VERSION,
        credits_requested: config.send_credit_target,
        credits_granted,
        status: STATUS_SUCCESS,
        max_read_write_size: parameters.max_read_write_size,
        preferred_send_size: parameters.max_send_size,
        max_receive_size: parameters.max_receive_size,
        max_fragmented_size: parameters.max_fragmented_receive_size,
    }
}

/// The initiator's judgement of a response ([MS-SMBD] 3.1.5.7). The status comes first: a failure
/// has zero everywhere else, and the user wants to see the server's own reason.
pub(crate) fn evaluate_response(
    config: &Config,
    response: &NegotiateResponse,
) -> Result<Parameters, DisconnectReason> {
    if response.status != STATUS_SUCCESS {
        return Err(PeerIncompatible::Refused {
            status: response.status,
        }
        .into());
    }
    if response.negotiated_version != VERSION {
        return Err(PeerIncompatible::VersionNotSupported(response.negotiated_version).into());
    }
    check_common(
        response.credits_requested,
        response.max_receive_size,
        response.max_fragmented_size,
    )?;
    if response.credits_granted == 0 {
        return Err(PeerMisbehaved::NoCreditsGranted.into());
    }
    if response.preferred_send_size > config.max_receive_size {
        return Err(PeerMisbehaved::PreferredSendSizeTooLarge {
            preferred: response.preferred_send_size,
            offered: config.max_receive_size,
        }
        .into());
    }
    Ok(Parameters {
        version: VERSION,
        max_send_size: config.max_send_size.min(response.max_receive_size),
        max_receive_size: receive_size(config, response.preferred_send_size),
        max_fragmented_send_size: response.max_fragmented_size,
        max_fragmented_receive_size: config.max_fragmented_size,
        max_read_write_size: config.max_read_write_size.min(response.max_read_write_size),
        keepalive_interval: config.keepalive_interval,
        initial_send_credits: response.credits_granted,
        initial_receive_credits: 0,
        peer_credit_target: response.credits_requested,
    })
}

/// The rules that requests and responses share.
fn check_common(
    credits_requested: u16,
    max_receive_size: u32,
    max_fragmented_size: u32,
) -> Result<(), PeerMisbehaved> {
    if credits_requested == 0 {
        return Err(PeerMisbehaved::NoCreditsRequested);
    }
    if max_receive_size < MIN_RECEIVE_SIZE {
        return Err(PeerMisbehaved::MaxReceiveSizeTooSmall(max_receive_size));
    }
    if max_fragmented_size < MIN_FRAGMENTED_SIZE {
        return Err(PeerMisbehaved::MaxFragmentedSizeTooSmall(
            max_fragmented_size,
        ));
    }
    Ok(())
}

/// Receives need not be larger than what the peer will send, but at least 128 bytes ([MS-SMBD]
/// 3.1.5.6, 3.1.5.7).
fn receive_size(config: &Config, peer_preferred_send_size: u32) -> u32 {
    config
        .max_receive_size
        .min(peer_preferred_send_size)
        .max(MIN_RECEIVE_SIZE)
}
