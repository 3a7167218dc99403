//! One size of messages on all connections at once.

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use smbdirect::transport::{Error, OutMessage, Transport, TransportExt, TrySendError};

use crate::payload;

/// What to do.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    /// Bytes of each message.
    pub(crate) size: usize,
    /// Messages on each connection.
    pub(crate) count: u64,
    /// Messages under way on each connection.
    pub(crate) in_flight: usize,
    /// Nothing came back for so long: give up.
    pub(crate) timeout: Duration,
}

/// What came of it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Measured {
    pub(crate) size: usize,
    /// On all connections.
    pub(crate) messages: u64,
    pub(crate) time: Duration,
    pub(crate) median: Duration,
    pub(crate) percentile_99: Duration,
}

impl Measured {
    pub(crate) fn per_second(&self) -> f64 {
        self.messages as f64 / self.time.as_secs_f64()
    }

    /// Millions of payload bytes per second, each way.
    pub(crate) fn megabytes_per_second(&self) -> f64 {
        self.per_second() * self.size as f64 / 1e6
    }
}

/// Runs it; `first` is the sequence number of its first message.
pub(crate) fn run(
    load: Load,
    connections: &[Arc<dyn Transport>],
    seed: u64,
    first: u64,
) -> Result<Measured, String> {
    let start = Instant::now();
    let results: Vec<Result<Vec<Duration>, String>> = thread::scope(|scope| {
        let threads: Vec<_> = (0..)
            .zip(connections)
            .map(|(index, transport)| {
                scope.spawn(move || {
                    Connection {
                        transport: &**transport,
                        load,
                        seed,
                        index,
                        first,
                    }
                    .run()
                    .map_err(|error| format!("connection {}: {error}", index + 1))
                })
            })
            .collect();
        let ended = |_| Err("a thread of the client has panicked".into());
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(ended))
            .collect()
    });
    let time = start.elapsed();
    let mut latencies = Vec::new();
    for result in results {
        latencies.extend(result?);
    }
    latencies.sort_unstable();
    let rank = |share: f64| {
        let at = ((latencies.len() as f64 * share).ceil() as usize).saturating_sub(1);
        latencies.get(at).copied().unwrap_or_default()
    };
    Ok(Measured {
        size: load.size,
        messages: latencies.len() as u64,
        time,
        median: rank(0.5),
        percentile_99: rank(0.99),
    })
}

struct Connection<'a> {
    transport: &'a dyn Transport,
    load: Load,
    seed: u64,
    index: u64,
    first: u64,
}

impl Connection<'_> {
    /// How long each message took to come back.
    fn run(&self) -> Result<Vec<Duration>, String> {
        let Load {
            size,
            count,
            in_flight,
            timeout,
        } = self.load;
        let mut latencies = Vec::with_capacity(usize::try_from(count).unwrap_or(0));
        let mut under_way = VecDeque::with_capacity(in_flight);
        let mut message = vec![0; size];
        // Which message is in the buffer.
        let mut prepared = None;
        let mut sent = 0;
        while (latencies.len() as u64) < count {
            while sent < count && under_way.len() < in_flight {
                if prepared != Some(sent) {
                    payload::fill(&mut message, self.seed, self.index, self.first + sent);
                    prepared = Some(sent);
                }
                let now = Instant::now();
                match self.transport.start_send(OutMessage::Slice(&message)) {
                    Ok(()) => {
                        sent += 1;
                        under_way.push_back(now);
                    }
                    Err(TrySendError::Full) if under_way.is_empty() => self
                        .transport
                        .ready_blocking(Some(timeout))
                        .map_err(|error| self.say(error, "sent"))?,
                    // What comes back makes room.
                    Err(TrySendError::Full) => break,
                    Err(error) => return Err(self.say(error.into(), "sent")),
                }
            }
            let echo = match self.transport.recv_blocking(Some(timeout)) {
                Ok(Some(echo)) => echo,
                Ok(None) => return Err("the server closed the connection too early".into()),
                Err(error) => return Err(self.say(error, "received")),
            };
            let Some(at) = under_way.pop_front() else {
                return Err("the server sent a message that is no echo".into());
            };
            latencies.push(at.elapsed());
            self.verify(&echo, self.first + latencies.len() as u64 - 1)?;
        }
        Ok(latencies)
    }

    fn verify(&self, echo: &[u8], sequence: u64) -> Result<(), String> {
        if echo.len() != self.load.size {
            let (is, should) = (echo.len(), self.load.size);
            return Err(format!(
                "message {sequence} came back with {is} bytes, not {should}"
            ));
        }
        match payload::first_difference(echo, self.seed, self.index, sequence) {
            None => Ok(()),
            Some(at) => Err(format!(
                "message {sequence} ({} bytes) came back wrong, or out of order: it differs at \
                 byte {at}",
                echo.len()
            )),
        }
    }

    fn say(&self, error: Error, what: &str) -> String {
        match error {
            Error::WouldBlock => format!(
                "nothing could be {what} for {} s (--timeout)",
                self.load.timeout.as_secs()
            ),
            error => error.to_string(),
        }
    }
}
