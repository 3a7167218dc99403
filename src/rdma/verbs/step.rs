//! What an event of the connection manager means for a connection in each of its states: the whole table, apart from
//! the devices.
//!
//! An event that is not understood must not leave a connection waiting for ever: every state but `Ready` and
//! `Established` has a deadline, and whatever says that the connection is over ends it in every state.

use std::net::SocketAddr;

use super::cm::CmEvent;
use super::conn::State;
use super::errors;
use super::sys::{self, cm_event};
use crate::rdma::{RdmaError, RdmaOperation};

/// What to do with a connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// The event comes too late, or is not for connections.
    Ignore,
    /// The address is known: the route is next.
    FindRoute,
    /// The route is known.
    Resolved,
    /// It is up.
    Established,
    /// The peer has left: what waits for that goes on, everything else ends.
    PeerLeft,
    /// It has failed.
    Lose(RdmaError),
    /// Its device is gone, and every connection on it.
    LoseDevice,
}

/// The step of a connection that is in `state` and leads, if we resolved it, `to` there.
pub(super) fn step(state: State, event: &CmEvent, to: Option<SocketAddr>) -> Step {
    match (event.kind, state) {
        (cm_event::RDMA_CM_EVENT_ADDR_RESOLVED, State::Resolving) => Step::FindRoute,
        (cm_event::RDMA_CM_EVENT_ROUTE_RESOLVED, State::Resolving) => Step::Resolved,
        (cm_event::RDMA_CM_EVENT_ESTABLISHED, State::Connecting | State::Accepting) => {
            Step::Established
        }
        // It may be all that explains flushed requests.
        (cm_event::RDMA_CM_EVENT_DISCONNECTED, _) => Step::PeerLeft,
        // Follows the peer's end; alone it says the same.
        (cm_event::RDMA_CM_EVENT_TIMEWAIT_EXIT, _) => Step::PeerLeft,
        (cm_event::RDMA_CM_EVENT_DEVICE_REMOVAL, _) => Step::LoseDevice,
        // The reason is known.
        (_, State::Flushing) => Step::Ignore,
        (cm_event::RDMA_CM_EVENT_ADDR_ERROR | cm_event::RDMA_CM_EVENT_ROUTE_ERROR, _) => {
            Step::Lose(unresolved(event.status, to))
        }
        // Comes also when the address's neighbour entry fails or changes, as it does while a link is down: whether that
        // ends a connection that is up is for the queue pair's retries to say.
        (
            cm_event::RDMA_CM_EVENT_UNREACHABLE,
            State::Established | State::Draining | State::Leaving,
        ) => Step::Ignore,
        (cm_event::RDMA_CM_EVENT_CONNECT_ERROR | cm_event::RDMA_CM_EVENT_UNREACHABLE, _) => {
            Step::Lose(match event.status {
                0 => RdmaError::Unreachable,
                status => errors::event_error(RdmaOperation::Connect, status),
            })
        }
        (cm_event::RDMA_CM_EVENT_REJECTED, _) => Step::Lose(rejected(event)),
        // The address has moved to another link: what is sent goes nowhere.
        (cm_event::RDMA_CM_EVENT_ADDR_CHANGE, _) => Step::Lose(RdmaError::ConnectionLost),
        // CONNECT_RESPONSE comes only where an id has no queue pair, CONNECT_REQUEST with an id of its own; the
        // others belong to multicast, or to a later librdmacm.
        _ => Step::Ignore,
    }
}

/// Whether an event says what came of `connect` or `accept`, so that calls on the id do not sleep any more.
pub(super) fn answers(kind: u32) -> bool {
    matches!(
        kind,
        cm_event::RDMA_CM_EVENT_ESTABLISHED
            | cm_event::RDMA_CM_EVENT_CONNECT_ERROR
            | cm_event::RDMA_CM_EVENT_UNREACHABLE
            | cm_event::RDMA_CM_EVENT_REJECTED
            | cm_event::RDMA_CM_EVENT_DISCONNECTED
            | cm_event::RDMA_CM_EVENT_TIMEWAIT_EXIT
    )
}

fn unresolved(status: i32, to: Option<SocketAddr>) -> RdmaError {
    match (status.saturating_abs(), to) {
        (libc::ETIMEDOUT, _) => RdmaError::Timeout(RdmaOperation::Resolve),
        (libc::ENODEV | libc::ENOENT, Some(to)) => RdmaError::NoDevice(to),
        _ => RdmaError::Unreachable,
    }
}

/// What a reject says. InfiniBand and RoCE give the reason, iWARP how the stream ended.
fn rejected(event: &CmEvent) -> RdmaError {
    let by_the_peer = || RdmaError::Rejected {
        private_data: event.private_data.clone(),
    };
    match event.status {
        sys::REJECT_INVALID_SERVICE => RdmaError::Refused,
        status if status == -libc::ECONNREFUSED => RdmaError::Refused,
        // Of its program (28), or of its connection manager: no resources, a queue pair that it takes for another's.
        _ => by_the_peer(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATES: [State; 8] = [
        State::Resolving,
        State::Ready,
        State::Connecting,
        State::Accepting,
        State::Established,
        State::Draining,
        State::Leaving,
        State::Flushing,
    ];

    /// Every event that librdmacm has, and one that it may have some day: what it means in each of [`STATES`].
    /// `.` ignored, `r` find the route, `R` resolved, `E` established, `P` the peer left, `L` lost, `D` device gone.
    const TABLE: [(&str, u32, &str); 17] = [
        ("ADDR_RESOLVED", 0, "r......."),
        ("ADDR_ERROR", 1, "LLLLLLL."),
        ("ROUTE_RESOLVED", 2, "R......."),
        ("ROUTE_ERROR", 3, "LLLLLLL."),
        ("CONNECT_REQUEST", 4, "........"),
        ("CONNECT_RESPONSE", 5, "........"),
        ("CONNECT_ERROR", 6, "LLLLLLL."),
        ("UNREACHABLE", 7, "LLLL...."),
        ("REJECTED", 8, "LLLLLLL."),
        ("ESTABLISHED", 9, "..EE...."),
        ("DISCONNECTED", 10, "PPPPPPPP"),
        ("DEVICE_REMOVAL", 11, "DDDDDDDD"),
        ("MULTICAST_JOIN", 12, "........"),
        ("MULTICAST_ERROR", 13, "........"),
        ("ADDR_CHANGE", 14, "LLLLLLL."),
        ("TIMEWAIT_EXIT", 15, "PPPPPPPP"),
        ("a later one", 99, "........"),
    ];

    fn event(kind: u32, status: i32) -> CmEvent {
        CmEvent {
            key: 0,
            kind,
            status,
            private_data: vec![1],
            initiator_depth: 0,
            responder_resources: 0,
            request: None,
        }
    }

    #[test]
    fn every_event_has_its_meaning_in_every_state() {
        for (name, kind, meanings) in TABLE {
            let found: String = (STATES.iter())
                .map(|state| match step(*state, &event(kind, 0), None) {
                    Step::Ignore => '.',
                    Step::FindRoute => 'r',
                    Step::Resolved => 'R',
                    Step::Established => 'E',
                    Step::PeerLeft => 'P',
                    Step::Lose(_) => 'L',
                    Step::LoseDevice => 'D',
                })
                .collect();
            assert_eq!(found, meanings, "{name}");
        }
    }

    #[test]
    fn nobody_there_is_not_a_reject() {
        let rejected = |status| rejected(&event(cm_event::RDMA_CM_EVENT_REJECTED, status));
        assert_eq!(rejected(8), RdmaError::Refused);
        assert_eq!(rejected(-libc::ECONNREFUSED), RdmaError::Refused);
        let no = RdmaError::Rejected {
            private_data: vec![1],
        };
        assert_eq!(rejected(28), no);
        // No resources; a stale connection.
        assert_eq!((rejected(3), rejected(10)), (no.clone(), no.clone()));
        assert_eq!(rejected(-libc::ECONNRESET), no);
    }

    #[test]
    fn errors_of_finding_the_way_are_told_apart() {
        let to: SocketAddr = "10.0.1.77:5445".parse().unwrap();
        let late = RdmaError::Timeout(RdmaOperation::Resolve);
        assert_eq!(unresolved(-libc::ETIMEDOUT, Some(to)), late);
        assert_eq!(unresolved(-libc::ENODEV, Some(to)), RdmaError::NoDevice(to));
        assert_eq!(
            unresolved(-libc::EHOSTUNREACH, None),
            RdmaError::Unreachable
        );
    }

    #[test]
    fn a_connect_that_is_not_answered_has_timed_out() {
        let kind = cm_event::RDMA_CM_EVENT_UNREACHABLE;
        let lost = |status| step(State::Connecting, &event(kind, status), None);
        let late = RdmaError::Timeout(RdmaOperation::Connect);
        assert_eq!(lost(-libc::ETIMEDOUT), Step::Lose(late));
        assert_eq!(lost(0), Step::Lose(RdmaError::Unreachable));
    }
}
