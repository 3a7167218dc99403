//! Accepts clients, and serves each of them in a thread of its own.

use std::sync::Arc;
use std::task::Poll;
use std::thread;
use std::time::{Duration, Instant};

use smbdirect::engine::{Channel, DirectListener};
use smbdirect::transport::{Close, DisconnectReason, Error, Transport};

use crate::backend::Backend;
use crate::connection::{self, Connection};
use crate::connections::{Connections, Entry, Stop};
use crate::ending::Ending;
use crate::parting;
use crate::report::{Ended, Log};
use crate::wake::Sleeper;
use crate::watch::Watch;

/// How long an ended connection may go on sending before it is counted and forgotten.
pub(crate) const LINGER: Duration = Duration::from_secs(6);

/// How a client is sent away: it learns that it has been connected, and that this is over.
const END: Close = Close::Graceful(END_IN);
const END_IN: Duration = Duration::from_secs(1);

/// What all connections have in common.
#[derive(Clone)]
pub(crate) struct Settings {
    pub(crate) backend: Backend,
    /// Whether it is there.
    pub(crate) watch: Arc<Watch>,
    /// How long the server may be silent though it owes an answer.
    pub(crate) backend_timeout: Duration,
    /// Bytes of memory for the data of one connection.
    pub(crate) max_memory: u64,
    pub(crate) log: Log,
}

/// Accepts clients until the listener is closed.
///
/// # Errors
/// The listener has failed; in words.
pub(crate) fn accept(
    listener: &DirectListener,
    connections: &Arc<Connections>,
    settings: &Settings,
) -> Result<(), String> {
    let sleeper = Sleeper::new();
    loop {
        let client = match listener.poll_accept_channel(&mut sleeper.context()) {
            Poll::Ready(Ok(client)) => Arc::new(client),
            Poll::Ready(Err(Error::Closed(DisconnectReason::Local))) => return Ok(()),
            Poll::Ready(Err(error)) => {
                return Err(format!("cannot accept connections any more: {error}"));
            }
            Poll::Pending => {
                sleeper.sleep(None);
                continue;
            }
        };
        let entry = match connections.enter(&client) {
            Ok(entry) => entry,
            Err(why) => {
                // There was a place when it came to the door.
                let address = client.info().peer.ip().to_canonical();
                settings.log.refused(address, why);
                let connections = connections.clone();
                let thread = thread::Builder::new().name("refused".into());
                // Where there is no thread for it, it is closed at once.
                let _ = thread.spawn(move || send_away(&client, &connections.stop));
                continue;
            }
        };
        let serving = Serving {
            entry: entry.clone(),
            connections: connections.clone(),
            settings: settings.clone(),
        };
        let thread = thread::Builder::new().name(format!("connection-{}", entry.id));
        if let Err(error) = thread.spawn(move || serving.run()) {
            eprintln!("gateway: no thread for connection {}: {error}", entry.id);
            connections.leave(&entry);
        }
    }
}

/// What a connection's thread needs.
struct Serving {
    entry: Arc<Entry>,
    connections: Arc<Connections>,
    settings: Settings,
}

impl Serving {
    /// A connection from its first message to its line.
    fn run(self) {
        let start = Instant::now();
        let sleeper = Sleeper::new();
        let (entry, settings) = (&*self.entry, &self.settings);
        let client = entry.client.info();
        entry.wake_at_end(sleeper.waker());
        let mut backend_port = None;
        let ending = match settings.backend.connect() {
            Ok(backend) => {
                backend_port = Some(backend.info().local.port());
                let options = connection::Options {
                    max_memory: settings.max_memory,
                    backend_timeout: settings.backend_timeout,
                    watch: &settings.watch,
                    warn: &|warning| settings.log.warning(entry.id, client, &warning),
                };
                let stop = &self.connections.stop;
                Connection::new(entry, backend, stop, &sleeper, options).run()
            }
            Err(error) => {
                settings.watch.doubt();
                send_away(&entry.client, &self.connections.stop);
                Ending::Unreachable(error)
            }
        };
        self.wait_for_end(&sleeper);
        let ended = Ended {
            id: entry.id,
            client,
            backend_port,
            time: start.elapsed(),
            moved: entry.moved(),
            reason: &ending,
        };
        settings.log.ended(&ended);
        self.connections.leave(entry);
    }

    /// Waits until what was accepted is sent, or there is no time left for it.
    fn wait_for_end(&self, sleeper: &Sleeper) {
        let (client, start) = (&self.entry.client, Instant::now());
        while client.poll_closed(&mut sleeper.context()).is_pending() {
            if self.connections.stop.at_once() {
                client.close(Close::Abort);
            }
            match LINGER.checked_sub(start.elapsed()) {
                Some(left) => sleeper.sleep(Some(left)),
                None => return,
            }
        }
    }
}

/// Ends the connection of a client that is not served.
fn send_away(client: &Channel, stop: &Stop) {
    parting::wait_for_silence(client, parting::QUIET, END_IN, stop);
    client.close(END);
}
