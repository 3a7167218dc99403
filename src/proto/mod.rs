//! The SMB Direct protocol as a pure state machine: no sockets, clocks, threads.
#![forbid(unsafe_code)]
