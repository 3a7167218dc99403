//! Driving a reactor from a tokio runtime (feature `tokio`).

use std::future::Future;
use std::os::fd::{AsRawFd, RawFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::reactor::Reactor;
use crate::transport::Error;

/// What the runtime watches. The handle keeps the descriptor open.
struct Descriptor(Reactor);

impl AsRawFd for Descriptor {
    fn as_raw_fd(&self) -> RawFd {
        self.0.fd().as_raw_fd()
    }
}

impl Reactor {
    /// Drives the reactor as a task: the future of [`Reactor::fd`] and [`Reactor::poll`] on a tokio runtime. It ends
    /// after [`Reactor::shutdown`], or when nothing is left that needs it: no other handle of the reactor, no listener and
    /// no connection. At most one at a time, and none where [`Reactor::spawn`] was called.
    ///
    /// A turn of it does a bounded amount of work and then lets other tasks run, also when there is more. Nothing of it
    /// waits for time: the runtime needs its I/O driver only.
    ///
    /// Operations, channels and listeners are futures of no particular executor and may be awaited on any, the same
    /// runtime included.
    ///
    /// Cancel safe: dropped, it leaves a reactor that nobody drives until another one begins.
    /// [`Reactor::shutdown`] blocks its caller for up to its limit: in a task call [`Reactor::begin_shutdown`] and await
    /// the driver's end.
    ///
    /// # Errors
    /// The system does not let the descriptor be watched.
    ///
    /// # Panics
    /// When polled outside of a tokio runtime, or on one without its I/O driver.
    ///
    /// # Example
    /// ```
    /// # #[cfg(feature = "iwarp")]
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use std::{net::SocketAddr, time::Duration};
    ///
    /// use smbdirect::engine::{ChannelOptions, Reactor, ReactorOptions};
    /// use smbdirect::rdma::{self, ProviderKind};
    /// use smbdirect::transport::{Listener, ListenerExt, TransportExt};
    ///
    /// let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    /// runtime.block_on(async {
    ///     let reactor = Reactor::new(rdma::open(ProviderKind::Iwarp)?, ReactorOptions::default())?;
    ///     let driver = tokio::spawn(reactor.drive());
    ///
    ///     let loopback: SocketAddr = "127.0.0.1:0".parse()?;
    ///     let listener = reactor.listen(&[loopback], ChannelOptions::default())?;
    ///     let server = listener.local_addresses()[0];
    ///     tokio::spawn(async move {
    ///         let transport = listener.accept().await?;
    ///         while let Some(request) = transport.recv().await? {
    ///             transport.send(&request).await?;
    ///         }
    ///         Ok::<(), smbdirect::transport::Error>(())
    ///     });
    ///
    ///     let channel = reactor.connect(server, ChannelOptions::default()).await?;
    ///     channel.send(b"\xfeSMB...").await?;
    ///     assert_eq!(&channel.recv().await?.expect("an answer")[..], b"\xfeSMB...");
    ///
    ///     reactor.begin_shutdown(Duration::from_secs(5));
    ///     driver.await??;
    ///     Ok(())
    /// })
    /// # }
    /// # #[cfg(not(feature = "iwarp"))]
    /// # fn main() {}
    /// ```
    pub fn drive(&self) -> impl Future<Output = Result<(), Error>> + Send + 'static {
        let reactor = self.for_driver();
        async move {
            let failed = |error: std::io::Error| Error::os(&error);
            let descriptor = Descriptor(reactor.clone());
            // Its successor is unsafe, for descriptors that are closed too early. This one is open as long as the
            // reactor, which `Descriptor` holds.
            #[allow(deprecated)]
            let fd = AsyncFd::with_interest(descriptor, Interest::READABLE).map_err(failed)?;
            loop {
                reactor.poll();
                if reactor.is_over() {
                    return Ok(());
                }
                // What becomes ready after this is announced anew.
                fd.readable().await.map_err(failed)?.clear_ready();
            }
        }
    }
}
