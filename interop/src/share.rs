//! Files on a share, piece by piece, many pieces in flight.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use smb2::client::connection::Frame;
use smb2::client::{Connection, Session, Tree};
use smb2::types::status::NtStatus;
use smb2::types::{Command, CreditCharge, FileId};
use smbdirect::engine::Exposed;
use smbdirect::rdma::{IoBuf, RemoteAccess};
use smbdirect::smb2::{ChannelRules, Dialect, PlacedRead, Placement, TransformCapabilities};
use smbdirect::transport::{DirectPlacement, Stats, Transport};
use tokio::task::JoinSet;

use crate::args::Args;
use crate::content::Content;
use crate::failure::{Failure, Result};
use crate::link::Link;
use crate::request::{self, Body};

/// What stands around the data of a message: header, body, and some to spare.
const AROUND_DATA: u64 = 256;
/// Bytes per request when data is in messages: what a server takes that takes the least.
const MESSAGE_CHUNK: u64 = 128 << 10;
/// [MS-SMB2] 3.1.5.2: bytes that a credit pays for.
const CREDIT: u32 = 64 << 10;

/// How the data of a file travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// In messages.
    Messages,
    /// By RDMA.
    Placed {
        /// Whether the server is asked to invalidate the memory with its answer.
        invalidate: bool,
    },
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Messages => "messages",
            Self::Placed { invalidate: false } => "v1",
            Self::Placed { invalidate: true } => "invalidate",
        })
    }
}

/// What has travelled so far.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Travelled {
    /// Bytes that the server's answers say it placed or fetched.
    pub(crate) placed: u64,
    /// READ and WRITE requests with a channel.
    pub(crate) requests: u64,
    /// Bytes of messages, both ways.
    pub(crate) messages: u64,
    /// Exposures that the server invalidated.
    pub(crate) invalidated: u64,
}

/// A share of a server. Clones are the same share.
#[derive(Clone)]
pub(crate) struct Share {
    connection: Connection,
    tree: Tree,
    transport: Arc<dyn Transport>,
    rules: ChannelRules,
    signed: bool,
    chunk: u32,
    in_flight: usize,
    counters: Arc<Counters>,
}

#[derive(Default)]
struct Counters {
    placed: AtomicU64,
    requests: AtomicU64,
}

impl Share {
    /// Negotiates, logs in, and connects to the share.
    pub(crate) async fn open(link: &Link, args: &Args) -> Result<Self> {
        let (sender, receiver) = link.halves();
        let server = args.server.ip().to_string();
        let mut connection = Connection::from_transport(sender, receiver, server);
        connection.negotiate().await?;
        let session = Session::setup(&mut connection, &args.user, &args.password, "").await?;
        let tree = Tree::connect(&mut connection, &args.share).await?;
        let params = connection.params().ok_or(Failure::Dialect)?;
        let dialect = Dialect::from_revision(params.dialect.into()).ok_or(Failure::Dialect)?;
        let limits = link.transport.limits();
        let largest = params.max_read_size.min(params.max_write_size);
        Ok(Self {
            connection,
            tree,
            transport: link.transport.clone(),
            rules: ChannelRules {
                dialect,
                transforms: TransformCapabilities::default(),
            },
            signed: session.should_sign,
            chunk: args.chunk.min(largest).min(limits.max_transfer.max(1)),
            in_flight: args.in_flight,
            counters: Arc::default(),
        })
    }

    pub(crate) fn dialect(&self) -> Dialect {
        self.rules.dialect
    }

    pub(crate) fn signed(&self) -> bool {
        self.signed
    }

    /// The ways that this connection has.
    pub(crate) fn ways(&self) -> Vec<Way> {
        let mut ways = vec![Way::Messages];
        if let Some(direct) = self.transport.direct() {
            ways.push(Way::Placed { invalidate: false });
            // [MS-SMB2] 2.2.19: not on dialect 3.0.
            if direct.remote_invalidation() && self.rules.dialect > Dialect::Smb300 {
                ways.push(Way::Placed { invalidate: true });
            }
        }
        ways
    }

    pub(crate) fn travelled(&self) -> Travelled {
        let Stats {
            bytes_sent,
            bytes_received,
            remote_invalidations,
            ..
        } = self.transport.stats();
        Travelled {
            placed: self.counters.placed.load(Ordering::Relaxed),
            requests: self.counters.requests.load(Ordering::Relaxed),
            messages: bytes_sent + bytes_received,
            invalidated: remote_invalidations,
        }
    }

    /// Writes a new file.
    pub(crate) async fn upload(&self, name: &str, content: Content, way: Way) -> Result<()> {
        let file = self.create(name).await?;
        self.pieces(content.len, way, move |share, offset, len| async move {
            share.write_piece(file, content, offset, len, way).await
        })
        .await?;
        self.close(file).await
    }

    /// Reads a file and compares it with what it should be.
    pub(crate) async fn download(&self, name: &str, content: Content, way: Way) -> Result<()> {
        let (file, len) = self
            .tree
            .open_file(&mut self.connection.clone(), name)
            .await?;
        if len != content.len {
            return Err(Failure::Listing {
                name: name.to_owned(),
                len: content.len,
                found: Some(len),
            });
        }
        let shown = name.to_owned();
        self.pieces(len, way, move |share, offset, len| {
            let name = shown.clone();
            async move {
                let wrong = share.read_piece(file, content, offset, len, way).await?;
                match wrong {
                    None => Ok(()),
                    Some(at) => Err(Failure::Different { name, at }),
                }
            }
        })
        .await?;
        self.close(file).await
    }

    /// Names and sizes of all files.
    pub(crate) async fn list(&self) -> Result<Vec<(String, u64)>> {
        let entries = self
            .tree
            .list_directory(&mut self.connection.clone(), "")
            .await?;
        let files = entries.into_iter().filter(|entry| !entry.is_directory);
        Ok(files.map(|entry| (entry.name, entry.size)).collect())
    }

    pub(crate) async fn delete(&self, name: &str) -> Result<()> {
        let mut connection = self.connection.clone();
        Ok(self.tree.delete_file(&mut connection, name).await?)
    }

    pub(crate) async fn disconnect(self) -> Result<()> {
        let mut connection = self.connection.clone();
        Ok(self.tree.disconnect(&mut connection).await?)
    }

    /// A new, empty file, open for reading and writing.
    async fn create(&self, name: &str) -> Result<FileId> {
        let mut connection = self.connection.clone();
        // `smb2` opens without cutting to length 0. Most often there is nothing to delete.
        let _ = self.delete(name).await;
        let (file, _) = self.tree.open_file_readwrite(&mut connection, name).await?;
        Ok(file)
    }

    async fn close(&self, file: FileId) -> Result<()> {
        let mut connection = self.connection.clone();
        Ok(self.tree.close_handle(&mut connection, file).await?)
    }

    /// Does something for every piece of `len` bytes, so many at a time.
    async fn pieces<F, W>(&self, len: u64, way: Way, work: F) -> Result<()>
    where
        F: Fn(Self, u64, u32) -> W,
        W: Future<Output = Result<()>> + Send + 'static,
    {
        let step = self.step(way);
        let mut tasks = JoinSet::new();
        let mut offset = 0;
        while offset < len {
            if tasks.len() == self.in_flight
                && let Some(done) = tasks.join_next().await
            {
                done??;
            }
            let count = (len - offset).min(step);
            // At most `chunk` or MESSAGE_CHUNK, which fit.
            tasks.spawn(work(self.clone(), offset, count as u32));
            offset += count;
        }
        while let Some(done) = tasks.join_next().await {
            done??;
        }
        Ok(())
    }

    /// Bytes per request.
    fn step(&self, way: Way) -> u64 {
        let limits = self.transport.limits();
        match way {
            Way::Placed { .. } => self.chunk.into(),
            Way::Messages => MESSAGE_CHUNK
                .min(limits.max_send.saturating_sub(AROUND_DATA))
                .min(limits.max_receive.saturating_sub(AROUND_DATA)),
        }
    }

    async fn write_piece(
        &self,
        file: FileId,
        content: Content,
        offset: u64,
        len: u32,
        way: Way,
    ) -> Result<()> {
        let Way::Placed { invalidate } = way else {
            let mut data = vec![0; len as usize];
            content.fill(offset, &mut data);
            let request = request::write(file, offset, &data);
            let answer = self.ask(Command::Write, &request, len).await?;
            return written(&answer, offset, len);
        };
        let mut memory = self.transport.allocate(len as usize).await?;
        content.fill(offset, &mut memory);
        let (exposed, placement) = self.expose(memory, RemoteAccess::Read, invalidate)?;
        let request = request::placed_write(file, offset, &placement, &self.rules)?;
        let answer = self
            .ask_placed(Command::Write, &request, len, exposed)
            .await?;
        written(&answer.frame, offset, len)?;
        self.count(len);
        Ok(())
    }

    /// Where the piece is not what it should be, if anywhere.
    async fn read_piece(
        &self,
        file: FileId,
        content: Content,
        offset: u64,
        len: u32,
        way: Way,
    ) -> Result<Option<u64>> {
        let short = |moved: u64| Failure::Short {
            command: Command::Read,
            offset,
            moved,
            asked: len.into(),
        };
        let Way::Placed { invalidate } = way else {
            let request = request::read(file, offset, len);
            let answer = self.ask(Command::Read, &request, len).await?;
            let data = request::data(&answer.raw).ok_or(Failure::Malformed(Command::Read))?;
            if data.len() as u64 != u64::from(len) {
                return Err(short(data.len() as u64));
            }
            return Ok(content.difference(offset, data));
        };
        let mut memory = self.transport.allocate(len as usize).await?;
        // What an earlier read left there must not pass for this one's data.
        memory.fill(0xA5);
        let (exposed, placement) = self.expose(memory, RemoteAccess::Write, invalidate)?;
        let request = request::placed_read(file, offset, &placement, &self.rules)?;
        let answer = self
            .ask_placed(Command::Read, &request, len, exposed)
            .await?;
        let placed = PlacedRead::parse(&answer.frame.raw, len, &self.rules)?.placed;
        if placed != len {
            return Err(short(placed.into()));
        }
        self.count(len);
        Ok(content.difference(offset, &answer.memory))
    }

    fn direct(&self) -> Result<&dyn DirectPlacement> {
        self.transport.direct().ok_or(Failure::NoSuchWay)
    }

    fn expose(
        &self,
        memory: IoBuf,
        access: RemoteAccess,
        invalidate: bool,
    ) -> Result<(Exposed, Placement)> {
        // At most `chunk`, which fits.
        let length = memory.len() as u32;
        let mut exposed = self.direct()?.expose(memory, access)?;
        if invalidate {
            exposed.offer_invalidation();
        }
        let placement = Placement {
            length,
            invalidate,
            descriptors: exposed.descriptors().to_vec(),
            transform: None,
        };
        Ok((exposed, placement))
    }

    async fn ask(&self, command: Command, request: &Body, len: u32) -> Result<Frame> {
        let charge = CreditCharge(len.div_ceil(CREDIT).max(1) as u16);
        let tree = Some(self.tree.tree_id);
        let frame = self
            .connection
            .execute_with_credits(command, request, tree, charge)
            .await?;
        match frame.header.status {
            NtStatus::SUCCESS => Ok(frame),
            status => Err(Failure::Status { command, status }),
        }
    }

    /// Asks, and takes the memory back, whatever the answer. Dropped early, or without an answer,
    /// the memory stays with the connection until the server can no longer use it.
    async fn ask_placed(
        &self,
        command: Command,
        request: &Body,
        len: u32,
        exposed: Exposed,
    ) -> Result<Answer> {
        let answer = match self.ask(command, request, len).await {
            Ok(frame) => Ok(frame),
            Err(failure @ Failure::Status { .. }) => Err(failure),
            Err(failure) => return Err(failure),
        };
        let memory = exposed.reclaim().await?;
        Ok(Answer {
            frame: answer?,
            memory,
        })
    }

    fn count(&self, len: u32) {
        self.counters
            .placed
            .fetch_add(len.into(), Ordering::Relaxed);
        self.counters.requests.fetch_add(1, Ordering::Relaxed);
    }
}

/// An answer to a request with a channel, and the memory that the server used.
struct Answer {
    frame: Frame,
    memory: IoBuf,
}

fn written(answer: &Frame, offset: u64, len: u32) -> Result<()> {
    match request::written(&answer.raw) {
        Some(count) if count == len => Ok(()),
        Some(count) => Err(Failure::Short {
            command: Command::Write,
            offset,
            moved: count.into(),
            asked: len.into(),
        }),
        None => Err(Failure::Malformed(Command::Write)),
    }
}
