//! `rping` of librdmacm, spoken by a provider: `rping_peer client|server verbs|iwarp ADDRESS:PORT SIZE COUNT`, against the
//! real one in the guest (`xtask/guest/tests/rping.sh`). Without arguments there is no peer, and nothing to test.
//!
//! Each round: the client sends address, key and length of its source (16 bytes, big endian); the server reads it and
//! says that it has (16 bytes of no meaning); the client sends where its sink is; the server writes what it has read
//! there, down to the first zero byte, and says so. The client compares the two.

use std::collections::VecDeque;
use std::env;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use smbdirect::rdma::{
    self, Armed, Close, CompletionStatus, ConnId, ConnectParams, Event, Exposure, IoBuf, IoPin,
    ListenOptions, LossReason, Operation, Pieces, Provider, ProviderKind, QpOptions, RemoteAccess,
    RemoteAddress, ResolveOptions, SendRequest, Slab, SlabOptions, Window,
};

/// No step takes longer, however slow the guest.
const PATIENCE: Duration = Duration::from_secs(30);
/// Bytes of every message.
const MESSAGE: usize = 16;

fn main() -> ExitCode {
    let words: Vec<String> = env::args().skip(1).collect();
    let [role, provider, address, size, count] = &words[..] else {
        println!(
            "not run: no peer given (rping_peer client|server verbs|iwarp ADDRESS:PORT SIZE COUNT)"
        );
        return ExitCode::SUCCESS;
    };
    let kind = match provider.as_str() {
        "verbs" => ProviderKind::Verbs,
        _ => ProviderKind::Iwarp,
    };
    let address: SocketAddr = address.parse().expect("ADDRESS:PORT");
    let (size, count) = (size.parse().expect("SIZE"), count.parse().expect("COUNT"));
    let mut driver = Driver {
        provider: rdma::open(kind).expect("a provider"),
        events: VecDeque::new(),
    };
    match role.as_str() {
        "client" => client(&mut driver, address, size, count),
        _ => server(&mut driver, address, size, count),
    }
    println!("rping {role} over {kind}: {count} rounds of {size} bytes, all right");
    ExitCode::SUCCESS
}

fn client(driver: &mut Driver, address: SocketAddr, size: usize, count: u32) {
    let end = Instant::now() + PATIENCE;
    // The server may be about to listen.
    let connected = loop {
        match connect(driver, address, size) {
            Ok(connected) => break connected,
            Err(reason) => {
                assert!(Instant::now() < end, "not connected: {reason}");
                std::thread::sleep(Duration::from_millis(200));
            }
        }
    };
    for round in 0..count {
        let text = text(round, size);
        for (bytes, access) in [
            (&text, RemoteAccess::Read),
            (&vec![0; size], RemoteAccess::Write),
        ] {
            let mut memory = connected.memory.take().expect("a slot");
            memory.set_len(size);
            memory.copy_from_slice(bytes);
            let window = driver.expose(&connected, memory.pin(), access);
            let mut message = [0; MESSAGE];
            message[..8].copy_from_slice(&window.address.to_be_bytes());
            message[8..12].copy_from_slice(&window.key.to_be_bytes());
            message[12..].copy_from_slice(&window.len.to_be_bytes());
            driver.say(&connected, &message);
            driver.message(&connected);
            let back = driver.conceal(&connected, &window);
            assert!(
                back[..] == text[..],
                "round {round}: what was read came back"
            );
        }
    }
    driver.provider.close(
        connected.conn,
        Close::Drain(Instant::now() + PATIENCE),
        Instant::now(),
    );
    assert_eq!(driver.loss(connected.conn), LossReason::Local);
}

fn connect(driver: &mut Driver, address: SocketAddr, size: usize) -> Result<Connected, LossReason> {
    let local = env::var("LOCAL").ok().and_then(|local| local.parse().ok());
    let mut options = ResolveOptions::default();
    options.local = local.map(|local| SocketAddr::new(local, 0));
    let resolving = driver.provider.resolve(address, &options, Instant::now());
    let conn = resolving.map_err(LossReason::Failed)?;
    driver.until(|event| match event {
        Event::Resolved { .. } => Some(Ok(())),
        Event::Disconnected { reason, .. } => Some(Err(reason.clone())),
        _ => None,
    })?;
    let connected = driver.prepare(conn, size);
    let begun = driver.provider.connect(conn, &params(), Instant::now());
    begun.map_err(LossReason::Failed)?;
    driver.established()?;
    Ok(connected)
}

fn server(driver: &mut Driver, address: SocketAddr, size: usize, count: u32) {
    let listener = driver.provider.listen(address, &ListenOptions::default());
    let listener = listener.expect("a listener");
    println!("listening on {address}");
    let conn = loop {
        driver.poll();
        let place = (driver.events.iter()).position(|e| matches!(e, Event::Incoming { .. }));
        if let Some(Event::Incoming { incoming, .. }) = place.and_then(|p| driver.events.remove(p))
        {
            let adopted = driver.provider.adopt(incoming, Instant::now());
            break adopted.expect("a connection");
        }
    };
    let connected = driver.prepare(conn, size);
    let accepted = driver.provider.accept(conn, &params(), Instant::now());
    accepted.expect("accepted");
    driver.established().expect("established");
    let mut memory = connected.memory.take().expect("a slot");
    for round in 0..count {
        let (from, len) = place(&driver.message(&connected));
        memory.set_len(len);
        let into = memory.pin();
        let read = driver.execute(&connected, Operation::Read { into, from });
        let Operation::Read { into, .. } = read.operation else {
            unreachable!("what was posted comes back")
        };
        memory = into.unpin().expect("nobody else has it");
        assert!(
            memory[..] == text(round, size)[..],
            "round {round} was read"
        );
        driver.say(&connected, &[0; MESSAGE]);
        let (to, _) = place(&driver.message(&connected));
        let from = Pieces::one(memory.freeze());
        let written = driver.execute(&connected, Operation::Write { from, to });
        drop(written);
        memory = connected.memory.take().expect("a slot");
        let said = driver.try_to_say(&connected, &[0; MESSAGE]);
        // Having it, rping leaves at once: its device may not come to acknowledge it.
        let last = round + 1 == count && said == CompletionStatus::Flushed;
        assert!(last || said == CompletionStatus::Success, "{said:?}");
    }
    driver.loss(conn);
    driver.provider.unlisten(listener);
}

/// What rping sends: its greeting with the round's number, and then letters, ending with a zero byte.
fn text(round: u32, size: usize) -> Vec<u8> {
    let mut text = format!("rdma-ping-{round}: ").into_bytes();
    // The letters go from `A` to `z`, and begin one later in each round.
    let first = u32::from(b'A') + round % 58;
    let letters = (0..).map(|n| (u32::from(b'A') + (first - u32::from(b'A') + n) % 58) as u8);
    text.extend(letters.take(size - 1 - text.len()));
    text.push(0);
    text
}

/// Address, key and length of a message.
fn place(message: &[u8]) -> (RemoteAddress, usize) {
    let (address, rest) = message.split_first_chunk::<8>().expect("16 bytes");
    let (key, rest) = rest.split_first_chunk::<4>().expect("16 bytes");
    let (len, _) = rest.split_first_chunk::<4>().expect("16 bytes");
    let place = RemoteAddress {
        address: u64::from_be_bytes(*address),
        key: u32::from_be_bytes(*key),
    };
    (place, u32::from_be_bytes(*len) as usize)
}

fn params() -> ConnectParams {
    let mut params = ConnectParams::default();
    (params.initiator_depth, params.responder_resources) = (1, 1);
    params
}

/// A connection with its memory.
struct Connected {
    conn: ConnId,
    exposure: Exposure,
    messages: Slab,
    memory: Slab,
}

/// A provider, driven by this thread.
struct Driver {
    provider: Box<dyn Provider>,
    events: VecDeque<Event>,
}

impl Driver {
    fn poll(&mut self) {
        let now = Instant::now();
        if self.provider.poll(now, &mut self.events, 64) || !self.events.is_empty() {
            return;
        }
        if self.provider.arm().expect("it can notify") == Armed::Ready {
            return;
        }
        let until =
            (self.provider.next_deadline()).map_or(now + PATIENCE, |at| at.min(now + PATIENCE));
        let left = until.saturating_duration_since(now);
        let time = Timespec {
            tv_sec: left.as_secs() as i64,
            tv_nsec: left.subsec_nanos().into(),
        };
        let fd = self.provider.fd().expect("a descriptor");
        let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
        rustix::event::poll(&mut fds, Some(&time)).expect("polled");
    }

    /// Waits for the first event in which something is found, which is taken out.
    fn until<T>(&mut self, found: impl Fn(&Event) -> Option<T>) -> T {
        self.event(found).0
    }

    fn event<T>(&mut self, found: impl Fn(&Event) -> Option<T>) -> (T, Event) {
        let end = Instant::now() + PATIENCE;
        let mut looked = 0;
        loop {
            while looked < self.events.len() {
                if let Some(value) = found(&self.events[looked]) {
                    let event = self.events.remove(looked).expect("it is there");
                    return (value, event);
                }
                looked += 1;
            }
            assert!(Instant::now() < end, "waited in vain; {:?}", self.events);
            let kept = std::mem::take(&mut self.events);
            self.poll();
            let new = std::mem::replace(&mut self.events, kept);
            self.events.extend(new);
        }
    }

    fn established(&mut self) -> Result<(), LossReason> {
        self.until(|event| match event {
            Event::Established { .. } => Some(Ok(())),
            Event::Disconnected { reason, .. } => Some(Err(reason.clone())),
            _ => None,
        })
    }

    fn loss(&mut self, conn: ConnId) -> LossReason {
        self.until(|event| match event {
            Event::Disconnected { conn: c, reason } if *c == conn => Some(reason.clone()),
            _ => None,
        })
    }

    /// Memory, queue pair and receives.
    fn prepare(&mut self, conn: ConnId, size: usize) -> Connected {
        let domain = self.provider.domain(conn).expect("a domain");
        let slab = |size, count| Slab::new(&domain, size, count, SlabOptions::default());
        let mut options = QpOptions::default();
        (options.send_depth, options.receive_depth) = (16, 16);
        self.provider
            .create_qp(conn, &options)
            .expect("a queue pair");
        let exposure = self
            .provider
            .capabilities(conn)
            .expect("of a device")
            .exposure;
        let connected = Connected {
            conn,
            exposure,
            messages: slab(MESSAGE, 16).expect("memory"),
            memory: slab(size, 2).expect("memory"),
        };
        for _ in 0..4 {
            self.receive(&connected);
        }
        connected
    }

    fn receive(&mut self, connected: &Connected) {
        let slot = connected.messages.take().expect("a slot");
        let mut buffers: VecDeque<IoBuf> = [slot].into();
        let posted = self.provider.post_receive(connected.conn, &mut buffers);
        posted.expect("posted");
    }

    /// The next message; its place is given to another.
    fn message(&mut self, connected: &Connected) -> Vec<u8> {
        let (_, event) = self.event(|event| match event {
            Event::Received { .. } => Some(()),
            Event::Disconnected { reason, .. } => panic!("{reason}"),
            _ => None,
        });
        let Event::Received { buffer, .. } = event else {
            unreachable!("asked for")
        };
        let message = buffer.to_vec();
        assert_eq!(message.len(), MESSAGE);
        drop(buffer);
        self.receive(connected);
        message
    }

    fn say(&mut self, connected: &Connected, bytes: &[u8]) {
        let said = self.try_to_say(connected, bytes);
        assert_eq!(said, CompletionStatus::Success);
    }

    fn try_to_say(&mut self, connected: &Connected, bytes: &[u8]) -> CompletionStatus {
        let mut message = connected.messages.take().expect("a slot");
        message.set_len(bytes.len());
        message.copy_from_slice(bytes);
        let send = Operation::Send {
            message: Pieces::one(message.freeze()),
            invalidate: None,
            solicited: false,
        };
        self.post(connected, send).0
    }

    /// Posts a request, and waits for its success.
    fn execute(&mut self, connected: &Connected, operation: Operation) -> SendRequest {
        let (status, request) = self.post(connected, operation);
        assert_eq!(status, CompletionStatus::Success);
        request
    }

    /// Posts a request, and waits for its end.
    fn post(
        &mut self,
        connected: &Connected,
        operation: Operation,
    ) -> (CompletionStatus, SendRequest) {
        let mut chain = VecDeque::from([SendRequest {
            cookie: 0,
            signalled: true,
            operation,
        }]);
        let posted = self.provider.post_send(connected.conn, &mut chain);
        posted.expect("posted");
        let (status, event) = self.event(|event| match event {
            Event::Completed { status, .. } => Some(*status),
            Event::Disconnected { reason, .. } => panic!("{reason}"),
            _ => None,
        });
        match event {
            Event::Completed { request, .. } => (status, request),
            _ => unreachable!("asked for"),
        }
    }

    fn expose(&mut self, connected: &Connected, memory: IoPin, access: RemoteAccess) -> Window {
        let prepared = memory.prepare(connected.exposure, access);
        let mut prepared = prepared.expect("registered");
        let window = self
            .provider
            .open_window(connected.conn, memory, access, &mut prepared);
        let window = window.expect("a window");
        if window.needs_bind {
            self.execute(connected, Operation::Bind { window: window.id });
        }
        window
    }

    /// Ends an exposure, and gives its memory back.
    fn conceal(&mut self, connected: &Connected, window: &Window) -> IoBuf {
        if window.needs_bind {
            self.execute(connected, Operation::Invalidate { window: window.id });
        }
        let memory = self.provider.close_window(connected.conn, window.id);
        let memory = memory.expect("no longer exposed").unpin();
        memory.expect("nobody else has it")
    }
}
