//! The gateway: its rewriting without I/O, and all of it over the software iWARP with a server that
//! is made by hand.
#![cfg(feature = "iwarp")]

#[allow(dead_code)]
#[path = "../../examples/gateway/allow.rs"]
mod allow;
#[allow(dead_code)]
#[path = "../../examples/common/args.rs"]
mod args;
#[path = "../../examples/gateway/backend.rs"]
mod backend;
#[path = "../../examples/gateway/connection.rs"]
mod connection;
#[path = "../../examples/gateway/connections.rs"]
mod connections;
#[path = "../../examples/gateway/door.rs"]
mod door;
#[path = "../../examples/gateway/ending.rs"]
mod ending;
#[path = "../../examples/common/json.rs"]
mod json;
mod leaving;
mod model;
#[path = "../../examples/gateway/ops.rs"]
mod ops;
#[allow(dead_code)]
#[path = "../../examples/gateway/options.rs"]
mod options;
#[path = "../../examples/gateway/parting.rs"]
mod parting;
#[path = "../../examples/gateway/probe.rs"]
mod probe;
mod probing;
mod properties;
#[allow(dead_code)]
#[path = "../../examples/gateway/report.rs"]
mod report;
#[path = "../../examples/gateway/rewrite/mod.rs"]
mod rewrite;
mod rewriting;
#[path = "../../examples/gateway/serve.rs"]
mod serve;
mod serving;
mod smb2;
#[allow(dead_code)]
#[path = "../../examples/gateway/sparing.rs"]
mod sparing;
#[allow(dead_code)]
#[path = "../../examples/common/units.rs"]
mod units;
#[path = "../../examples/gateway/wake.rs"]
mod wake;
#[path = "../../examples/gateway/watch.rs"]
mod watch;
mod watching;
mod world;
