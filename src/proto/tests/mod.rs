//! Tests of the state machine, each endpoint behind a driver that checks the invariants all the
//! time.

mod conformance;
mod data_transfer;
mod deadlock;
mod keepalive;
mod last_credit;
mod negotiation;
mod peers;
mod properties;
mod stalled;
mod world;
