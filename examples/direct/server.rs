//! The server's side: acts on the descriptors of requests, and never waits for one before it takes the next.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;

use smbdirect::rdma::IoBuf;
use smbdirect::transport::{
    DirectPlacement, Op, OutMessage, SteeringTag, Target, Transport, TransportExt,
};

use crate::protocol::{Operation, Request, Response, checksum};

/// The file.
pub(crate) struct Store {
    file: File,
}

/// What was done for a client.
pub(crate) struct Served {
    pub(crate) operations: u64,
    pub(crate) bytes_read: u64,
    pub(crate) bytes_written: u64,
}

impl Store {
    /// Opens the file; without a name a temporary one that nobody else sees.
    pub(crate) fn open(path: Option<&Path>) -> Result<Self, String> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let (path, temporary) = match path {
            Some(path) => (path.to_owned(), false),
            None => {
                let name = format!("smbdirect-store-{}", std::process::id());
                (std::env::temp_dir().join(name), true)
            }
        };
        let explain = |error| format!("{}: {error}", path.display());
        let file = options.open(&path).map_err(explain)?;
        if temporary {
            std::fs::remove_file(&path).map_err(explain)?;
        }
        Ok(Self { file })
    }
}

/// Serves one client to its end.
pub(crate) fn serve(transport: &Arc<dyn Transport>, store: &Store) -> Result<Served, String> {
    let direct = transport
        .direct()
        .ok_or("the connection has no direct placement")?;
    let mut operations = 0;
    thread::scope(|scope| {
        // What was read from clients is written to the file beside the receiving of requests.
        let (reads, finished) = mpsc::channel::<(Request, Op<IoBuf>)>();
        let writer = scope.spawn(move || {
            finished
                .into_iter()
                .try_for_each(|(request, op)| finish_put(transport, store, request, op))
        });
        while let Some(message) = transport.recv_blocking(None).map_err(|e| e.to_string())? {
            let request = Request::decode(&message).ok_or("the client's request is not valid")?;
            operations += 1;
            match request.operation {
                Operation::Get => get(&**transport, direct, store, request)?,
                Operation::Put => {
                    let len = request.len as usize;
                    let target = Target::new(request.descriptors.as_slice());
                    let into = transport.allocate(len).wait().map_err(|e| e.to_string())?;
                    let op = direct.read(into, 0..len, target);
                    reads
                        .send((request, op))
                        .map_err(|_| "the writer of the file has failed")?;
                }
            }
        }
        drop(reads);
        writer
            .join()
            .map_err(|_| "the writer of the file panicked".to_owned())?
    })?;
    let stats = transport.stats();
    Ok(Served {
        operations,
        bytes_read: stats.bytes_rdma_read,
        bytes_written: stats.bytes_rdma_written,
    })
}

/// Content goes to the client's memory, and the response right behind it.
fn get(
    transport: &dyn Transport,
    direct: &dyn DirectPlacement,
    store: &Store,
    request: Request,
) -> Result<(), String> {
    let mut data = transport
        .allocate(request.len as usize)
        .wait()
        .map_err(|e| e.to_string())?;
    let read = store.file.read_exact_at(&mut data, request.offset);
    let response = Response {
        id: request.id,
        ok: read.is_ok(),
        checksum: checksum(&data),
    };
    if let Err(error) = read {
        println!("the file cannot be read: {error}");
        return respond(transport, &request, &response);
    }
    let token = token(&request);
    let target = Target::new(request.descriptors);
    // The transfer goes on when the operation is dropped; its end shows in the response.
    let mut op = direct.write_then_send(
        data.into(),
        target,
        OutMessage::Slice(&response.encode()),
        token,
    );
    match op.try_take() {
        Some(Err(error)) => Err(error.to_string()),
        _ => Ok(()),
    }
}

/// Content has come from the client's memory, or will soon.
fn finish_put(
    transport: &Arc<dyn Transport>,
    store: &Store,
    request: Request,
    op: Op<IoBuf>,
) -> Result<(), String> {
    let data = op
        .wait()
        .map_err(|error| format!("reading the client's memory: {error}"))?;
    let written = store.file.write_all_at(&data, request.offset);
    if let Err(error) = &written {
        println!("the file cannot be written: {error}");
    }
    let response = Response {
        id: request.id,
        ok: written.is_ok(),
        checksum: checksum(&data),
    };
    respond(&**transport, &request, &response)
}

fn respond(
    transport: &dyn Transport,
    request: &Request,
    response: &Response,
) -> Result<(), String> {
    transport
        .respond_blocking(&response.encode(), token(request), None)
        .map_err(|error| error.to_string())
}

/// What the response invalidates: the token of the first descriptor.
fn token(request: &Request) -> Option<SteeringTag> {
    let first = request.descriptors.first().filter(|_| request.invalidate)?;
    Some(SteeringTag(first.token))
}
