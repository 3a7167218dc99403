//! The client's side: exposes memory, asks for transfers, compares.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use smbdirect::engine::{Channel, ChannelOptions, Exposed, Reactor};
use smbdirect::rdma::{IoBuf, RemoteAccess};
use smbdirect::transport::{Close, DirectPlacement, Transport, TransportExt};

use crate::Options;
use crate::protocol::{Operation, Request, Response, checksum};
use crate::{payload, units};

/// Nothing takes so long.
const PATIENCE: Option<Duration> = Some(Duration::from_secs(60));

/// Stores and fetches content of all the sizes.
pub(crate) fn run(reactor: &Reactor, address: SocketAddr, options: &Options) -> Result<(), String> {
    let channel = reactor
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

/// All pieces in one direction, many in flight. Returns how long it took.
fn go(
    channel: &Channel,
    operation: Operation,
    pieces: &[Piece],
    options: &Options,
) -> Result<Duration, String> {
    let mut waiting = pieces.iter().copied().enumerate();
    let mut flying: HashMap<u64, (Piece, Exposed)> = HashMap::new();
    let mut left = pieces.len();
    let begin = Instant::now();
    let mut verifying = Duration::ZERO;
    while left > 0 {
        while flying.len() < options.in_flight
            && let Some((id, piece)) = waiting.next()
        {
            let pause = Instant::now();
            let mut memory = channel
                .allocate(piece.len)
                .wait()
                .map_err(|e| e.to_string())?;
            match operation {
                Operation::Put => payload::fill(&mut memory, options.seed, piece.offset, 0),
                Operation::Get => memory.fill(0),
            }
            verifying += pause.elapsed();
            let id = id as u64;
            let exposed = ask(channel, operation, id, piece, memory)?;
            flying.insert(id, (piece, exposed));
        }
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
        let pause = Instant::now();
        verify(&memory, &response, piece, options)?;
        verifying += pause.elapsed();
        left -= 1;
    }
    // Making and comparing content is not what is measured.
    Ok(begin
        .elapsed()
        .saturating_sub(verifying)
        .max(Duration::from_nanos(1)))
}

/// Exposes memory and asks the server to use it.
fn ask(
    channel: &Channel,
    operation: Operation,
    id: u64,
    piece: Piece,
    memory: IoBuf,
) -> Result<Exposed, String> {
    let access = match operation {
        Operation::Get => RemoteAccess::Write,
        Operation::Put => RemoteAccess::Read,
    };
    let mut exposed = channel
        .expose(memory, access)
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
    memory: &IoBuf,
    response: &Response,
    piece: Piece,
    options: &Options,
) -> Result<(), String> {
    let at = piece.offset;
    if !response.ok {
        return Err(format!("the server's file failed at {at}"));
    }
    if let Some(wrong) = payload::first_difference(memory, options.seed, piece.offset, 0) {
        return Err(format!("byte {wrong} of the piece at {at} is wrong"));
    }
    if checksum(memory) != response.checksum {
        return Err(format!("the checksums of the piece at {at} differ"));
    }
    Ok(())
}
