//! The asking end: keeps a number of requests in flight and takes the time.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use smbdirect::engine::Exposed;
use smbdirect::rdma::{IoBuf, RemoteAccess};
use smbdirect::transport::{Transport, TransportExt};

use crate::protocol::{Kind, request};

/// How long an answer may take.
const PATIENCE: Option<Duration> = Some(Duration::from_secs(30));

/// One thing that is measured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Work {
    pub(crate) kind: Kind,
    pub(crate) size: usize,
    pub(crate) in_flight: usize,
    pub(crate) count: u64,
}

/// What doing the work once took.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ran {
    pub(crate) time: Duration,
    /// Of a hundred answers 99 came at least so fast after the one before: round trips where one is in flight.
    pub(crate) most: Duration,
}

/// Does the work once.
pub(crate) fn run(transport: &dyn Transport, work: Work) -> Result<Ran, String> {
    let mut client = Client::new(transport, work)?;
    let mut steps = Vec::with_capacity(work.count as usize);
    let begin = Instant::now();
    let mut last = begin;
    let mut asked = 0;
    for _ in 0..work.count {
        while asked < work.count && client.flying < work.in_flight {
            client.ask()?;
            asked += 1;
        }
        client.take()?;
        let now = Instant::now();
        steps.push(now - last);
        last = now;
    }
    steps.sort_unstable();
    let most = steps.get((steps.len() * 99).div_ceil(100).saturating_sub(1));
    Ok(Ran {
        time: last - begin,
        most: most.copied().unwrap_or_default(),
    })
}

struct Client<'a> {
    transport: &'a dyn Transport,
    work: Work,
    flying: usize,
    /// Memory for content that nobody uses.
    idle: Vec<IoBuf>,
    /// In the order of the requests, in which this server answers requests of one kind.
    exposed: VecDeque<Exposed>,
    /// A message with content, for TCP, and for echoes.
    message: Vec<u8>,
}

impl<'a> Client<'a> {
    fn new(transport: &'a dyn Transport, work: Work) -> Result<Self, String> {
        let mut idle = Vec::new();
        let mut message = request(work.kind, work.size, &[]);
        match (work.kind, transport.direct()) {
            (Kind::Echo, _) => message.resize(work.size.max(message.len()), 7),
            (Kind::Write, None) => message.resize(message.len() + work.size, 7),
            (Kind::Read, None) => {}
            (Kind::Read | Kind::Write, Some(_)) => {
                for _ in 0..work.in_flight {
                    let memory = transport.allocate(work.size).wait();
                    idle.push(memory.map_err(|error| error.to_string())?);
                }
            }
        }
        Ok(Self {
            transport,
            work,
            flying: 0,
            idle,
            exposed: VecDeque::new(),
            message,
        })
    }

    fn ask(&mut self) -> Result<(), String> {
        let access = match self.work.kind {
            Kind::Echo => None,
            Kind::Read => Some(RemoteAccess::Write),
            Kind::Write => Some(RemoteAccess::Read),
        };
        self.flying += 1;
        let sent = match (access, self.transport.direct()) {
            (Some(access), Some(direct)) => {
                let memory = self.idle.pop().ok_or("no memory for a request")?;
                let mut exposed = direct
                    .expose(memory, access)
                    .map_err(|error| error.to_string())?;
                if self.work.kind == Kind::Read && direct.remote_invalidation() {
                    exposed.offer_invalidation();
                }
                let message = request(self.work.kind, self.work.size, exposed.descriptors());
                self.exposed.push_back(exposed);
                self.transport.send_blocking(&message, PATIENCE)
            }
            _ => self.transport.send_blocking(&self.message, PATIENCE),
        };
        sent.map_err(|error| error.to_string())
    }

    fn take(&mut self) -> Result<(), String> {
        let message = self
            .transport
            .recv_blocking(PATIENCE)
            .map_err(|error| error.to_string())?
            .ok_or("the server closed before it was done")?;
        self.flying -= 1;
        let direct = self.transport.direct().is_some();
        let expected = match self.work.kind {
            Kind::Echo => self.message.len(),
            Kind::Read if !direct => self.work.size,
            Kind::Read | Kind::Write => 1,
        };
        if message.len() != expected {
            return Err(format!("an answer of {} bytes", message.len()));
        }
        if let Some(exposed) = self.exposed.pop_front() {
            let memory = exposed.reclaim().wait();
            self.idle.push(memory.map_err(|error| error.to_string())?);
        }
        Ok(())
    }
}
