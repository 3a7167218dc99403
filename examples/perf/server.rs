//! The serving end: the same for SMB Direct and TCP but for the way of the content.

use std::sync::Arc;
use std::sync::mpsc;
use std::thread;

use smbdirect::proto::wire::BufferDescriptorV1;
use smbdirect::rdma::IoBuf;
use smbdirect::transport::{
    Error, Gather, Op, OutMessage, SteeringTag, Target, Transport, TransportExt,
};

use crate::protocol::{DONE, FIXED, Kind, parse};

/// Serves one client to its end.
pub(crate) fn serve(transport: &Arc<dyn Transport>, largest: usize) -> Result<(), String> {
    let text = |error: Error| error.to_string();
    let content = transport.allocate(largest).wait().map_err(text)?.freeze();
    thread::scope(|scope| {
        let (reads, begun) = mpsc::channel::<Op<IoBuf>>();
        // Answers writes when their content is there, while the next requests are taken.
        let answering = scope.spawn(move || {
            begun.into_iter().try_for_each(|op| {
                let content = op.wait().map_err(text)?;
                drop(content);
                transport.send_blocking(&DONE, None).map_err(text)
            })
        });
        while let Some(message) = transport.recv_blocking(None).map_err(text)? {
            let (kind, len) = parse(&message)?;
            if len > largest {
                return Err(format!("a request of {len} bytes"));
            }
            match (kind, transport.direct()) {
                (Kind::Echo, _) => transport.send_blocking(&message, None).map_err(text)?,
                (Kind::Read, None) => send(transport, content.slice(0..len).into())?,
                (Kind::Write, None) => transport.send_blocking(&DONE, None).map_err(text)?,
                (Kind::Read, Some(direct)) => {
                    let (target, token) = target(&message[FIXED..])?;
                    let token = direct.remote_invalidation().then_some(token);
                    let content = Gather::from(content.slice(0..len));
                    let mut op =
                        direct.write_then_send(content, target, OutMessage::from(&DONE), token);
                    // Its end shows in the response; a refusal shows at once.
                    if let Some(Err(error)) = op.try_take() {
                        return Err(error.to_string());
                    }
                }
                (Kind::Write, Some(direct)) => {
                    let (target, _) = target(&message[FIXED..])?;
                    let into = transport.allocate(len).wait().map_err(text)?;
                    reads
                        .send(direct.read(into, 0..len, target))
                        .map_err(|_| "the answering thread has ended")?;
                }
            }
        }
        drop(reads);
        answering
            .join()
            .map_err(|_| "the answering thread panicked".to_owned())?
    })
}

fn send(transport: &Arc<dyn Transport>, message: Gather) -> Result<(), String> {
    transport
        .ready_blocking(None)
        .map_err(|error| error.to_string())?;
    transport
        .start_send(OutMessage::Gather(message))
        .map_err(|error| Error::from(error).to_string())
}

fn target(descriptors: &[u8]) -> Result<(Target, SteeringTag), String> {
    let descriptors = BufferDescriptorV1::parse_array(descriptors)
        .map_err(|error| format!("a request whose descriptors cannot be read: {error}"))?;
    let token = descriptors.first().ok_or("a request without descriptors")?;
    let token = SteeringTag(token.token);
    Ok((Target::new(descriptors), token))
}
