//! The lines that the gateway prints.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use smbdirect::rdma::ProviderKind;
use smbdirect::transport::Info;

use crate::connections::{Moved, NoPlace, Totals};
use crate::door::Door;
use crate::json::Object;
use crate::units;

/// What is known of a connection when it has ended.
pub(crate) struct Ended<'a> {
    pub(crate) id: u64,
    pub(crate) client: &'a Info,
    /// Our port on the connection to the server, by which its own log knows the client.
    pub(crate) backend_port: Option<u16>,
    pub(crate) time: Duration,
    pub(crate) moved: Moved,
    pub(crate) reason: &'a dyn fmt::Display,
}

/// Where lines go, and their form.
#[derive(Clone)]
pub(crate) struct Log {
    json: bool,
    write: Arc<dyn Fn(&str) + Send + Sync>,
}

impl Log {
    /// `write` gets one line at a time.
    pub(crate) fn new(json: bool, write: impl Fn(&str) + Send + Sync + 'static) -> Self {
        let write = Arc::new(write);
        Self { json, write }
    }

    /// Clients can connect.
    pub(crate) fn listening(&self, at: &[SocketAddr], provider: ProviderKind, backend: &str) {
        let at: Vec<String> = at.iter().map(ToString::to_string).collect();
        let at = at.join(", ");
        self.line(
            || format!("gateway on {at} ({provider}) for {backend}"),
            || {
                Object::new()
                    .text("listening", &at)
                    .text("provider", &provider.to_string())
                    .text("backend", backend)
            },
        );
    }

    /// One line per connection, at its end.
    pub(crate) fn ended(&self, ended: &Ended<'_>) {
        let Ended {
            id,
            client,
            backend_port,
            time,
            moved,
            reason,
        } = ended;
        let (provider, device) = (provider(client), client.device.as_deref().unwrap_or("none"));
        let seconds = time.as_secs_f64();
        let text = || {
            let port =
                backend_port.map_or("no backend".into(), |port| format!("backend port {port}"));
            format!(
                "connection {id}: client {}, {provider} on {device}, {port}, {seconds:.1} s, {}; \
                 {reason}",
                client.peer,
                Sizes(moved)
            )
        };
        let json = || {
            let port = backend_port.map_or("null".into(), |port| port.to_string());
            let line = Object::new()
                .value("connection", id)
                .text("client", &client.peer.to_string())
                .text("provider", &provider)
                .text("device", device)
                .value("backend_port", port)
                .value("seconds", format_args!("{seconds:.3}"));
            bytes(line, moved).text("end", &reason.to_string())
        };
        self.line(text, json);
    }

    /// Something that the administrator should know of a connection.
    pub(crate) fn warning(&self, id: u64, client: &Info, warning: &dyn fmt::Display) {
        self.line(
            || format!("connection {id}: client {}: {warning}", client.peer),
            || {
                Object::new()
                    .value("connection", id)
                    .text("client", &client.peer.to_string())
                    .text("warning", &warning.to_string())
            },
        );
    }

    /// Something that the administrator should know of the server.
    pub(crate) fn doubt(&self, backend: &dyn fmt::Display, doubt: &dyn fmt::Display) {
        self.line(
            || format!("warning: backend {backend}: {doubt}"),
            || {
                Object::new()
                    .text("backend", &backend.to_string())
                    .text("warning", &doubt.to_string())
            },
        );
    }

    /// A server that was away.
    pub(crate) fn back(&self, backend: &dyn fmt::Display) {
        self.line(
            || format!("backend {backend}: it can be reached, and clients can connect again"),
            || {
                Object::new()
                    .text("backend", &backend.to_string())
                    .text("back", "clients can connect again")
            },
        );
    }

    /// A client that `--allow` leaves out.
    pub(crate) fn not_allowed(&self, client: IpAddr) {
        self.line(
            || format!("refused client {client}: it is in no network of --allow"),
            || {
                Object::new()
                    .text("refused", &client.to_string())
                    .text("limit", "--allow")
            },
        );
    }

    /// A connection that ended before it was one.
    pub(crate) fn failed(&self, client: IpAddr, error: &str) {
        self.line(
            || format!("client {client} could not connect: {error}"),
            || {
                Object::new()
                    .text("failed", &client.to_string())
                    .text("error", error)
            },
        );
    }

    /// A connection that was not taken.
    pub(crate) fn refused(&self, client: IpAddr, why: NoPlace) {
        let (option, limit) = match why {
            NoPlace::Connections(limit) => ("--max-connections", limit),
            NoPlace::PerClient(limit) => ("--max-per-client", limit),
        };
        self.line(
            || format!("refused client {client}: there are {limit} connections ({option})"),
            || {
                Object::new()
                    .text("refused", &client.to_string())
                    .text("limit", option)
                    .value("connections", limit)
            },
        );
    }

    /// All connections together.
    pub(crate) fn totals(&self, totals: &Totals, door: &Door) {
        let (not_allowed, away) = (door.not_allowed(), door.backend_away());
        self.line(
            || {
                format!(
                    "totals: {} open, {} ended, {} refused, {not_allowed} not allowed, {away} while the backend \
                     was away; {}",
                    totals.open,
                    totals.ended,
                    totals.refused,
                    Sizes(&totals.moved)
                )
            },
            || {
                let line = Object::new()
                    .value("open", totals.open)
                    .value("ended", totals.ended)
                    .value("refused", totals.refused)
                    .value("not_allowed", not_allowed)
                    .value("backend_away", away);
                bytes(line, &totals.moved)
            },
        );
    }

    fn line(&self, text: impl FnOnce() -> String, json: impl FnOnce() -> Object) {
        match self.json {
            true => (self.write)(&json().end()),
            false => (self.write)(&text()),
        }
    }
}

fn provider(info: &Info) -> String {
    info.provider.map_or("tcp".into(), |kind| kind.to_string())
}

fn bytes(line: Object, moved: &Moved) -> Object {
    line.value("rdma_read", moved.rdma_read)
        .value("rdma_written", moved.rdma_written)
        .value("messages_received", moved.received)
        .value("messages_sent", moved.sent)
        .value("placed_reads", moved.reads)
        .value("placed_writes", moved.writes)
        .value("refused_requests", moved.requests_refused)
}

struct Sizes<'a>(&'a Moved);

impl fmt::Display for Sizes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "by RDMA {} from and {} to clients, in messages {} and {}",
            units::bytes(self.0.rdma_read),
            units::bytes(self.0.rdma_written),
            units::bytes(self.0.received),
            units::bytes(self.0.sent)
        )
    }
}
