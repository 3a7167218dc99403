//! Where to listen: the places that the options name, with the usual ports of their devices.

use std::net::IpAddr;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;

use smbdirect::engine::{
    ChannelOptions, DirectListener, ListenAt, Reactor, ReactorGroup, ReactorOptions,
};
use smbdirect::rdma::{self, AcceptFilter, ProviderKind};
use smbdirect::transport::Error;

use crate::options::{Options, Place};
use crate::report::Log;
use crate::sparing::Sparing;

/// Where clients come from.
pub(crate) struct Listening {
    pub(crate) reactors: ReactorGroup,
    pub(crate) listener: DirectListener,
    /// Who may connect; counts who may not.
    pub(crate) filter: AcceptFilter,
}

/// Opens the provider and listens.
///
/// # Errors
/// What is wrong and what to do about it, in words.
pub(crate) fn listen(options: &Options, log: &Log) -> Result<Listening, String> {
    let kind = options.provider;
    let open = |error: Error| format!("provider {kind}: {error}{}", remedy(kind));
    let reactor = |_| Reactor::new(rdma::open(kind)?, ReactorOptions::default());
    let reactors = (0..options.threads).map(reactor).collect::<Result<_, _>>();
    let reactors = reactors.and_then(ReactorGroup::new).map_err(open)?;
    reactors.spawn().map_err(open)?;
    let places = places(kind, &options.listen)?;
    let filter = filter(options, log)?;
    let mut channel = ChannelOptions::default();
    channel.listen.filter = filter.clone();
    let listener = reactors
        .listen(&places, channel)
        .map_err(|error| explain(&places, &error))?;
    Ok(Listening {
        reactors,
        listener,
        filter,
    })
}

fn filter(options: &Options, log: &Log) -> Result<AcceptFilter, String> {
    if options.allow.is_empty() {
        return Ok(AcceptFilter::everybody());
    }
    let allow = options.allow.clone();
    let (refused, told) = sync_channel(16);
    tell_refused(told, log.clone())?;
    Ok(AcceptFilter::new(move |peer| {
        let allowed = allow.iter().any(|network| network.contains(peer));
        if !allowed {
            // It may not block here. Who is not told of is counted.
            let _ = refused.try_send(peer);
        }
        allowed
    }))
}

/// Prints who was refused.
fn tell_refused(refused: Receiver<IpAddr>, log: Log) -> Result<(), String> {
    let tell = move || {
        let mut sparing = Sparing::new();
        for client in refused {
            sparing.tell(client, |client| log.not_allowed(*client));
        }
    };
    let thread = thread::Builder::new().name("refusals".into());
    thread
        .spawn(tell)
        .map(drop)
        .map_err(|error| format!("no thread for telling of refused clients: {error}"))
}

fn places(kind: ProviderKind, wanted: &[Place]) -> Result<Vec<ListenAt>, String> {
    if wanted.is_empty() {
        return everywhere(kind);
    }
    let mut places = Vec::new();
    for place in wanted {
        match place.port {
            Some(port) => places.push(ListenAt::new((place.address, port).into())),
            // The wildcard stands for the devices' addresses: each has the port of its device.
            None if place.address.is_unspecified() => places.extend(everywhere(kind)?),
            None => {
                places.push(ListenAt::usual(kind, place.address).map_err(|error| {
                    format!("--listen {}: {error}{}", place.address, remedy(kind))
                })?)
            }
        }
    }
    Ok(places)
}

fn everywhere(kind: ProviderKind) -> Result<Vec<ListenAt>, String> {
    ListenAt::everywhere(kind).map_err(|error| format!("{error}{}", remedy(kind)))
}

/// What else there is where RDMA devices cannot be used.
fn remedy(kind: ProviderKind) -> &'static str {
    match kind {
        ProviderKind::Verbs => {
            "; or, without RDMA devices, --provider iwarp: SMB Direct in software, slower than SMB \
             over TCP"
        }
        _ => "",
    }
}

fn explain(places: &[ListenAt], error: &Error) -> String {
    let places: Vec<String> = places.iter().map(|at| at.address.to_string()).collect();
    // Which of them it is, and what to do, the error says.
    format!("cannot listen on {}: {error}", places.join(", "))
}
