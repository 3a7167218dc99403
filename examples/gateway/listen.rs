//! Where to listen: the places that the options name, with the usual ports of their devices.

use std::net::IpAddr;

use smbdirect::engine::{
    ChannelOptions, DirectListener, ListenAt, Reactor, ReactorGroup, ReactorOptions,
};
use smbdirect::rdma::{self, AcceptFilter, ProviderKind, RdmaError};
use smbdirect::transport::Error;

use crate::options::{Options, Place};

/// Where clients come from.
pub(crate) struct Listening {
    pub(crate) reactors: ReactorGroup,
    pub(crate) listener: DirectListener,
}

/// Opens the provider and listens. Who may connect says `filter`.
///
/// # Errors
/// What is wrong and what to do about it, in words.
pub(crate) fn listen(options: &Options, filter: AcceptFilter) -> Result<Listening, String> {
    let kind = options.provider;
    let open = |error: Error| format!("provider {kind}: {error}{}", remedy(kind));
    let reactor = |_| Reactor::new(rdma::open(kind)?, ReactorOptions::default());
    let reactors = (0..options.threads).map(reactor).collect::<Result<_, _>>();
    let reactors = reactors.and_then(ReactorGroup::new).map_err(open)?;
    reactors.spawn().map_err(open)?;
    let places = places(kind, &options.listen)?;
    let mut channel = ChannelOptions::default();
    channel.listen.filter = filter;
    let listener = reactors
        .listen(&places, channel)
        .map_err(|error| explain(&places, &error))?;
    Ok(Listening { reactors, listener })
}

fn places(kind: ProviderKind, wanted: &[Place]) -> Result<Vec<ListenAt>, String> {
    if wanted.is_empty() {
        return everywhere(kind);
    }
    let mut places = Vec::new();
    for place in wanted {
        match place.port {
            Some(port) => places.push(ListenAt::new((place.address, port).into())),
            None => {
                let usual = usual(kind, place.address);
                places.extend(usual.map_err(|error| {
                    format!("--listen {}: {error}{}", place.address, remedy(kind))
                })?);
            }
        }
    }
    Ok(places)
}

/// An address with the port of its device. A wildcard stands for the devices' addresses, which have
/// different ports; that of IPv6 for those of IPv4, too, as with sockets.
fn usual(kind: ProviderKind, address: IpAddr) -> Result<Vec<ListenAt>, RdmaError> {
    if kind != ProviderKind::Verbs || !address.is_unspecified() {
        return ListenAt::usual(kind, address).map(|place| vec![place]);
    }
    let mut places = ListenAt::everywhere(kind)?;
    places.retain(|at| address.is_ipv6() || at.address.is_ipv4());
    match places.is_empty() {
        true => Err(RdmaError::NoDevice((address, 0).into())),
        false => Ok(places),
    }
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
