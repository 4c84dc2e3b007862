//! sd_notify(3): tells the service manager that the daemon is ready, what it does, that it stops.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Something the service manager is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notification<'a> {
    /// I/O is served; with a status line.
    Ready(&'a str),
    /// A line for `systemctl status`.
    Status(&'a str),
    /// The daemon is stopping; with a status line.
    Stopping(&'a str),
    /// Another program takes the place of this one in this process and will say that it is ready; with a status line.
    /// `Stopping` would make the service manager wait for the end of the process.
    Reloading(&'a str),
    /// Start or stop needs this much longer than the unit allows, from now on, in microseconds.
    ExtendTimeoutUsec(u64),
}

impl Notification<'_> {
    fn text(&self) -> String {
        // A newline would begin another assignment.
        let line = |text: &str| text.replace('\n', " ");
        match self {
            Notification::Ready(status) => format!("READY=1\nSTATUS={}", line(status)),
            Notification::Status(status) => format!("STATUS={}", line(status)),
            Notification::Stopping(status) => format!("STOPPING=1\nSTATUS={}", line(status)),
            Notification::Reloading(status) => {
                // The time is asked for by Type=notify-reload alone.
                let usec = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)
                    .map_or(0, |now| now.tv_sec() * 1_000_000 + now.tv_nsec() / 1_000);
                format!("RELOADING=1\nMONOTONIC_USEC={usec}\nSTATUS={}", line(status))
            }
            Notification::ExtendTimeoutUsec(usec) => format!("EXTEND_TIMEOUT_USEC={usec}"),
        }
    }
}

/// Sends to `$NOTIFY_SOCKET`. False if there is none: nobody asked to be told.
pub fn notify(what: &Notification<'_>) -> io::Result<bool> {
    match std::env::var_os("NOTIFY_SOCKET") {
        Some(socket) if !socket.is_empty() => notify_socket(&socket, what).map(|()| true),
        _ => Ok(false),
    }
}

/// Sends to the socket at `address`: a path, or `@name` in the abstract namespace.
fn notify_socket(address: &OsStr, what: &Notification<'_>) -> io::Result<()> {
    let address = match address.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(address)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.send_to_addr(what.text().as_bytes(), &address)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_and_an_abstract_name_are_reached() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let by_path = UnixDatagram::bind(&path).unwrap();
        let name = format!("writeboost-test-{}", std::process::id());
        let by_name = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        for (socket, address) in [(by_path, path.into_os_string()), (by_name, format!("@{name}").into())] {
            notify_socket(&address, &Notification::Ready("serving\nfast")).unwrap();
            let mut buf = [0; 64];
            let n = socket.recv(&mut buf).unwrap();
            assert_eq!(&buf[..n], b"READY=1\nSTATUS=serving fast");
        }
    }

    #[test]
    fn a_missing_socket_is_an_error_and_not_a_panic() {
        assert!(notify_socket(OsStr::new("/nonexistent/notify"), &Notification::Status("x")).is_err());
    }
}
