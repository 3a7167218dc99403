//! The client's side: exposes memory, asks for transfers, compares.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use smbdirect::engine::{Channel, ChannelOptions, ExposedList, ReactorGroup};
use smbdirect::rdma::{IoBuf, RemoteAccess};
use smbdirect::transport::{Close, DirectPlacement, Transport, TransportExt};

use crate::Options;
use crate::protocol::{Operation, Request, Response, checksum};
use crate::{payload, units};

/// Nothing takes so long.
const PATIENCE: Option<Duration> = Some(Duration::from_secs(60));
/// How often to say how far it is, where it takes long.
const TELL: Duration = Duration::from_secs(2);

/// Stores and fetches content of all the sizes.
pub(crate) fn run(
    reactors: &ReactorGroup,
    address: SocketAddr,
    options: &Options,
) -> Result<(), String> {
    let channel = reactors
        .connect(address, ChannelOptions::default())
        .wait()
        .map_err(|error| crate::endpoint::explain("cannot connect to", address, &error))?;
    let max = channel.limits().max_transfer as usize;
    let how = match channel.remote_invalidation() {
        true => "invalidated by the server's responses",
        false => "taken back by the client",
    };
    println!(
        "up to {} per operation; exposed memory is {how}",
        units::bytes(max as u64)
    );
    println!(
        "{:>10} {:>9} {:>10} {:>12} {:>12}",
        "size", "times", "operations", "to server", "to client"
    );
    for size in &options.sizes {
        let times = options.total.div_ceil((*size).max(1)).clamp(1, 1000);
        let mut pieces = Vec::new();
        for time in 0..times {
            let start = (time * size) as u64;
            for at in (0..*size).step_by(max.max(1)) {
                pieces.push(Piece {
                    offset: start + at as u64,
                    len: max.min(size - at),
                });
            }
        }
        let bytes = (times * size) as f64;
        let put = go(&channel, Operation::Put, &pieces, options)?;
        let get = go(&channel, Operation::Get, &pieces, options)?;
        let rate = |time: Duration| format!("{:.1} MB/s", bytes / 1e6 / time.as_secs_f64());
        println!(
            "{:>10} {:>9} {:>10} {:>12} {:>12}",
            units::bytes(*size as u64),
            units::count(times as u64),
            units::count(pieces.len() as u64),
            rate(put),
            rate(get)
        );
    }
    let stats = channel.stats();
    println!(
        "verified: every byte, and the checksums of both sides; {} exposures, {} invalidated by the server",
        units::count(stats.registrations),
        units::count(stats.remote_invalidations)
    );
    channel.close(Close::Graceful(Duration::from_secs(10)));
    channel
        .closed_blocking(PATIENCE)
        .map(|_| ())
        .ok_or("the connection did not close".into())
}

/// A part of the content: one operation.
#[derive(Clone, Copy)]
struct Piece {
    offset: u64,
    len: usize,
}

/// All pieces in one direction, many in flight. Returns how long the transfers took.
///
/// They go in rounds, so that making and comparing content, which is not what is measured, never overlaps with them.
fn go(
    channel: &Channel,
    operation: Operation,
    pieces: &[Piece],
    options: &Options,
) -> Result<Duration, String> {
    let mut measured = Duration::ZERO;
    let mut done = 0;
    let mut told = Instant::now();
    for round in pieces.chunks(options.in_flight) {
        if told.elapsed() >= TELL {
            told = Instant::now();
            let what = match operation {
                Operation::Put => "to server",
                Operation::Get => "to client",
            };
            eprintln!("{what}: {done} of {} operations", pieces.len());
        }
        let memory = round
            .iter()
            .map(|piece| prepare(channel, operation, *piece, options))
            .collect::<Result<Vec<_>, _>>()?;
        let begin = Instant::now();
        let answered = transfer(channel, operation, round, memory)?;
        measured += begin.elapsed();
        for (piece, response, memory) in answered {
            verify(&memory, &response, piece, options)?;
        }
        done += round.len();
    }
    Ok(measured.max(Duration::from_nanos(1)))
}

/// Memory for one operation, in as many buffers as was asked for: what the server is to read, or nothing yet.
fn prepare(
    channel: &Channel,
    operation: Operation,
    piece: Piece,
    options: &Options,
) -> Result<Vec<IoBuf>, String> {
    let mut content = vec![0; piece.len];
    if operation == Operation::Put {
        payload::fill(&mut content, options.seed, piece.offset, 0);
    }
    let mut buffers = Vec::with_capacity(options.buffers);
    for part in content.chunks(piece.len.div_ceil(options.buffers).max(1)) {
        let buffer = channel.allocate(part.len()).wait();
        let mut buffer = buffer.map_err(|error| error.to_string())?;
        buffer.copy_from_slice(part);
        buffers.push(buffer);
    }
    Ok(buffers)
}

/// One operation for each piece, all in flight at once. They end in any order.
fn transfer(
    channel: &Channel,
    operation: Operation,
    round: &[Piece],
    memory: Vec<Vec<IoBuf>>,
) -> Result<Vec<(Piece, Response, Vec<IoBuf>)>, String> {
    let mut flying: HashMap<u64, (Piece, ExposedList)> = HashMap::new();
    for (piece, memory) in round.iter().zip(memory) {
        let id = flying.len() as u64;
        let exposed = ask(channel, operation, id, *piece, memory)?;
        flying.insert(id, (*piece, exposed));
    }
    let mut answered = Vec::with_capacity(round.len());
    while !flying.is_empty() {
        let message = channel
            .recv_blocking(PATIENCE)
            .map_err(|error| error.to_string())?
            .ok_or("the server closed before it was done")?;
        let response = Response::decode(&message).ok_or("the server's response is not valid")?;
        let (piece, exposed) = flying
            .remove(&response.id)
            .ok_or("the server answered something that was not asked")?;
        let memory = exposed
            .reclaim()
            .wait()
            .map_err(|error| error.to_string())?;
        answered.push((piece, response, memory));
    }
    Ok(answered)
}

/// Exposes memory and asks the server to use it.
fn ask(
    channel: &Channel,
    operation: Operation,
    id: u64,
    piece: Piece,
    memory: Vec<IoBuf>,
) -> Result<ExposedList, String> {
    let access = match operation {
        Operation::Get => RemoteAccess::Write,
        Operation::Put => RemoteAccess::Read,
    };
    let mut exposed = channel
        .expose_list(memory, access)
        .map_err(|error| error.to_string())?;
    let invalidate = channel.remote_invalidation();
    if invalidate {
        exposed.offer_invalidation();
    }
    let request = Request {
        operation,
        invalidate,
        id,
        offset: piece.offset,
        len: u32::try_from(piece.len).map_err(|_| "a piece above 4 GiB")?,
        descriptors: exposed.descriptors().to_vec(),
    };
    channel
        .send_blocking(&request.encode(), PATIENCE)
        .map_err(|error| error.to_string())?;
    Ok(exposed)
}

fn verify(
    buffers: &[IoBuf],
    response: &Response,
    piece: Piece,
    options: &Options,
) -> Result<(), String> {
    let at = piece.offset;
    if !response.ok {
        return Err(format!("the server's file failed at {at}"));
    }
    let whole;
    let memory: &[u8] = match buffers {
        [only] => only,
        buffers => {
            whole = buffers
                .iter()
                .flat_map(|b| b.iter().copied())
                .collect::<Vec<u8>>();
            &whole
        }
    };
    if let Some(wrong) = payload::first_difference(memory, options.seed, piece.offset, 0) {
        return Err(format!("byte {wrong} of the piece at {at} is wrong"));
    }
    if checksum(memory) != response.checksum {
        return Err(format!("the checksums of the piece at {at} differ"));
    }
    Ok(())
}
