//! TCP's own means to find out that a peer is gone, set to what SMB Direct's keepalive does.

use std::io;
use std::net::TcpStream;
use std::time::Duration;

use rustix::net::sockopt;

use super::TcpOptions;

/// The longest time that Linux takes for one of its keepalive options.
const LONGEST: Duration = Duration::from_secs(32_767);
const SECOND: Duration = Duration::from_secs(1);
/// Probes within the timeout: one that is lost on the way does not end the connection.
const PROBES: u32 = 5;

/// Has the system probe the peer after the interval, and end the connection when it answers, or
/// takes what is sent to it, neither then nor within the timeout.
pub(super) fn set(stream: &TcpStream, options: &TcpOptions) -> io::Result<()> {
    if options.keepalive_interval == Duration::MAX {
        return Ok(sockopt::set_socket_keepalive(stream, false)?);
    }
    let interval = options.keepalive_interval.clamp(SECOND, LONGEST);
    let timeout = options.keepalive_timeout.clamp(SECOND, LONGEST);
    sockopt::set_tcp_keepidle(stream, interval)?;
    sockopt::set_tcp_keepintvl(stream, (timeout / PROBES).max(SECOND))?;
    sockopt::set_tcp_keepcnt(stream, PROBES)?;
    // This one is what ends the connection (tcp(7)), also while data is on its way: without it
    // retransmissions would go on for a quarter of an hour.
    let both = (interval + timeout).as_millis();
    sockopt::set_tcp_user_timeout(stream, u32::try_from(both).unwrap_or(u32::MAX))?;
    Ok(sockopt::set_socket_keepalive(stream, true)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream() -> (TcpStream, TcpStream) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (stream, listener.accept().unwrap().0)
    }

    #[test]
    fn the_options_reach_the_socket() {
        let (stream, _peer) = stream();
        set(&stream, &TcpOptions::default()).unwrap();
        assert!(sockopt::socket_keepalive(&stream).unwrap());
        let idle = sockopt::tcp_keepidle(&stream).unwrap();
        let between = sockopt::tcp_keepintvl(&stream).unwrap();
        assert_eq!((idle, between), (Duration::from_secs(120), SECOND));
        assert_eq!(sockopt::tcp_user_timeout(&stream).unwrap(), 125_000);
    }

    #[test]
    fn extremes_are_legal() {
        let (stream, _peer) = stream();
        for (interval, timeout) in [
            (Duration::ZERO, Duration::ZERO),
            (Duration::MAX / 2, Duration::MAX),
            (Duration::from_millis(1500), Duration::from_millis(1)),
        ] {
            let options = TcpOptions {
                keepalive_interval: interval,
                keepalive_timeout: timeout,
                ..TcpOptions::default()
            };
            set(&stream, &options).unwrap();
            assert!(sockopt::socket_keepalive(&stream).unwrap());
        }
        let never = TcpOptions {
            keepalive_interval: Duration::MAX,
            ..TcpOptions::default()
        };
        set(&stream, &never).unwrap();
        assert!(!sockopt::socket_keepalive(&stream).unwrap());
    }
}
