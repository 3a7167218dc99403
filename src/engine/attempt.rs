//! One wish to connect, over the attempts that it takes: which port, and whether a failure is the last one.

use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Waker;

use super::{Channel, ChannelOptions};
use crate::rdma::{FabricFilter, RdmaError, RdmaOperation, ResolveOptions};
use crate::transport::{Completer, DisconnectReason, Error, IWARP_PORT, PORT, Transport};

/// How often a connection may begin anew when the device has chosen a port that is taken.
const PORT_CHOICES: u32 = 3;

/// A wish to connect, at its present attempt.
pub(crate) struct Attempt {
    pub(crate) waiter: Waiter,
    pub(crate) to: SocketAddr,
    pub(crate) resolve: ResolveOptions,
    again: u32,
    stage: Stage,
}

/// Who waits, in which form.
pub(crate) enum Waiter {
    /// For the channel.
    Channel(Completer<Channel>),
    /// For a transport of whatever kind.
    Transport(Completer<Arc<dyn Transport>>),
}

/// Where in the order of ports an attempt stands.
enum Stage {
    /// The caller has chosen the port.
    Given,
    /// The device is not known. It gets [`PORT`] unless it is iWARP; a filter of ours finds out.
    Guess,
    /// The device's own port.
    First,
    /// The other one, after this.
    Second { port: u16, error: Error },
}

impl Attempt {
    /// Port 0 is for the usual ports.
    pub(crate) fn new(
        waiter: Waiter,
        mut to: SocketAddr,
        resolve: &ResolveOptions,
        options: &ChannelOptions,
    ) -> Self {
        let mut resolve = resolve.clone();
        resolve.type_of_service = resolve.type_of_service.or(options.type_of_service);
        let stage = match (to.port(), resolve.only) {
            (0, None) => {
                resolve.only = Some(FabricFilter::InfinibandOrRoce);
                to.set_port(PORT);
                Stage::Guess
            }
            (0, Some(only)) => {
                to.set_port(match only {
                    FabricFilter::Iwarp => IWARP_PORT,
                    FabricFilter::InfinibandOrRoce => PORT,
                });
                Stage::First
            }
            _ => Stage::Given,
        };
        Self {
            waiter,
            to,
            resolve,
            again: PORT_CHOICES,
            stage,
        }
    }

    /// The attempt failed. Returns the next one, if there is one to make; else whoever waits gets the error.
    pub(crate) fn failed(mut self, error: Error, wakers: &mut Vec<Waker>) -> Option<Self> {
        // Soft-iWARP binds the port that the connection manager chose from a space of its own: a TCP connection may
        // have it. Another attempt gets another port.
        if self.again > 0 && local_port_is_taken(&error) && self.resolve.local.is_none() {
            self.again -= 1;
            return Some(self);
        }
        let port = self.to.port();
        self.stage = match self.stage {
            Stage::Guess if matches!(error, Error::Rdma(RdmaError::WrongFabric { .. })) => {
                self.resolve.only = None;
                self.to.set_port(IWARP_PORT);
                Stage::First
            }
            guess @ (Stage::Guess | Stage::First) if depends_on_port(&error) => {
                if matches!(guess, Stage::Guess) {
                    self.resolve.only = None;
                }
                self.to
                    .set_port(if port == PORT { IWARP_PORT } else { PORT });
                Stage::Second { port, error }
            }
            Stage::Second {
                port: first_port,
                error: first,
            } => {
                let error = Error::BothPorts {
                    first_port,
                    first: Box::new(first),
                    second_port: port,
                    second: Box::new(error),
                };
                wakers.extend(self.waiter.complete(Err(error)));
                return None;
            }
            Stage::Given | Stage::Guess | Stage::First => {
                wakers.extend(self.waiter.complete(Err(error)));
                return None;
            }
        };
        Some(self)
    }
}

impl Waiter {
    /// Hands the result over. Returns who is to be woken.
    #[must_use]
    pub(crate) fn complete(self, result: Result<Channel, Error>) -> Option<Waker> {
        match self {
            Self::Channel(completer) => completer.complete(result),
            Self::Transport(completer) => {
                completer.complete(result.map(|channel| Arc::new(channel) as Arc<dyn Transport>))
            }
        }
    }
}

fn local_port_is_taken(error: &Error) -> bool {
    matches!(
        error,
        Error::Rdma(RdmaError::Os { operation: RdmaOperation::Connect, errno })
            if *errno == libc::EADDRINUSE
    )
}

/// Whether another port might do better: the peer, and not this machine or the way, has refused or has not answered.
fn depends_on_port(error: &Error) -> bool {
    match error {
        Error::Rdma(error) => matches!(
            error,
            RdmaError::Refused
                | RdmaError::Rejected { .. }
                | RdmaError::Timeout(RdmaOperation::Connect)
                | RdmaError::BadHandshake
                | RdmaError::ConnectionLost
                | RdmaError::Terminated { .. }
                | RdmaError::FabricViolation { .. }
                | RdmaError::Completion { .. }
                | RdmaError::Os {
                    operation: RdmaOperation::Connect,
                    ..
                }
        ),
        Error::Closed(reason) => !matches!(
            reason,
            DisconnectReason::Local | DisconnectReason::ReactorGone
        ),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::Op;

    #[test]
    fn the_type_of_service_is_the_channels_unless_the_way_has_its_own() {
        let tos = |resolve, channel| {
            let resolving = ResolveOptions {
                type_of_service: resolve,
                ..ResolveOptions::default()
            };
            let options = ChannelOptions {
                type_of_service: channel,
                ..ChannelOptions::default()
            };
            let (_op, completer) = Op::pending();
            let to = SocketAddr::from(([127, 0, 0, 1], 0));
            let attempt = Attempt::new(Waiter::Channel(completer), to, &resolving, &options);
            attempt.resolve.type_of_service
        };
        assert_eq!(tos(None, None), None);
        assert_eq!(tos(None, Some(0x68)), Some(0x68));
        assert_eq!(tos(Some(0x20), Some(0x68)), Some(0x20));
    }
}
