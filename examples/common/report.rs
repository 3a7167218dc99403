//! What the client prints at the end.

use std::fmt::Write;
use std::time::Duration;

use smbdirect::transport::{Info, Limits};

use crate::control::Counts;
use crate::json::Object;
use crate::measure::Measured;
use crate::units;

/// All there is to say.
pub(crate) struct Report<'a> {
    pub(crate) choice: &'a str,
    pub(crate) info: &'a Info,
    pub(crate) limits: Limits,
    pub(crate) in_flight: usize,
    pub(crate) seed: u64,
    pub(crate) measured: &'a [Measured],
    /// Of each connection.
    pub(crate) client: &'a [Counts],
    pub(crate) server: &'a [Counts],
}

impl Report<'_> {
    /// Whether both ends counted the same messages and bytes on every connection.
    pub(crate) fn agree(&self) -> bool {
        let same = |(a, b): (&Counts, &Counts)| (a.messages, a.bytes) == (b.messages, b.bytes);
        self.client.len() == self.server.len() && self.client.iter().zip(self.server).all(same)
    }

    pub(crate) fn text(&self) -> String {
        let mut out = String::new();
        self.connection(&mut out);
        self.negotiated(&mut out);
        self.measurements(&mut out);
        self.both_ends(&mut out);
        let verdict = if self.agree() {
            "verified: all bytes and order; both ends counted the same"
        } else {
            "NOT AGREED: all bytes and order were right, but the two ends counted differently"
        };
        out + verdict + "\n"
    }

    fn connection(&self, out: &mut String) {
        let Info {
            kind, local, peer, ..
        } = self.info;
        line(
            out,
            "transport",
            &format!("{kind}; provider {}", self.choice),
        );
        if let Some(device) = &self.info.device {
            line(out, "device", device);
        }
        line(out, "addresses", &format!("{local} to {peer}"));
        let (connections, in_flight) = (self.client.len(), self.in_flight);
        let load = format!("{connections}, {in_flight} messages in flight on each");
        line(out, "connections", &load);
        out.push('\n');
    }

    fn negotiated(&self, out: &mut String) {
        out.push_str(match self.info.parameters {
            Some(_) => "negotiated\n",
            None => "limits\n",
        });
        let Limits {
            max_send,
            max_receive,
            ..
        } = self.limits;
        if let Some(p) = &self.info.parameters {
            let send = units::count(p.max_send_size.into());
            line(out, "  send size", &format!("{send} bytes"));
            let receive = units::count(p.max_receive_size.into());
            line(out, "  receive size", &format!("{receive} bytes"));
            let most = units::bytes(p.max_read_write_size.into());
            line(
                out,
                "  RDMA read and write",
                &format!("up to {most} a request"),
            );
            let (got, given) = (p.initial_send_credits, p.initial_receive_credits);
            let target = p.peer_credit_target;
            let credits =
                format!("{got} got and {given} given at first; the peer asks for {target}");
            line(out, "  credits", &credits);
            let idle = p.keepalive_interval.as_secs();
            line(out, "  keepalive", &format!("after {idle} s of silence"));
        }
        line(
            out,
            "  largest message",
            &format!(
                "{} to the server, {} back",
                units::bytes(max_send),
                units::bytes(max_receive)
            ),
        );
        out.push('\n');
    }

    fn measurements(&self, out: &mut String) {
        let mut table = Table::new(&[
            "size",
            "messages",
            "round trips/s",
            "MB/s",
            "median",
            "99 %",
        ]);
        for m in self.measured {
            table.row([
                units::bytes(m.size as u64),
                units::count(m.messages),
                units::count(m.per_second() as u64),
                format!("{:.1}", m.megabytes_per_second()),
                time(m.median),
                time(m.percentile_99),
            ]);
        }
        out.push_str(&table.text());
        out.push_str("(MB/s: payload each way; times: from sending a message to its echo)\n\n");
    }

    fn both_ends(&self, out: &mut String) {
        let mut table = Table::new(&["both ends", "client", "server"]);
        for ((name, client), (_, server)) in sums(self.client).into_iter().zip(sums(self.server)) {
            table.row([name.into(), units::count(client), units::count(server)]);
        }
        out.push_str(&table.text());
        out.push('\n');
    }

    pub(crate) fn json(&self) -> String {
        let info = self.info;
        let mut object = Object::new()
            .text("transport", &info.kind.to_string())
            .text("choice", self.choice)
            .text("device", info.device.as_deref().unwrap_or(""))
            .text("local", &info.local.to_string())
            .text("peer", &info.peer.to_string())
            .value("connections", self.client.len())
            .value("in_flight", self.in_flight)
            .value("seed", self.seed)
            .value("largest_message_sent", self.limits.max_send)
            .value("largest_message_received", self.limits.max_receive);
        if let Some(p) = &info.parameters {
            let negotiated = Object::new()
                .value("max_send_size", p.max_send_size)
                .value("max_receive_size", p.max_receive_size)
                .value("max_fragmented_send_size", p.max_fragmented_send_size)
                .value("max_fragmented_receive_size", p.max_fragmented_receive_size)
                .value("max_read_write_size", p.max_read_write_size)
                .value("initial_send_credits", p.initial_send_credits)
                .value("initial_receive_credits", p.initial_receive_credits)
                .value("peer_credit_target", p.peer_credit_target)
                .value("keepalive_seconds", p.keepalive_interval.as_secs());
            object = object.value("negotiated", negotiated.end());
        }
        let sizes: Vec<String> = self.measured.iter().map(measured_json).collect();
        let end = |counts: &[Counts]| {
            sums(counts)
                .into_iter()
                .fold(Object::new(), |object, (name, value)| {
                    object.value(&name.replace([' ', '-'], "_"), value)
                })
                .end()
        };
        object
            .value("sizes", format_args!("[{}]", sizes.join(",")))
            .value("client", end(self.client))
            .value("server", end(self.server))
            .value("verified", true)
            .value("agreed", self.agree())
            .end()
    }
}

fn measured_json(m: &Measured) -> String {
    Object::new()
        .value("bytes", m.size)
        .value("messages", m.messages)
        .value("seconds", format_args!("{:.6}", m.time.as_secs_f64()))
        .value(
            "round_trips_per_second",
            format_args!("{:.1}", m.per_second()),
        )
        .value(
            "megabytes_per_second",
            format_args!("{:.3}", m.megabytes_per_second()),
        )
        .value(
            "median_microseconds",
            format_args!("{:.3}", m.median.as_secs_f64() * 1e6),
        )
        .value(
            "percentile_99_microseconds",
            format_args!("{:.3}", m.percentile_99.as_secs_f64() * 1e6),
        )
        .end()
}

/// The counts of all connections together, by name.
fn sums(counts: &[Counts]) -> [(&'static str, u64); 11] {
    let sum = |field: fn(&Counts) -> u64| counts.iter().map(field).sum();
    [
        ("messages echoed", sum(|c| c.messages)),
        ("bytes echoed", sum(|c| c.bytes)),
        ("sends", sum(|c| c.sends)),
        ("receives", sum(|c| c.receives)),
        ("fragments sent", sum(|c| c.fragments_sent)),
        ("fragments received", sum(|c| c.fragments_received)),
        ("waits for credit", sum(|c| c.credit_waits)),
        ("keepalives sent", sum(|c| c.keepalives_sent)),
        ("keepalives answered", sum(|c| c.keepalives_answered)),
        ("bytes zero-copy", sum(|c| c.zero_copy_bytes)),
        ("bytes copied", sum(|c| c.copied_bytes)),
    ]
}

fn line(out: &mut String, name: &str, value: &str) {
    // Writing to a string cannot fail.
    let _ = writeln!(out, "{name:<22} {value}");
}

/// 1.234 ms.
fn time(time: Duration) -> String {
    let us = time.as_secs_f64() * 1e6;
    match us {
        us if us < 1000.0 => format!("{us:.1} µs"),
        us if us < 1e6 => format!("{:.2} ms", us / 1e3),
        us => format!("{:.2} s", us / 1e6),
    }
}

/// Columns of text: names to the left, numbers to the right.
struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    fn new(titles: &[&str]) -> Self {
        Self {
            rows: vec![titles.iter().map(|title| (*title).into()).collect()],
        }
    }

    fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.into());
    }

    fn text(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            self.rows
                .iter()
                .map(|row| row[column].chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut out = String::new();
        for row in &self.rows {
            for (i, (cell, width)) in row.iter().zip(&widths).enumerate() {
                let _ = match i {
                    0 => write!(out, "{cell:<width$}"),
                    _ => write!(out, "  {cell:>width$}"),
                };
            }
            out.push('\n');
        }
        out
    }
}
