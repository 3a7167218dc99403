//! Making a queue pair in two halves, because devices take their time: what may block runs without the provider.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use super::{Domain, RdmaError};

/// The part of a queue pair's creation that may block. Runs on any thread, also when the provider or the connection is
/// gone meanwhile.
pub struct QpWork(Box<dyn FnOnce() -> Result<QpMade, RdmaError> + Send>);

/// A queue pair and its domain, for [`Provider::finish_qp`](super::Provider::finish_qp). Dropped, both go back to the
/// device.
pub struct QpMade {
    // Dropped in this order.
    made: Box<dyn Any + Send>,
    domain: Arc<dyn Domain>,
}

impl QpWork {
    /// From what is to be done.
    pub fn new(work: impl FnOnce() -> Result<QpMade, RdmaError> + Send + 'static) -> Self {
        Self(Box::new(work))
    }

    /// Does it.
    ///
    /// # Errors
    /// The device refuses, or is out of resources.
    pub fn run(self) -> Result<QpMade, RdmaError> {
        (self.0)()
    }
}

impl QpMade {
    /// From the provider's own record, which destroys the queue pair when it is dropped.
    pub fn new(domain: Arc<dyn Domain>, made: Box<dyn Any + Send>) -> Self {
        Self { made, domain }
    }

    /// The connection's domain.
    pub fn domain(&self) -> &Arc<dyn Domain> {
        &self.domain
    }

    /// The provider's own record.
    pub fn into_made(self) -> Box<dyn Any + Send> {
        self.made
    }
}

impl fmt::Debug for QpWork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("QpWork")
    }
}

impl fmt::Debug for QpMade {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "QpMade({:?})", self.domain)
    }
}
