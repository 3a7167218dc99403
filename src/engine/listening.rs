//! A listener as the reactor's core has it: one or more places, some of which may be lost.
//!
//! A place is lost with its device. The listener goes on with the others and takes the lost ones up again when they can
//! be listened on; without any it is over.

use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tracing::{info, warn};

use super::ListenAt;
use super::group::Members;
use super::listener::ListenShared;
use super::options::ChannelOptions;
use crate::rdma::{ListenerId, Provider, RdmaError};

/// How often lost places are tried again.
pub(crate) const TRY_AGAIN: Duration = Duration::from_secs(1);

/// A listener.
pub(crate) struct Listening {
    places: Vec<Place>,
    pub(crate) shared: Arc<ListenShared>,
    pub(crate) options: Arc<ChannelOptions>,
    /// Reactors among which its connections are spread.
    pub(crate) members: Weak<Members>,
}

struct Place {
    /// `None` while it is lost.
    id: Option<ListenerId>,
    /// Where it is, with the port that it was given.
    at: ListenAt,
}

impl Listening {
    /// Listens on all the places, or on none.
    pub(crate) fn open(
        provider: &mut dyn Provider,
        places: &[ListenAt],
        options: Arc<ChannelOptions>,
        shared: &Arc<ListenShared>,
        members: Weak<Members>,
    ) -> Result<Self, RdmaError> {
        let mut listening = Self {
            places: Vec::with_capacity(places.len()),
            shared: shared.clone(),
            options,
            members,
        };
        for at in places {
            match listening.listen(provider, at) {
                Ok(place) => listening.places.push(place),
                Err(error) => {
                    listening.close(provider);
                    return Err(error);
                }
            }
        }
        Ok(listening)
    }

    fn listen(&self, provider: &mut dyn Provider, at: &ListenAt) -> Result<Place, RdmaError> {
        let mut options = self.options.listen.clone();
        options.type_of_service = options.type_of_service.or(self.options.type_of_service);
        options.device.clone_from(&at.device);
        let id = provider.listen(at.address, &options)?;
        let mut at = at.clone();
        at.address = provider.listener_address(id).unwrap_or(at.address);
        Ok(Place { id: Some(id), at })
    }

    /// Ends it in the provider.
    pub(crate) fn close(self, provider: &mut dyn Provider) {
        for id in self.places.into_iter().filter_map(|place| place.id) {
            provider.unlisten(id);
        }
    }

    pub(crate) fn has(&self, listener: ListenerId) -> bool {
        self.places.iter().any(|place| place.id == Some(listener))
    }

    /// Where it is, lost places among them.
    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        self.places.iter().map(|place| place.at.address).collect()
    }

    /// One of its places is lost. Whether there are others.
    pub(crate) fn lose(&mut self, listener: ListenerId, error: &RdmaError) -> bool {
        for place in &mut self.places {
            if place.id == Some(listener) {
                place.id = None;
                warn!(address = %place.at.address, %error, "a listener lost an address");
            }
        }
        self.places.iter().any(|place| place.id.is_some())
    }

    /// Tries to take up again what is lost. Whether something still is.
    pub(crate) fn take_up(&mut self, provider: &mut dyn Provider) -> bool {
        for n in 0..self.places.len() {
            let at = self.places[n].at.clone();
            if self.places[n].id.is_some() {
                continue;
            }
            if let Ok(place) = self.listen(provider, &at) {
                info!(address = %at.address, "the listener has its address again");
                self.places[n] = place;
            }
        }
        self.is_partly_lost()
    }

    /// Whether it goes on without some of its places. Without any it does not go on.
    pub(crate) fn is_partly_lost(&self) -> bool {
        let lost = |place: &Place| place.id.is_none();
        self.places.iter().any(lost) && !self.places.iter().all(lost)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rdma::sim::{DeviceOptions, Network, NetworkOptions};

    #[test]
    fn lost_places_are_taken_up_again_while_there_are_others() {
        let network = Network::new(1, NetworkOptions::default());
        let host = [10, 0, 0, 1].into();
        let mut provider = network.provider_with(host, DeviceOptions::rxe());
        let places = [445, 446].map(|port| ListenAt::new((host, port).into()));
        let shared = Arc::new(ListenShared::new(1));
        let open = |provider: &mut dyn Provider| {
            let options = Arc::new(ChannelOptions::default());
            Listening::open(provider, &places, options, &shared, Weak::new())
        };
        let mut listening = open(&mut provider).unwrap();
        let addresses = listening.addresses();
        let ids: Vec<ListenerId> = listening.places.iter().filter_map(|p| p.id).collect();
        assert_eq!((ids.len(), listening.is_partly_lost()), (2, false));

        assert!(listening.lose(ids[0], &RdmaError::DeviceRemoved));
        assert!(listening.is_partly_lost() && !listening.has(ids[0]) && listening.has(ids[1]));
        // The provider has it still, as a device that is not back yet would refuse it.
        assert!(listening.take_up(&mut provider));
        provider.unlisten(ids[0]);
        assert!(!listening.take_up(&mut provider));
        assert_eq!(listening.addresses(), addresses);

        let ids: Vec<ListenerId> = listening.places.iter().filter_map(|p| p.id).collect();
        assert!(listening.lose(ids[0], &RdmaError::DeviceRemoved));
        assert!(!listening.lose(ids[1], &RdmaError::DeviceRemoved));
        // It is over, and tries nothing more.
        assert!(!listening.is_partly_lost());
        for id in ids {
            provider.unlisten(id);
        }
        let whole = open(&mut provider).unwrap();
        assert!(open(&mut provider).is_err(), "the addresses are taken");
        whole.close(&mut provider);
        open(&mut provider).unwrap();
    }
}
