//! What a user may set, with the values of Windows as defaults.

use std::time::Duration;

use super::ConfigError;
use super::wire::{MIN_FRAGMENTED_SIZE, MIN_RECEIVE_SIZE};

/// How many receives a connection keeps posted and granted to its peer, within the peer's wish and
/// [`Config::receive_credit_max`]. More is faster for a peer that sends bursts, and costs
/// [`Config::max_receive_size`] bytes each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum CreditProfile {
    /// Start with 32 and double whenever the peer uses them up within a second, or many times over.
    #[default]
    Adaptive,
    /// All at once, as Windows does.
    Full,
    /// Never more than 8, for thousands of mostly idle connections.
    Small,
}

/// The settings of one connection. The defaults are those of Windows ([MS-SMBD] appendix B).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Send credits we ask the peer for; at least 1. Default 255.
    pub send_credit_target: u16,
    /// The most receives granted to the peer, whatever it asks for; at least 1. One more than this
    /// may be posted. With less than 3, a client that never grants beyond its own maximum may get
    /// stuck, by its own fault. Default 255.
    pub receive_credit_max: u16,
    /// The largest message we send, in bytes, the 24 bytes of header included; at least 128.
    /// Windows servers refuse more than 8136, and Linux servers need more than 1028. Default 1364.
    pub max_send_size: u32,
    /// The largest message we receive, in bytes, header included: the size of each posted receive.
    /// At least 128. Default 8192.
    pub max_receive_size: u32,
    /// The largest reassembled message we receive, in bytes; at least 131,072 (some Linux servers
    /// refuse exactly that). Default 1 MiB.
    pub max_fragmented_size: u32,
    /// The most bytes moved by RDMA for one request of the upper layer. Default 8 MiB.
    pub max_read_write_size: u32,
    /// The peer is probed after this time without a message from it. Default 120 s.
    /// `Duration::MAX`: never.
    pub keepalive_interval: Duration,
    /// Time for the answer to a probe, then the peer is dead. Default 5 s.
    pub keepalive_timeout: Duration,
    /// Time for connection and negotiation, as initiator. Default 120 s.
    pub initiator_timeout: Duration,
    /// Time from the arrival of a connection to its negotiate request, as acceptor. Default 5 s.
    pub acceptor_timeout: Duration,
    /// How many receives are granted, and when.
    pub credit_profile: CreditProfile,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            send_credit_target: 255,
            receive_credit_max: 255,
            max_send_size: 1364,
            max_receive_size: 8192,
            max_fragmented_size: 1 << 20,
            max_read_write_size: 8 << 20,
            keepalive_interval: Duration::from_secs(120),
            keepalive_timeout: Duration::from_secs(5),
            initiator_timeout: Duration::from_secs(120),
            acceptor_timeout: Duration::from_secs(5),
            credit_profile: CreditProfile::Adaptive,
        }
    }
}

impl Config {
    /// Checks every value against the limits of the protocol.
    ///
    /// # Errors
    /// The first value that no conforming peer could accept, or that would stop the connection from
    /// working.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.send_credit_target == 0 {
            return Err(ConfigError::SendCreditTargetZero);
        }
        if self.receive_credit_max == 0 {
            return Err(ConfigError::ReceiveCreditMaxZero);
        }
        if self.max_send_size < MIN_RECEIVE_SIZE {
            return Err(ConfigError::MaxSendSizeTooSmall(self.max_send_size));
        }
        if self.max_receive_size < MIN_RECEIVE_SIZE {
            return Err(ConfigError::MaxReceiveSizeTooSmall(self.max_receive_size));
        }
        if self.max_fragmented_size < MIN_FRAGMENTED_SIZE {
            return Err(ConfigError::MaxFragmentedSizeTooSmall(
                self.max_fragmented_size,
            ));
        }
        let timers = [
            self.keepalive_interval,
            self.keepalive_timeout,
            self.initiator_timeout,
            self.acceptor_timeout,
        ];
        if timers.iter().any(Duration::is_zero) {
            return Err(ConfigError::TimerZero);
        }
        Ok(())
    }
}
