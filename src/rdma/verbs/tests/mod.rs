//! Two providers in one process against each other on a real device: in the guest (`SMBDIRECT_GUEST=1`), whose two
//! soft devices are joined by a cable. Elsewhere each test says that it did not run.

mod closing;
mod connecting;
mod end;
mod hostile;
mod limits;
mod memory;
mod messages;
#[cfg(feature = "iwarp")]
mod overlooked;
mod quirks;
mod world;
