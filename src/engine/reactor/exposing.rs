//! Exposing memory and taking it back, as calls on a channel do it: under the reactor's lock, but with nothing under it that
//! a device may block on.

use super::Shared;
use crate::engine::exposures::{ExposureId, Reclaim};
use crate::engine::retired::Retired;
use crate::rdma::{ConnId, IoPin, RdmaError, Registration, RemoteAccess, Window};
use crate::transport::List;

impl Shared {
    /// Exposes memory of a connection to its peer, in pieces with their registrations where the device needs them.
    pub(crate) fn expose(
        &self,
        conn: ConnId,
        mut pieces: impl Iterator<Item = (IoPin, Option<Registration>)>,
        access: RemoteAccess,
    ) -> Result<(ExposureId, List<Window>), RdmaError> {
        let mut windows = List::default();
        loop {
            let exposed =
                self.with_core(|core| core.expose(conn, &mut pieces, access, &mut windows))?;
            if let Some(exposure) = exposed {
                return Ok((exposure, windows));
            }
        }
    }

    /// Takes exposed memory back; see [`Exposed::reclaim`](crate::engine::Exposed::reclaim).
    pub(crate) fn reclaim(&self, conn: ConnId, id: ExposureId, reclaim: Reclaim) {
        let mut taken = Some(reclaim);
        self.with_conn(conn, |conn, cx| {
            if let Some(reclaim) = taken.take() {
                conn.reclaim(id, reclaim, cx);
            }
        });
        // The connection is gone, and every right with it: as soon as what it has left behind has ended.
        if let Some(reclaim) = taken {
            self.retired.extend([Retired::Memory(reclaim)]);
            self.work_off_retired();
        }
    }
}
