//! Making queue pairs: what may block apart from what belongs to the provider.

use super::conn::{Conn, State};
use super::nudge::NUDGES;
use super::provider::Verbs;
use super::resources::MadePair;
use super::sys;
use crate::rdma::inflight::Ring;
use crate::rdma::{ConnId, QpMade, QpOptions, QpWork, RdmaError, RdmaOperation};

impl Verbs {
    /// Makes a queue pair. May block.
    pub(super) fn make_qp(&mut self, conn: ConnId, options: &QpOptions) -> Result<(), RdmaError> {
        match self.qp_work(conn, options)?.run() {
            Ok(made) => self.join_qp(conn, made),
            Err(error) => {
                let reserved = self.conn_mut(conn).and_then(|found| found.reserved.take());
                if let Some((queue, places)) = reserved
                    && let Some(device) = self.conn(conn).and_then(|found| found.device)
                {
                    self.devices[device].release(queue, places);
                }
                Err(error)
            }
        }
    }

    /// Reserves places for a queue pair, and gives what makes it.
    pub(super) fn qp_work(
        &mut self,
        conn: ConnId,
        options: &QpOptions,
    ) -> Result<QpWork, RdmaError> {
        let operation = RdmaOperation::CreateQueuePair;
        let found = self.conn(conn).ok_or(RdmaError::Closed)?;
        let device = found.device.ok_or(RdmaError::State(operation))?;
        if found.state != State::Ready || found.queue_pair.is_some() || found.reserved.is_some() {
            return Err(RdmaError::State(operation));
        }
        let (cm, domain) = (found.cm.clone(), found.domain.clone());
        let capabilities = &self.devices[device].capabilities;
        let within = |asked: u32, limit: u32| {
            if asked > limit {
                return Err(RdmaError::Limit {
                    operation,
                    asked: asked.into(),
                    limit: limit.into(),
                });
            }
            Ok(asked.max(1))
        };
        // iWARP's connecting side may have to nudge the peer, soft-iWARP's accepting side itself.
        let nudges = match found.route {
            Some(_) if self.is_iwarp(found) => NUDGES,
            None if self.devices[device].quirks.overlooks_first => NUDGES,
            _ => 0,
        };
        let cap = sys::ibv_qp_cap {
            max_send_wr: within(options.send_depth, capabilities.max_send_depth)? + nudges,
            max_recv_wr: within(options.receive_depth, capabilities.max_receive_depth)?,
            max_send_sge: options.max_gather.clamp(1, capabilities.max_gather as u32),
            max_recv_sge: 1,
            max_inline_data: options.inline,
        };
        let places = cap.max_send_wr + cap.max_recv_wr;
        let queue = self.devices[device].reserve(places)?;
        let domain = domain.or_else(|| self.devices[device].shared_domain());
        let make_domain = self.devices[device].domain_maker();
        let make_queue = self.devices[device].queue_maker(queue);
        let signalled_from = self.devices[device].quirks.signalled_from;
        if let Some(found) = self.conn_mut(conn) {
            found.signalled_from = signalled_from;
            // They go back with the connection, whatever becomes of the queue pair.
            found.reserved = Some((queue, places));
        }
        Ok(QpWork::new(move || {
            let domain = domain.map_or_else(make_domain, Ok)?;
            let queue_pair = MadePair::new(cm, domain.clone(), make_queue()?, cap, nudges)
                .map_err(|error| RdmaError::os(operation, &error))?;
            Ok(QpMade::new(domain, Box::new(queue_pair)))
        }))
    }

    /// Gives a connection the queue pair that was made for it.
    pub(super) fn join_qp(&mut self, conn: ConnId, made: QpMade) -> Result<(), RdmaError> {
        let made = made.into_made().downcast::<MadePair>();
        let operation = RdmaOperation::CreateQueuePair;
        let mut made = made.map_err(|_| RdmaError::State(operation))?;
        let waits = |found: &&mut Conn| found.state == State::Ready && found.reserved.is_some();
        let Some(found) = self.conn_mut(conn).filter(waits) else {
            self.leave(made);
            return Err(RdmaError::Closed);
        };
        let (queue, _) = found.reserved.ok_or(RdmaError::Closed)?;
        let device = found.device.ok_or(RdmaError::State(operation))?;
        let queue_pair = made.take().ok_or(RdmaError::State(operation))?;
        found.sends = Ring::with_capacity(queue_pair.send_depth);
        found.receives = Ring::with_capacity(queue_pair.receive_depth);
        found.queue_pair = Some(queue_pair);
        found.domain = Some(made.domain().clone());
        let device = &mut self.devices[device];
        device.keep_domain(made.domain());
        // A driver that sleeps already has not asked the queue for announcements, if it is new.
        device.queues[queue].arm()?;
        Ok(())
    }
}
